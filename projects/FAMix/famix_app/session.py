"""State of the page in one tab of a browser."""

from collections import deque
from collections.abc import Iterator, Sequence

from famix.utils.errors import ConfigError
from famix_app.comparison import Side, predict
from famix_app.networks import Network
from famix_app.pictures import Picture
from famix_app.words import PictureStyler

MOST_PICTURES = 12
"""Number of pictures that a session keeps; the oldest ones are dropped."""


class Session:
    """Pictures of a session and predictions for the shown one.

    Attributes:
        pictures: pictures to choose from, oldest first.
        original: the picture that is shown, or that was restyled.
        restyled: `original` in the style of each word.
        shown: `original` or one of `restyled`.
        uploads: paths of uploaded files that have not been read yet.
    """

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.original: Picture | None = None
        self.restyled: list[Picture] = []
        self.shown: Picture | None = None
        self.uploads: deque[str] = deque()
        self._sides: dict[tuple[Picture, str], Side] = {}

    def sides(self, picture: Picture, networks: Sequence[Network]) -> list[Side]:
        """Return the predictions of networks for a picture. Those for the original and the shown picture are kept.

        Raises:
            DatasetError: the picture is too small.
        """
        kept = {key: side for key, side in self._sides.items() if key[0] in (self.original, self.shown)}
        new = {(picture, one.name): predict(one, picture.pixels) for one in networks if (picture, one.name) not in kept}
        self._sides = kept | new
        return [self._sides[picture, network.name] for network in networks]

    def add(self, pictures: Sequence[Picture], networks: Sequence[Network]) -> None:
        """Add pictures and show the last one. On an error, the session is unchanged (see `sides`)."""
        self.open(pictures[-1], networks)
        self.pictures = [*self.pictures, *pictures][-MOST_PICTURES:]

    def open(self, picture: Picture, networks: Sequence[Network]) -> None:
        """Show a picture without styles. On an error, the session is unchanged (see `sides`)."""
        self.sides(picture, networks)
        if picture is not self.original:
            self.restyled = []
        self.original = self.shown = picture

    def restyle(
        self, words: Sequence[str], styler: PictureStyler, networks: Sequence[Network]
    ) -> Iterator[tuple[Picture, list[Side]]]:
        """Restyle the original with each word.

        Yields:
            The original and its predictions, then the restyled picture for each word and its predictions.

        Raises:
            ConfigError: there is no picture.
        """
        if self.original is None:
            raise ConfigError("There is no picture to restyle. Drop one, or render one of the town.")
        self.restyled, self.shown = [], self.original
        plain = self.sides(self.original, networks)
        yield self.original, plain
        for word in words:
            pixels = styler.restyle(self.original.pixels, plain[-1], word)
            picture = Picture(f"{self.original.name}, {word}", pixels)
            sides = self.sides(picture, networks)
            self.restyled.append(picture)
            yield picture, sides
