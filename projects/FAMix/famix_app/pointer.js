// Show the class and confidence of the pixel under the pointer. `props.value` is the result of `pointer_values`.
let maps = null;
let place = null; // of the pointer, as shares of the width and height of the picture

async function unpack(side, pixels) {
  const packed = Uint8Array.from(atob(side.data), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return {...side, ids: new Uint16Array(buffer, 0, pixels), confidence: new Uint8Array(buffer, 2 * pixels, pixels)};
}

async function read() {
  const value = props.value;
  maps = null;
  if (!value?.sides) return;
  const sides = await Promise.all(value.sides.map((side) => unpack(side, value.width * value.height)));
  if (value !== props.value) return; // the picture has changed in the meantime
  maps = {...value, sides};
  show();
}

function show() {
  if (!maps || !place) return;
  const pixel = Math.floor(place.y * maps.height) * maps.width + Math.floor(place.x * maps.width);
  const parts = maps.sides.map((side) => {
    const entry = document.createElement("span"), swatch = document.createElement("i"), name = document.createElement("b");
    swatch.style.background = side.colors[side.ids[pixel]];
    name.textContent = side.names[side.ids[pixel]];
    const isClass = side.ids[pixel] < side.names.length - 1; // the last one stands for no segment
    const confidence = isClass ? ` ${Math.round(side.confidence[pixel] / 2.55)} %` : "";
    entry.append(swatch, name, `${confidence} (${side.network})`);
    return entry;
  });
  element.querySelector(".pixel").replaceChildren(...parts);
}

function point(event) {
  const image = event.target.closest?.("#slider") && document.querySelector("#slider img");
  if (!image) return;
  const box = image.getBoundingClientRect();
  const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
  if (x < 0 || y < 0 || x >= 1 || y >= 1) return;
  place = {x, y};
  show();
}

watch("value", read);
read();
for (const name of ["pointermove", "pointerdown"]) document.addEventListener(name, point, true);
