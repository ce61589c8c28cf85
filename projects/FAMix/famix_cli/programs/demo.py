"""Segmentation of images, videos or a camera with a trained network: famix-demo."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from famix.config import load_config
from famix.inference import Predictor
from famix.inference.background import read_ahead, write_behind
from famix.inference.images import RGBImage, find_images, load_rgb
from famix.inference.video import DEFAULT_RATE, FrameFolder, VideoReader, show_image, view_writer
from famix.inference.views import (
    ALL_VIEWS,
    CITYSCAPES_IDS,
    ID_VIEWS,
    Files,
    ViewOptions,
    draw_view,
    image_files,
    video_files,
    write_views,
)
from famix.io.atomic import disk_message, require_writable
from famix.utils.errors import ConfigError, DatasetError, FAMixError
from famix.utils.paths import expand_arguments
from famix.utils.plugins import load_plugins

UNREADABLE, USER_ERROR, INTERRUPTED = 1, 2, 130  # exit codes


def run(args: argparse.Namespace) -> int:
    """Check the arguments, run the predictions, and return the exit status."""
    if not 0 <= args.alpha <= 1:
        raise ConfigError(f"--alpha must be between 0 and 1, got {args.alpha}. Choose another opacity.")
    if args.rate is not None and not (args.rate > 0 and args.video_input and args.video_input.is_dir()):
        raise ConfigError(
            f"--rate must be positive and requires a folder as --video-input, got {args.rate}. Omit --rate."
        )
    views = list(ALL_VIEWS) if args.view == "all" else [args.view]
    if args.output is None and args.view in (*ID_VIEWS, "all"):
        raise ConfigError(f"--view {args.view} cannot be shown in a window. Use --output to save it.")
    options = ViewOptions(args.alpha, args.legend)
    return predict_images(args, views, options) if args.input else predict_video(args, views, options)


def predict_images(args: argparse.Namespace, views: Sequence[str], options: ViewOptions) -> int:
    """Predict images one by one. Images that cannot be read are reported and skipped."""
    sources, unreadable = find_images(args.input), 0
    files = image_files(sources, args.output, views) if args.output else []
    check_folders(files)
    predictor = load_predictor(args)

    def load(file: Path) -> RGBImage | DatasetError:
        try:
            return load_rgb(file, predictor.max_pixels)
        except DatasetError as error:
            return error

    images = read_ahead(map(load, sources))
    with write_behind() as call, tqdm(images, total=len(sources), unit="image", disable=None) as progress:
        for place, image in enumerate(progress):
            try:
                if isinstance(image, DatasetError):
                    raise image
                prediction = predictor(image, keep_scores=False)
            except DatasetError as error:
                unreadable += 1
                source = "" if error is image else f"{sources[place]}: "
                progress.write(f"error: {source}{error}", file=sys.stderr)
                continue
            if files:
                call(write_views, files[place], image, prediction, options)
            elif not show_image(draw_view(views[0], image, prediction, options), wait=True):
                return 0
    print(f"{len(sources) - unreadable} of {len(sources)} images{f' -> {args.output}' if files else ''}")
    return UNREADABLE if unreadable else 0


def predict_video(args: argparse.Namespace, views: Sequence[str], options: ViewOptions) -> int:
    """Predict frames from a video, folder or camera until it ends or the user stops it."""
    source, frames = args.video_input, 0
    if args.webcam is not None:
        source = Path(f"camera{args.webcam}")  # used to name the outputs
    files = video_files(source, args.output, views) if args.output else {}
    check_folders([files])
    if args.webcam is not None:
        reader = VideoReader(args.webcam)
    else:
        reader = FrameFolder(source, args.rate or DEFAULT_RATE) if source.is_dir() else VideoReader(source)
    with reader:
        predictor = load_predictor(args)
        reader.max_pixels = predictor.max_pixels
        with view_writer(files, reader.rate, options) as write, write_behind() as call:
            try:
                for frame in tqdm(read_ahead(reader), total=reader.frames, unit="frame", disable=None):
                    prediction = predictor(frame, keep_scores=False)
                    if files:
                        call(write, frame, prediction)
                    else:
                        legend_ids = range(len(predictor.classes.names))
                        if not show_image(draw_view(views[0], frame, prediction, options, legend_ids), wait=False):
                            return 0
                    frames += 1
            except KeyboardInterrupt:
                if args.webcam is None:
                    raise  # a partial output would look complete
        print(f"{frames} frames at {reader.rate:g} per second{f' -> {args.output}' if files else ''}")
        reader.require_whole(frames)
    return 0


def check_folders(files: Sequence[Files]) -> None:
    """Raise ConfigError unless all output folders are writable."""
    for folder in {path.parent for paths in files for path in paths.values()}:
        require_writable(folder)


def load_predictor(args: argparse.Namespace) -> Predictor:
    """Load the network selected on the command line."""
    weights = args.weights or load_config(str(args.config_file or ""), args.opts).MODEL.WEIGHTS
    if not weights:
        raise ConfigError(
            "--weights is missing and MODEL.WEIGHTS is empty. Set --weights to a checkpoint or run directory."
        )
    predictor = Predictor.from_checkpoint(weights, args.config_file, args.protocol, args.device, args.opts)
    if args.view == CITYSCAPES_IDS:
        predictor.classes.cityscapes_label_ids()  # reject other classes before the first image
    return predictor


def execute(args: argparse.Namespace) -> int:
    """Run the program and return the exit status. User errors are reported as one line on stderr."""
    try:
        load_plugins()
        return run(expand_arguments(args))
    except (FAMixError, OSError) as error:
        message = disk_message(error, "choose another --output") if isinstance(error, OSError) else error
        print(f"error: {message}", file=sys.stderr)
        return UNREADABLE if isinstance(error, DatasetError) else USER_ERROR
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
