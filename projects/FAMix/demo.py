#!/usr/bin/env python
"""Look at what a trained network says of images, videos or a camera, in the manner of Detectron2's demo."""

# ruff: noqa: E402, the parser stands before imports that take seconds

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

# One line says what is wrong; OpenCV's libraries would add theirs.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
# Detectron2 uses what newer versions of torch deprecate; users can do nothing about it.
for deprecated in (".*torch.jit.script.* is deprecated", "torch.meshgrid: in an upcoming release"):
    warnings.filterwarnings("ignore", message=deprecated)


EPILOG = """
Examples:
  images       demo.py --weights output/famix --input street.jpg photos 'frames/*.png' --output out
  video        demo.py --weights output/famix --video-input drive.mp4 --output drive_seen.mp4
  frames       demo.py --weights output/famix --video-input frames --rate 10 --output drive_seen.mp4
  camera       demo.py --weights output/famix --webcam --output live.avi       (Ctrl-C ends it)
  label files  demo.py --weights output/famix --input photos --output out --view labels --protocol ensemble+flip
Exit status: 0; 1 if some input could not be read, or not to its end; 2 if the command cannot work.
"""

VIEW_CHOICES = ("overlay", "side-by-side", "labels", "color", "cityscapes-ids", "all")


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint, or folder of a run (default: MODEL.WEIGHTS)"
    )
    parser.add_argument(
        "--config-file", type=Path, metavar="FILE", help="(default: the config.yaml beside the weights)"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="FILE", help="images, folders of images, or quoted patterns")
    source.add_argument("--video-input", type=Path, metavar="FILE", help="a video, or a folder with its frames")
    source.add_argument(
        "--webcam", type=int, nargs="?", const=0, metavar="NUMBER", help="a camera (the first one is 0, the default)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder; or the file of a single image or video; files of the same name are replaced, inputs never (default: "
        "a window, which q closes)",
    )
    parser.add_argument("--rate", type=float, metavar="N", help="frames per second of a folder (default: 25)")
    parser.add_argument("--view", choices=VIEW_CHOICES, default="overlay", help="(default: overlay)")
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours in an overlay (default: 0.5)")
    parser.add_argument("--legend", action="store_true", help="say below pictures what the colours mean")
    parser.add_argument(
        "--protocol",
        default="native",
        help="how the network looks, e.g. half+flip, see docs/PROTOCOLS.md (default: native)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="override the config")
    return parser


if __name__ == "__main__":
    make_parser().parse_args()  # --help and mistakes are answered at once

from tqdm import tqdm

from famix.data.images import require_pixels
from famix.engine import load_config
from famix.inference import Prediction, Predictor
from famix.inference.background import WriteBehind, read_ahead
from famix.inference.frames import FrameFolder
from famix.inference.images import RGBImage, load_rgb
from famix.inference.inputs import find_images
from famix.inference.outputs import image_files, require_writable, video_files
from famix.inference.video import USUAL_RATE, VideoReader
from famix.inference.writers import VideoSink, WindowClosed, WindowSink
from famix.io.atomic import disk_message
from famix.utils.errors import ConfigError, DatasetError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins
from famix.visualization.views import ALL_VIEWS, CITYSCAPES_IDS, ID_VIEWS, Files, Look, write_views

UNREADABLE, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit status


def run(args: argparse.Namespace) -> int:
    """Check everything that can be, load the network, then predict.

    Returns:
        The exit status.

    Raises:
        FAMixError: the command cannot work.
    """
    if not 0 <= args.alpha <= 1:
        raise ConfigError(f"--alpha is {args.alpha}, expected a number from 0 to 1")
    if args.rate is not None and not (args.rate > 0 and args.video_input and args.video_input.is_dir()):
        raise ConfigError("--rate is the frames per second, more than 0, of a folder that --video-input names")
    views = list(ALL_VIEWS) if args.view == "all" else [args.view]
    if args.output is None and args.view in (*ID_VIEWS, "all"):
        raise ConfigError(f"--view {args.view} needs --output: a window shows one picture")
    return predict_images(args, views) if args.input else predict_video(args, views)


def predict_images(args: argparse.Namespace, views: Sequence[str]) -> int:
    """Predict images one by one; those that cannot be read are named and left out."""
    sources, look, unreadable = find_images(args.input), Look(args.alpha, args.legend), 0
    files = image_files(sources, args.output, views) if args.output else []
    check_folders(files)
    predictor, window = load_predictor(args), WindowSink(views[0], look, wait=True)
    images = read_ahead(load(file, predictor.max_pixels) for file in sources)
    with WriteBehind() as writer, tqdm(images, total=len(sources), unit="image", disable=None) as progress:
        for place, image in enumerate(progress):
            prediction = predict(predictor, sources[place], image)
            if isinstance(image, DatasetError) or isinstance(prediction, DatasetError):
                unreadable += 1
                progress.write(f"error: {prediction}", file=sys.stderr)
            elif files:
                writer.call(write_views, files[place], image, prediction, look)
            else:
                window.write(image, prediction)
    print(f"{len(sources) - unreadable} of {len(sources)} images{f' -> {args.output}' if files else ''}")
    return UNREADABLE if unreadable else 0


def predict_video(args: argparse.Namespace, views: Sequence[str]) -> int:
    """Predict the frames of a video or a camera, until it ends or the user does."""
    is_camera = args.webcam is not None
    source, look = Path(f"camera{args.webcam}") if is_camera else args.video_input, Look(args.alpha, args.legend)
    files = video_files(source, args.output, views) if args.output else {}
    check_folders([files])
    frames = 0
    with open_frames(args) as reader:
        predictor = load_predictor(args)
        if isinstance(reader, VideoReader):
            require_pixels(reader.size, f"video {source}", predictor.max_pixels)
        else:
            reader.max_pixels = predictor.max_pixels
        with make_sink(files, reader.rate, views, look) as sink, WriteBehind() as writer:
            put = partial(writer.call, sink.write) if files else sink.write
            try:
                for frame in tqdm(read_ahead(reader), total=reader.frames, unit="frame", disable=None):
                    put(frame, predictor(frame, keep_scores=False))
                    frames += 1
            except KeyboardInterrupt:
                if not is_camera:
                    raise  # a part of a video would look like the whole
        print(f"{frames} frames at {reader.rate:g} per second{f' -> {args.output}' if files else ''}")
        if isinstance(reader, VideoReader):
            reader.require_whole(frames)
    return 0


def open_frames(args: argparse.Namespace) -> VideoReader | FrameFolder:
    """The camera, the video, or the folder of frames."""
    if args.webcam is None and args.video_input.is_dir():
        return FrameFolder(args.video_input, args.rate or USUAL_RATE)
    return VideoReader(args.video_input if args.webcam is None else args.webcam)


def make_sink(
    files: Files, rate: float, views: Sequence[str], look: Look
) -> AbstractContextManager[VideoSink | WindowSink]:
    """Files where there are any, else a window."""
    return VideoSink(files, rate, look) if files else nullcontext(WindowSink(views[0], look))


def check_folders(files: Sequence[Files]) -> None:
    """Raise ConfigError unless all files can be written."""
    for folder in {path.parent for paths in files for path in paths.values()}:
        require_writable(folder)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """The network, on a device, with its protocol."""
    weights = args.weights or load_config(str(args.config_file or ""), args.opts).MODEL.WEIGHTS
    if not weights:
        raise ConfigError("there is no network: give --weights a checkpoint or the folder of a run")
    predictor = Predictor.from_checkpoint(weights, args.config_file, args.protocol, args.device, args.opts)
    if args.view == CITYSCAPES_IDS:
        predictor.classes.cityscapes_label_ids()  # a mistake is told before the first image
    return predictor


def load(file: Path, max_pixels: int) -> RGBImage | DatasetError:
    """An image, or what is wrong with it."""
    try:
        return load_rgb(file, max_pixels)
    except DatasetError as error:
        return error


def predict(predictor: Predictor, file: Path, image: RGBImage | DatasetError) -> Prediction | DatasetError:
    """A prediction, or what is wrong with the image."""
    if isinstance(image, DatasetError):
        return image
    try:
        return predictor(image, keep_scores=False)
    except DatasetError as error:
        return DatasetError(f"{file}: {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; a mistake of the user ends with one line on stderr.

    Returns:
        The exit status.
    """
    args = make_parser().parse_args(argv)
    try:
        load_plugins()
        return run(expand_arguments(args))
    except FAMixError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return UNREADABLE if isinstance(error, DatasetError) else USER_ERROR
    except OSError as error:
        print(f"error: {disk_message(error, 'choose another --output')}", file=sys.stderr)
        return USER_ERROR
    except WindowClosed:
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
