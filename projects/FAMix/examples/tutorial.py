"""From your own images to a table, in Python.

Run it as a script, or cell by cell in an editor that knows "# %%" (VS Code, PyCharm, Spyder). It writes to
`output/tutorial` below the current folder, works on a CPU and needs no download. Pictures of FAMix's miniature town
stand for your images: to use yours, leave out section 1 and describe them in section 2.
"""

# %%
# Sizes for a first look, some minutes on a laptop.
from pathlib import Path

from PIL import Image
from tabulate import tabulate

from famix import Predictor
from famix.engine import Trainer, argument_parser, setup
from famix.inference import load_model, strip_checkpoint
from famix.reports import read_report
from famix_minitown.conditions import apply_condition
from famix_minitown.scene import render_scene

FOLDER = Path("output/tutorial")
SIZE = (192, 384)  # height and width of the images
IMAGES = 60  # for training
ITERATIONS = 150

# %% [markdown]
# ## 1. Images and labels
#
# Labels are PNGs of the same size whose values say what a pixel shows. Here 0 is the road, 2 a building and so on, as in
# Cityscapes' train ids. One domain is labelled for training, "day"; "night" and "fog" are only there to be scored, and
# would not be needed otherwise.

# %%
for split, condition, first, count in (
    ("day_train", "clear", 0, IMAGES),
    ("day_val", "clear", 500, 8),
    ("night", "night", 500, 8),
    ("fog", "fog", 500, 8),
):
    for folder in ("images", "labels"):
        (FOLDER / folder / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene = render_scene(first + number, SIZE)
        Image.fromarray(apply_condition(scene, condition)).save(FOLDER / "images" / split / f"{number:03d}.png")
        Image.fromarray(scene.labels).save(FOLDER / "labels" / split / f"{number:03d}.png")

# %% [markdown]
# ## 2. What they are
#
# A data set is a YAML file that says where the files lie and what the values mean; every split becomes a data set of its
# own, `street_day_train` and so on. More of it is in datasets/README.md.

# %%
DEFINITION = FOLDER / "street.yaml"
DEFINITION.write_text(f"""
name: street
root: {FOLDER.resolve()}
images: "images/{{split}}/{{key}}.png"
labels: "labels/{{split}}/{{key}}.png"
classes:
  - {{name: road, color: [128, 64, 128]}}
  - {{name: building, color: [70, 70, 70]}}
  - {{name: vegetation, color: [107, 142, 35]}}
  - {{name: sky, color: [70, 130, 180]}}
  - {{name: car, color: [0, 0, 142]}}
label_ids: {{0: road, 1: road, 2: building, 3: building, 8: vegetation, 10: sky, 13: car}}
other_ids: ignore
splits: {{day_train: {{}}, day_val: {{}}, night: {{}}, fog: {{}}}}
""")

# %% [markdown]
# ## 3. The run
#
# The config says which CLIP, which words, which sizes. Any config of projects/FAMix/configs will do as the base; what
# follows overrides it. `setup` checks everything: keys, files, classes. With OpenAI's CLIP, take Base-FAMix.yaml.

# %%
CONFIG = Path(__file__).parents[1] / "configs/minitown/famix_weather.yaml"
cfg = setup(
    argument_parser().parse_args([
        "--config-file", str(CONFIG), "--overwrite",  # the run of an earlier time
        "DATASETS.FILES", f"['{DEFINITION}']",
        "DATASETS.TRAIN", "['street_day_train']",
        "DATASETS.TEST", "['street_day_val', 'street_night', 'street_fog']",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5",
        "STYLE_MINING.STYLES", "['night', 'foggy']",
        "INPUT.CROP.SIZE", f"[{SIZE[0]}, {SIZE[0]}]",
        "SOLVER.MAX_ITER", str(ITERATIONS),
        "DATALOADER.NUM_WORKERS", "0",
        "OUTPUT_DIR", str(FOLDER / "run"),
    ])
)  # fmt: skip

# %% [markdown]
# ## 4. Mine styles, train, score
#
# Styles are mined first, from the words above and the images of day_train. The same call on a stopped run with
# `resume=True` continues it. Afterwards the run's folder holds the checkpoint, the bank of styles, and the scores as
# results.md, .csv and .json.

# %%
trainer = Trainer(cfg)
trainer.resume_or_load(resume=False)
results = trainer.train(overwrite=True)

# %% [markdown]
# ## 5. The table

# %%
report = read_report(FOLDER / "run/results.json")
rows = [[name, report.class_count(name), report.score(name), report.score(name, "pACC")] for name in results]
headers = ["dataset", "classes that occur", "mIoU in %", "pixel accuracy in %"]
table = tabulate(rows, headers=headers, floatfmt=".1f", tablefmt="github")
print(table)
(FOLDER / "table.md").write_text(table + "\n")

# %% [markdown]
# ## 6. Use it
#
# A predictor takes paths, PIL images and RGB arrays. `predict_many` reads ahead, for many images. How the network looks
# at an image is a protocol, see docs/PROTOCOLS.md: here also at its mirror image.

# %%
predictor = Predictor.from_checkpoint(FOLDER / "run", protocol="flip")
photos = sorted((FOLDER / "images/night").glob("*.png"))
Image.fromarray(predictor(photos[0]).overlay(photos[0], alpha=0.6)).save(FOLDER / "overlay.png")

shares = []
for photo, prediction in zip(photos, predictor.predict_many(photos), strict=True):
    shares.append([photo.name, *(100 * (prediction.labels == index).mean() for index in range(5))])
print(tabulate(shares, headers=["share in %", *predictor.classes.names], floatfmt=".1f", tablefmt="github"))

# %% [markdown]
# ## 7. Ship it
#
# One file with the weights, the config and the classes, on which `Predictor.from_checkpoint` and demo.py run anywhere.
# tools/export.py writes it, too, and ONNX.

# %%
strip_checkpoint(load_model(FOLDER / "run"), FOLDER / "street.pth", half=True)
print(Predictor.from_checkpoint(FOLDER / "street.pth").classes.names)
