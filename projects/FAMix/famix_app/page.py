"""Components of the page and their events."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from famix.utils.errors import ConfigError
from famix_app.comparison import CLASSES, UNSURE
from famix_app.handlers import Page
from famix_app.networks import Network
from famix_app.pictures import SCENES, TOWN
from famix_app.session import Session

LARGEST_FILE = "64mb"

_PICTURE = "Picture"  # choice for a side without a network
_QUEUE = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}  # one prediction at a time
_HERE = Path(__file__).parent
_TITLE = "# FAMix\nCompare networks on your pictures, and see what style words do to them."
_WORDS_HELP = (
    "CLIP finds the brightness, contrast and color of each word. Each result shows the restyled picture, its predictions (left "
    "network first) and the share of pixels whose class changes. Click one to open it above."
)


def build_page(networks: Sequence[Network], folder: Path) -> gr.Blocks:
    """Build the page. Arguments as for `Page`."""
    page, names = Page(networks, folder), [network.name for network in networks]
    with gr.Blocks(title="FAMix", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        session = gr.State(Session(), time_to_live=3600)
        gr.Markdown(_TITLE)
        with gr.Row():
            files, town, pictures, sides = build_choices(names)
            slider, shown, download, made = build_comparison()
        with gr.Row(equal_height=True):
            text = gr.Textbox(
                label="Style words", info=_WORDS_HELP, placeholder="foggy, at night", scale=5, min_width=240, elem_id="words"
            )  # fmt: skip
            go = gr.Button("Restyle", variant="primary", scale=1, min_width=120, elem_id="restyle")
        note = gr.Markdown(elem_id="note")
        restyled = gr.Gallery(
            show_label=False, height="auto", allow_preview=False, interactive=False, buttons=[], visible=False,
            elem_id="restyled",
        )  # fmt: skip
        state, outputs = [session, *sides], [session, pictures, slider, *shown, restyled, made]
        # A choice during a prediction is carried out after it, and of several ones the last.
        shows = {**_QUEUE, "show_progress_on": slider, "trigger_mode": "always_last"}
        quick = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}
        blocks.load(page.start, state, outputs, **shows)
        received = files.upload(page.receive, [session, files], [session, files], **quick)
        received.then(page.upload, state, outputs, **{**shows, "trigger_mode": "multiple"})
        if town:
            gr.on([one.input for one in town], page.render, [*state, *town], outputs, **shows)
        gr.on([one.input for one in sides], page.refresh, state, outputs, **shows)
        pictures.select(page.choose, state, outputs, **shows)
        restyled.select(page.choose_restyled, state, outputs, **shows)
        gr.on(
            [go.click, text.submit], page.restyle, [*state, text], [session, restyled, note], show_progress="hidden", **_QUEUE
        )  # fmt: skip
        download.click(page.write, state, made, **_QUEUE)
    return blocks


def build_choices(names: Sequence[str]) -> tuple[Any, list[Any], Any, list[Any]]:
    """Build the column to choose from.

    Returns:
        The drop zone, condition and scene of the town (none without its plugin), the pictures, and left, right and view.
    """
    town = []
    with gr.Column(scale=1, min_width=280, elem_id="choices"):
        files = gr.File(
            label="Pictures to upload", show_label=False, file_count="multiple", height=130, elem_id="files"
        )
        if TOWN:
            with gr.Row():
                scenes = list(range(1, SCENES + 1))
                town = [
                    gr.Dropdown(list(TOWN), value=TOWN[1], label="Town", min_width=120, elem_id="condition"),
                    gr.Dropdown(scenes, value=1, label="Scene", min_width=120, elem_id="scene"),
                ]
        pictures = gr.Gallery(
            label="Pictures", show_label=False, columns=4, height="auto", allow_preview=False, interactive=False,
            fit_columns=False, buttons=[], object_fit="cover", elem_id="pictures",
        )  # fmt: skip
        first = names[0] if len(names) > 1 else _PICTURE
        left = gr.Dropdown([_PICTURE, *names], value=first, label="Left", elem_id="left")
        right = gr.Dropdown(list(names), value=names[-1], label="Right", elem_id="right")
        view = gr.Radio([CLASSES, UNSURE], value=CLASSES, label="View", elem_id="view")
    return files, town, pictures, [left, right, view]


def build_comparison() -> tuple[Any, list[Any], Any, Any]:
    """Build the column that compares predictions.

    Returns:
        The slider, the texts around it (title, values under the pointer, legend), the button for files, and the files.
    """
    with gr.Column(scale=3, min_width=300, elem_id="comparison"):
        title = gr.HTML(elem_id="sides")
        slider = gr.ImageSlider(
            show_label=False, interactive=False, type="numpy", max_height=720, buttons=["fullscreen"], elem_id="slider"
        )  # fmt: skip
        pointer = gr.HTML(
            html_template=(_HERE / "pointer.html").read_text(encoding="utf-8"),
            js_on_load=(_HERE / "pointer.js").read_text(encoding="utf-8"),
            elem_id="pointer",
        )
        legend = gr.HTML(elem_id="legend")
        download = gr.Button("Make files to download", size="sm", elem_id="download")
        made = gr.File(label="Labels and overlays", interactive=False, visible=False, elem_id="made")
    return slider, [title, pointer, legend], download, made


def launch_page(blocks: gr.Blocks, host: str, port: int | None) -> str:
    """Serve the page in a thread and return its address.

    Raises:
        ConfigError: the port is taken.
    """
    theme = gr.themes.Default(
        font=[gr.themes.Font("system-ui"), "sans-serif"], font_mono=[gr.themes.Font("ui-monospace")]
    )
    try:
        _, address, _ = blocks.queue(max_size=20).launch(
            server_name=host, server_port=port, share=False, quiet=True, prevent_thread_lock=True, max_file_size=LARGEST_FILE,
            footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
            state_session_capacity=16, theme=theme, css_paths=_HERE / "page.css",
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"--host and --port must be free, got {host} and {port} ({error}). Choose another port."
        ) from error
    return str(address)
