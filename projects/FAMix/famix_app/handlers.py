"""Functions behind the events of the page: they take and return values of its components."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from famix.inference.images import RGBImage
from famix.utils.errors import ConfigError, DatasetError, FAMixError
from famix.visualization.overlay import downsample
from famix_app.comparison import Side, changed_share, draw, legend, pointer_values, write_files
from famix_app.networks import Network
from famix_app.pictures import TOWN, Picture, read_picture, render_town
from famix_app.session import Session
from famix_app.words import load_styler, parse_words

_THUMBNAIL = 320  # width in pixels


class Page:
    """Functions of the page. Each returns the new values of components, the same ones for all that change the picture.

    Args:
        networks: networks to choose from.
        folder: folder for the files to download, in Gradio's cache.
    """

    def __init__(self, networks: Sequence[Network], folder: Path) -> None:
        self.networks = {network.name: network for network in networks}
        self.folder = folder
        self.max_pixels = min(network.predictor.max_pixels for network in networks)

    def start(self, session: Session, left: str, right: str, view: str) -> Any:
        """Show a picture of the town, if it is installed."""
        if TOWN:
            return self.render(session, left, right, view, TOWN[1], 1)
        return self.refresh(session, left, right, view)

    def receive(self, session: Session, files: list[str]) -> Any:
        """Note uploaded files at once and empty their component: it fails if it receives more during a prediction."""
        session.uploads.extend(files)
        return session, None

    def upload(self, session: Session, left: str, right: str, view: str) -> Any:
        """Add uploaded files, and report those that are refused."""
        pictures = []
        while session.uploads:
            try:
                pictures.append(read_picture(Path(session.uploads.popleft()), self.max_pixels))
            except DatasetError as error:
                refuse(error)
        while pictures:
            try:
                session.add(pictures, self.chosen(left, right))
                break
            except DatasetError as error:  # the last one is too small
                refuse(DatasetError(f"{pictures.pop().name}: {error}"))
        return self.refresh(session, left, right, view)

    def render(self, session: Session, left: str, right: str, view: str, condition: str, scene: int) -> Any:
        """Show a picture of the town, and add it if it is new."""
        picture, networks = render_town(condition, scene), self.chosen(left, right)
        same = [one for one in session.pictures if one.name == picture.name]
        with errors_shown():
            session.open(same[0], networks) if same else session.add([picture], networks)
        return self.refresh(session, left, right, view)

    def choose(self, session: Session, left: str, right: str, view: str, event: gr.SelectData) -> Any:
        """Show one of the pictures."""
        with errors_shown():
            session.open(listed(session.pictures, event.index), self.chosen(left, right))
        return self.refresh(session, left, right, view)

    def choose_restyled(self, session: Session, left: str, right: str, view: str, event: gr.SelectData) -> Any:
        """Show one of the restyled pictures."""
        with errors_shown():
            session.shown = session.original if event.index == 0 else listed(session.restyled, event.index - 1)
        return self.refresh(session, left, right, view)

    def refresh(self, session: Session, left: str, right: str, view: str) -> Any:
        """Return the values of `outputs` in `build_page`."""
        picture, hidden = session.shown, gr.update(value=None, visible=False)
        thumbnails = [thumbnail(one) for one in session.pictures]
        if picture is None:
            return session, thumbnails, None, "", None, "", hidden, hidden
        with errors_shown():
            sides = session.sides(picture, self.chosen(left, right))
        found = {side.network: side for side in sides}
        images = tuple(draw(picture, found.get(name), view) for name in (left, right))
        restyled = gr.skip() if session.restyled else hidden
        names = "".join(f"<span>{escape(name)}</span>" for name in (left, picture.name, right))
        title = f'<div class="sides">{names}</div>'
        return session, thumbnails, images, title, pointer_values(sides), legend(sides, view), restyled, hidden

    def restyle(self, session: Session, left: str, right: str, view: str, text: str) -> Iterator[Any]:
        """Show the picture and its predictions for each style word, as soon as they are ready."""
        tiles: list[tuple[RGBImage, str]] = []
        with errors_shown():
            words, networks = parse_words(text), self.chosen(left, right)
            yield session, gr.skip(), f"Loading the CLIP of {networks[-1].name} ..."
            styler = load_styler(networks[-1])
            unknown = ", ".join(styler.unknown_words(words))
            note = (
                f"This CLIP was not trained on these words, so the result is arbitrary: {unknown}." if unknown else ""
            )
            plain: list[Side] = []
            steps = [f"Mining *{word}* ({number} of {len(words)}) ..." for number, word in enumerate(words, 1)]
            for word, step, (picture, sides) in zip(
                ["original", *words], [*steps, note], session.restyle(words, styler, networks), strict=True
            ):
                plain = plain or sides
                tiles.append(restyled_tile(word, picture, sides, plain))
                yield session, gr.update(value=tiles, visible=True), step

    def write(self, session: Session, left: str, right: str, view: str) -> Any:
        """Write the files to download."""
        with errors_shown():
            if session.shown is None:
                raise ConfigError("There is no prediction to download. Drop a picture first.")
            sides = session.sides(session.shown, self.chosen(left, right))
            files = write_files(session.shown, sides, self.folder)
        return gr.update(value=[str(file) for file in files], visible=True)

    def chosen(self, left: str, right: str) -> list[Network]:
        """Return the different networks on the two sides, the right one last."""
        return [self.networks[name] for name in dict.fromkeys((left, right)) if name in self.networks]


def refuse(error: FAMixError) -> None:
    """Show an error on the page until the user closes it, and go on."""
    gr.Warning(escape(str(error)), duration=None)


def listed(pictures: Sequence[Picture], place: int) -> Picture:
    """Return the picture at a place that the user chose. Raises ConfigError if the session has forgotten it."""
    if place >= len(pictures):
        raise ConfigError("This session has expired. Reload the page.")
    return pictures[place]


@contextmanager
def errors_shown() -> Iterator[None]:
    """Show errors that the user can fix on the page until the user closes them."""
    try:
        yield
    except FAMixError as error:
        raise gr.Error(escape(str(error)), duration=None, print_exception=False) from None


def thumbnail(picture: Picture) -> tuple[RGBImage, str]:
    """Return a small version of a picture and its name."""
    return downsample(picture.pixels, _THUMBNAIL, smooth=True), picture.name


def restyled_tile(word: str, picture: Picture, sides: Sequence[Side], plain: Sequence[Side]) -> tuple[RGBImage, str]:
    """Return the picture above its predictions, and its caption. `plain` has the predictions for the original."""
    images = [picture.pixels, *(side.prediction.overlay(picture.pixels) for side in sides)]
    stack = np.concatenate([downsample(image, _THUMBNAIL, smooth=True) for image in images])
    if sides is plain:
        return stack, word
    shares = [f"{100 * changed_share(*pair):.0f} %" for pair in zip(plain, sides, strict=True)]
    return stack, f"{word}: {' / '.join(shares)} changed"
