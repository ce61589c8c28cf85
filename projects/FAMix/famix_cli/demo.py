"""Segment images, videos or a camera with a trained network, and save or show the results."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from famix_cli import execute

EPILOG = """
Examples:
  images       %(prog)s --weights output/famix --input street.jpg photos 'frames/*.png' --output out
  video        %(prog)s --weights output/famix --video-input drive.mp4 --output drive_seen.mp4
  frames       %(prog)s --weights output/famix --video-input frames --rate 10 --output drive_seen.mp4
  camera       %(prog)s --weights output/famix --webcam --output live.avi       (stop with Ctrl-C)
  label files  %(prog)s --weights output/famix --input photos --output out --view labels --protocol ensemble+flip
Exit status: 0 on success, 1 if an input cannot be read completely, 2 if an argument, config or checkpoint is invalid.
"""

VIEW_CHOICES = ("overlay", "side-by-side", "labels", "color", "cityscapes-ids", "all")


def make_parser() -> argparse.ArgumentParser:
    """Create the command-line parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", type=Path, metavar="FILE", help="checkpoint or run directory (default: MODEL.WEIGHTS)")
    add("--config-file", metavar="FILE", help="config file (default: config.yaml next to the weights)")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="FILE", help="images, folders of images, or quoted patterns")
    source.add_argument("--video-input", type=Path, metavar="FILE", help="video file, or folder of frames")
    source.add_argument("--webcam", type=int, nargs="?", const=0, metavar="NUMBER", help="camera number (default: 0)")
    output = (
        "output folder, or file for a single image or video. Existing files are replaced, but never an input (default: show "
        "a window; press q to close it)"
    )
    add("--output", type=Path, metavar="PATH", help=output)
    add("--rate", type=float, metavar="N", help="frames per second for a folder of frames (default: 25)")
    add("--view", choices=VIEW_CHOICES, default="overlay", help="output to show or save (default: overlay)")
    add("--alpha", type=float, default=0.5, help="opacity of the class colors in overlays (default: 0.5)")
    add("--legend", action="store_true", help="add a legend of the classes")
    add(
        "--protocol",
        default="native",
        help="inference protocol, e.g. half+flip; see docs/PROTOCOLS.md (default: native)",
    )
    add("--device", help="cpu or cuda (default: GPU if available)")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys to override")
    return parser


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run the command line and return its exit status."""
    # Errors are one line. OpenCV's libraries would add lines of their own.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return execute("famix_cli.programs.demo", make_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
