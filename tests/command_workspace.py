"""A miniature of the repository's root with data, runs, photographs and videos, in which documented commands run.

Its configs have the names and settings of the real ones, except that a run takes a second.
"""

import argparse
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from command_lines import find_blocks
from config_factory import make_street_datasets, quick_options, save_quick_clip, small_crops
from data_factory import forgotten_datasets, write_label
from famix.clip.architecture import ARCHITECTURES, CLIPArchitecture
from famix.config import find_node, load_config
from famix.data import CITYSCAPES_CLASSES
from famix.inference.video import video_writer
from famix_minitown import datasets
from famix_minitown.datasets import SPLITS
from inference.inference_factory import make_image
from panoptic_factory import make_panoptic, write_recipe
from released_factory import released_state, released_styles, write_bank, write_checkpoint
from run_factory import ROOT

CONFIG = "projects/FAMix/configs/GTA5/famix_RN50.yaml"
SOURCE_ONLY = "projects/FAMix/configs/GTA5/source_only_RN50.yaml"
BASE = "projects/FAMix/configs/Base-FAMix.yaml"
PANOPTIC = "projects/FAMix/configs/minitown/famix_panoptic_deeplab.yaml"
QUERIES = "projects/FAMix/configs/minitown/famix_maskformer.yaml"
VOCABULARY = "projects/FAMix/configs/vocabularies/wordnet.txt"
TARGETS = ["cityscapes_val", "mapillary_val", "gta5_val"]
# Pattern of the inputs of a command -> the files that it requires and the commands that make them.
_TRAIN = "projects/FAMix/train_net.py --config-file"
_BANK = "projects/FAMix/tools/inspect_bank.py"
_MINED = "output/GTA5_RN50/style_bank.safetensors"
_IMPORT = "projects/FAMix/tools/import_released.py"
_FIELDS = (
    "DATASETS.FILES ['fields.yaml'] DATASETS.TRAIN ['fields_2024'] DATASETS.TEST ['fields_2025'] "
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES 3 MODEL.STYLE.STRATEGY none"
)
MADE_BY = {
    r"output/GTA5_RN50\b(?!_)|\b(both|some)\.safetensors": [("output/GTA5_RN50", f"{_TRAIN} {CONFIG}")],
    "output/minitown/famix_maskformer": [("output/minitown/famix_maskformer", f"{_TRAIN} {QUERIES}")],
    "output/demo/": [
        (f"output/demo/{name}", f"{_TRAIN} {config} OUTPUT_DIR output/demo/{name}")
        for name, config in (("jitter", SOURCE_ONLY), ("famix_default", CONFIG))
    ],
    "output/town": [("output/town", "datasets/minitown.py --out output/town --count 1 --size 64 96")],
    r"\b(both|some)\.safetensors": [
        ("both.safetensors", f"{_BANK} merge {_MINED} --output both.safetensors"),
        ("some.safetensors", f"{_BANK} merge {_MINED} --output some.safetensors"),
    ],
    "output/GTA5_RN50_source_only": [("output/GTA5_RN50_source_only", f"{_TRAIN} {SOURCE_ONLY}")],
    "output/GTA5_RN50_seed": [
        (f"output/GTA5_RN50_seed{seed}", f"{_TRAIN} {CONFIG} SEED {seed} OUTPUT_DIR output/GTA5_RN50_seed{seed}")
        for seed in (1, 2)
    ],
    r"output/(famix|source_only)/seed[*1]": [
        (f"output/{method}/seed{seed}", f"{_TRAIN} {config} SEED {seed} OUTPUT_DIR output/{method}/seed{seed}")
        for method, config in (("famix", CONFIG), ("source_only", SOURCE_ONLY))
        for seed in (1, 2)
    ],
    r"output/fields\b": [
        (f"output/{name}", f"{_TRAIN} {BASE} {_FIELDS} OUTPUT_DIR output/{name}")
        for name in ("fields_baseline", "fields")
    ],
    r"output/words\b": [("output/words", f"{_TRAIN} {CONFIG} --mine-styles-only OUTPUT_DIR output/words")],
    r"\bmodel\.pth": [("model.pth", f"{_IMPORT} released.pth --output model.pth --config-file {CONFIG}")],
    r"\bbank\.safetensors": [
        ("bank.safetensors", f"{_IMPORT} saved_params.pkl --output bank.safetensors --config-file {CONFIG}")
    ],
    r"\brandom\.safetensors": [
        ("random.safetensors", "projects/FAMix/tools/make_random_clip.py --output random.safetensors --width 4")
    ],
}


class Miniature:
    """The folder, in which commands run; `patch` undoes the changes to this process."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.launches: list[dict[str, Any]] = []
        self._patch = patch
        make_street_datasets(folder / "datasets")
        self._clip = save_quick_clip(folder)
        self._write_configs()
        self._write_own_data()
        self._write_pictures()
        state = released_state(layers=(1, 1, 1, 3), width=8, decoder=8, low=4)
        write_checkpoint(folder / "released.pth", state)
        write_bank(folder / "saved_params.pkl", released_styles(channels=32))
        self._patch_process()

    def run(self, program: str, *arguments: str) -> int:
        """Run a Python program of the repository in this process and return its exit status."""
        with forgotten_datasets(), _same_signals(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [program, *arguments])
            patch.setattr(sys, "path", [str((ROOT / program).parent), *sys.path])
            try:
                runpy.run_path(str(ROOT / program), run_name="__main__")
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else int(end.code is not None)
        return 0

    def words(self, command: str) -> list[str]:
        """Return the words that a shell makes of the last line of a command."""
        *assignments, last = command.splitlines()
        line = re.sub(r"^(?:[A-Z0-9_]+=\S*\s+)+", "", last)
        script = "\n".join([*assignments, f"printf '%s\\0' {line}"])
        done = subprocess.run(["bash", "-c", script], cwd=self.folder, capture_output=True, text=True, check=True)
        return done.stdout.split("\0")[:-1]

    def provide(self, command: str) -> None:
        """Make the inputs of a command unless they exist."""
        inputs = re.sub(r"(--output|OUTPUT_DIR) \S+", "", command)
        for pattern, makers in MADE_BY.items():
            for place, maker in makers if re.search(pattern, inputs) else ():
                if not (self.folder / place).exists():
                    assert self.run(*maker.split()) == 0, maker

    def _write_configs(self) -> None:
        quick = quick_options(self.folder)
        for name in (CONFIG, SOURCE_ONLY):
            small = small_crops(load_config(str(ROOT / name)))
            self._write_config(name, [*quick, *small, "DATASETS.TEST", str(TARGETS)])
        self._write_config(BASE, [*quick, "INPUT.CROP.SIZE", "[48, 48]"])
        self._write_config(CONFIG, [*quick, *small, "DATASETS.TEST", str(TARGETS)], "CONFIG")
        town = [
            "MODEL.CLIP.WEIGHTS", str(self._clip), "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1",
            "INPUT.CROP.SIZE", "[64, 64]", "STYLE_MINING.IMS_PER_BATCH", "1", "STYLE_MINING.STEPS", "1",
            "STYLE_MINING.MAX_BATCHES", "1", "STYLE_MINING.TEMPLATES", "['a {}']", "DATALOADER.NUM_WORKERS", "0",
            "STYLE_MINING.METRIC", "euclidean",
        ]  # fmt: skip
        self._write_config(QUERIES, [*town, "DATASETS.TEST", "['minitown_night_val']"])
        self._write_config(PANOPTIC, [
            *town,
            "MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", "8", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "8",
            "MODEL.INS_EMBED_HEAD.ASPP_CHANNELS", "8", "MODEL.INS_EMBED_HEAD.CONVS_DIM", "8",
            "DATASETS.TEST", "['minitown_night_val_panoptic']",
        ])  # fmt: skip

    def _write_config(self, name: str, options: list[str], file: str | None = None) -> None:
        """Write a config that inherits from a shipped one and overrides some settings."""
        cfg = load_config(str(ROOT / name), options)
        small: dict[str, Any] = {"_BASE_": str(ROOT / name)}
        for key in options[::2]:
            node, last = find_node(cfg, key)
            small[key] = list(node[last]) if isinstance(node[last], tuple) else node[last]
        path = self.folder / (file or name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(small))

    def _write_own_data(self) -> None:
        """Write the datasets that the documents invent, with the definitions that they print."""
        for season in ("2024/north", "2025/south"):
            labels = np.repeat(np.array([0, 1, 2, 3, 3, 3], np.uint8), 12)[:, None].repeat(72, 1)
            for number in range(2):
                image, label = (self.folder / f"fields/{kind}/{season}/000{number}" for kind in ("photos", "masks"))
                image.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(make_image(72, 72, number)).save(f"{image}.jpg")
                write_label(Path(f"{label}_mask.png"), labels)
        fields = next(block for block in find_blocks() if block.lines[0].startswith("name: fields"))
        (self.folder / "fields.yaml").write_text(fields.text.replace("/data/fields", str(self.folder / "fields")))
        (self.folder / "classes.txt").write_text("\n".join(entry.name for entry in CITYSCAPES_CLASSES))
        words = "\n".join(f"color{number}" for number in range(20))
        (self.folder / VOCABULARY).parent.mkdir(parents=True)
        (self.folder / VOCABULARY).write_text(f"# the real one has a thousand\n{words}\n")
        make_panoptic(self.folder / "mine", {"train": 1})
        (self.folder / "mine.yaml").write_text(write_recipe(self.folder / "mine", name="mine").read_text())

    def _write_pictures(self) -> None:
        for folder in ("photos", "frames", "cityscapes/leftImg8bit/test"):
            (self.folder / folder).mkdir(parents=True)
            for number in range(2):
                Image.fromarray(make_image(seed=number)).save(self.folder / folder / f"{number}.png")
        Image.fromarray(make_image()).save(self.folder / "street.jpg")
        with video_writer(self.folder / "drive.mp4", 10, (48, 64)) as write:
            for number in range(2):
                write(make_image(48, 64, seed=number))

    def _patch_process(self) -> None:
        """Give this process a camera and several GPUs, and make RN50 small."""
        self._patch.chdir(self.folder)
        self._patch.setenv("DETECTRON2_DATASETS", str(self.folder / "datasets"))
        self._patch.setenv("FAMIX_CACHE", str(self.folder / "cache"))
        few = {name: replace(split, count=2) for name, split in SPLITS.items()}
        self._patch.setattr(datasets, "SPLITS", few)
        small = CLIPArchitecture.from_state_dict(torch.load(self._clip, weights_only=True))
        self._patch.setitem(ARCHITECTURES, "RN50", small)
        self._patch.setattr("famix_cli.programs.train.launch", self._launch)
        capture: Callable[..., Any] = cv2.VideoCapture
        self._patch.setattr(cv2, "VideoCapture", lambda *source: Camera() if source == (0,) else capture(*source))

    def _launch(self, args: argparse.Namespace, main: Callable[..., Any]) -> None:
        """Record the arguments of `launch` and do the work in this process."""
        self.launches.append(vars(args))
        main(args)


class Camera:
    """A camera whose user presses Ctrl-C after two frames."""

    def __init__(self) -> None:
        self._left = 2

    def isOpened(self) -> bool:
        return True

    def get(self, key: int) -> float:
        return -1.0

    def read(self) -> tuple[bool, np.ndarray]:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return True, make_image(48, 64)

    def release(self) -> None:
        self._left = 0


@contextmanager
def _same_signals() -> Iterator[None]:
    """Restore signal handlers and environment variables."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    environment = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in before.items():
            signal.signal(number, handler)
