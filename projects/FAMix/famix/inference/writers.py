"""Where the pictures of a video go."""

from contextlib import ExitStack
from types import TracebackType

from famix.inference.images import RGBImage
from famix.inference.prediction import Prediction
from famix.inference.video import VideoWriter, Window
from famix.visualization.views import ID_VIEWS, VIEWS, Files, Look, draw_view, write_views

__all__ = ["VideoSink", "WindowClosed", "WindowSink"]


class WindowClosed(Exception):
    """The user wants to see no more."""


class VideoSink:
    """Writes views of frames to video files, and labels to PNGs; a context that completes them.

    Where something goes wrong, the videos stay as they were before.

    Args:
        files: view -> path, see `famix.inference.outputs.video_files`.
        rate: frames per second.
        look: how pictures are drawn; a legend shows all classes, so that frames have one size.
    """

    def __init__(self, files: Files, rate: float, look: Look) -> None:
        self._files = files
        self._rate = rate
        self._look = look
        self._open = ExitStack()
        self._writers: dict[str, VideoWriter] = {}
        self._frames = 0

    def __enter__(self) -> "VideoSink":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def write(self, image: RGBImage, prediction: Prediction) -> None:
        """Add a frame.

        Raises:
            ConfigError, OSError: a file cannot be written.
        """
        for view, path in self._files.items():
            if view in ID_VIEWS:
                write_views({view: path / f"{self._frames:06d}{VIEWS[view]}"}, image, prediction, self._look)
                continue
            picture = draw_view(view, image, prediction, self._look, range(len(prediction.class_names)))
            if view not in self._writers:
                self._writers[view] = self._open.enter_context(VideoWriter(path, self._rate, picture.shape[:2]))
            self._writers[view].write(picture)
        self._frames += 1


class WindowSink:
    """Shows a view of frames.

    Args:
        view: any but the labels.
        look: how pictures are drawn.
        wait: for a key after every picture.
    """

    def __init__(self, view: str, look: Look, wait: bool = False) -> None:
        self._view = view
        self._look = look
        self._wait = wait
        self._window = Window("FAMix")

    def write(self, image: RGBImage, prediction: Prediction) -> None:
        """Show a frame.

        Raises:
            WindowClosed: the user has pressed q or Escape.
            ConfigError: there are no windows.
        """
        in_legend = () if self._wait else range(len(prediction.class_names))
        if not self._window.show(draw_view(self._view, image, prediction, self._look, in_legend), self._wait):
            raise WindowClosed
