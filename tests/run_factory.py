"""Miniature runs: a dataset of colored bands, a tiny CLIP and their config."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase

from clip_factory import save_tiny_clip
from data_factory import registered, write_definition, write_image, write_label
from famix.engine import argument_parser

ROOT = Path(__file__).parent.parent
TRAIN_NET = ROOT / "projects/FAMix/train_net.py"
CONFIG = ROOT / "projects/FAMix/configs/Tiny/famix_tiny.yaml"
SIZE = (72, 112)
SPLITS = {"train": 6, "val": 2, "night": 2}
_COLORS = {0: (90, 90, 95), 1: (120, 170, 230), 2: (200, 40, 40), 9: (10, 10, 10)}


def load_script(path: Path, name: str = "") -> ModuleType:
    """Import a program from its file."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parser_of(script: Path) -> ArgumentParser:
    """Return the parser of a program, which is in famix_cli for those with a console command."""
    module = load_script(script)
    if not hasattr(module, "make_parser"):
        module = sys.modules[module.main.__module__]
    single = re.findall(r'main\(command="(\w+)"\)', script.read_text())  # command of famix-bank that the script runs
    parser: ArgumentParser = (getattr(module, "make_parser", None) or module.argument_parser)(*single)
    return parser


def check_records(benchmark: Any) -> None:
    """Require that all committed records of a RecordedStudy belong to its runs and have the settings of today."""
    runs = {f"{name}_seed{seed}.json": (name, seed) for name, seed in benchmark.pairs()}
    names = [path.name for path in benchmark.folder.iterdir()]
    assert names and set(names) <= runs.keys()
    assert [name for name in names if benchmark.recorded(*runs[name]) is None] == []


def load_tool(name: str, folder: str = "tools") -> ModuleType:
    """Import projects/FAMix/<folder>/<name>.py, which is outside the package."""
    return load_script(ROOT / f"projects/FAMix/{folder}/{name}.py")


def load_program(name: str) -> ModuleType:
    """Return the module of a program, famix_cli.programs.<name>, e.g. to replace functions that it calls."""
    return importlib.import_module(f"famix_cli.programs.{name}")


def load_benchmark(name: str) -> ModuleType:
    """Import benchmarks/<name>.py, which finds the packages of that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        return load_script(ROOT / f"benchmarks/{name}.py", f"benchmark_{Path(name).stem}")


def make_bands(folder: Path) -> Path:
    """Draw the datasets tiny_train, tiny_val and tiny_night and return their definition file."""
    rng = np.random.default_rng(0)
    for split, count in SPLITS.items():
        for index in range(count):
            ids = np.zeros(SIZE, dtype=np.uint8)
            ids[: int(rng.integers(28, 40))] = 1
            left = int(rng.integers(0, 70))
            ids[34:60, left : left + 42] = 2
            ids[-6:] = 9
            light = 0.3 if split == "night" else 1.0
            colors = np.zeros((*SIZE, 3))
            for label, color in _COLORS.items():
                colors[ids == label] = color
            pixels = (colors * light + rng.normal(0, 6, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
            write_image(folder / "images" / split / f"{index}.png", pixels)
            write_label(folder / "labels" / split / f"{index}.png", ids)
    return write_definition(folder, splits={split: {} for split in SPLITS})


class Workspace:
    """An initially empty folder for a dataset, a CLIP and runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.definition = make_bands(folder / "data")
        self.clip = save_tiny_clip(folder / "clip.pt")

    @classmethod
    def existing(cls, folder: Path) -> "Workspace":
        """Return a workspace that was copied to a folder."""
        workspace = cls.__new__(cls)
        workspace.folder = folder
        workspace.definition = write_definition(folder / "data", splits={split: {} for split in SPLITS})
        workspace.clip = folder / "clip.pt"
        return workspace

    def registered(self) -> AbstractContextManager[None]:
        """Register the datasets within a block."""
        return registered(self.definition)

    def arguments(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
        """Return the command line of a run that writes to folder / output."""
        return [
            "--config-file", str(CONFIG), *flags,
            "DATASETS.FILES", f"['{self.definition}']", "MODEL.CLIP.WEIGHTS", str(self.clip),
            "OUTPUT_DIR", str(self.folder / output), *options,
        ]  # fmt: skip

    def run(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> Any:
        """Run train_net's `run` in this process, which raises its errors."""
        with self.registered():
            return train_net().run(self.parse(output, *options, flags=flags))

    def parse(self, output: str, *options: str, flags: tuple[str, ...] = ()) -> Namespace:
        return argument_parser().parse_args(self.arguments(output, *options, flags=flags))

    def checkpoint(self, output: str, name: str = "model_final") -> dict[str, Any]:
        content: dict[str, Any] = torch.load(self.folder / output / f"{name}.pth", weights_only=True)
        return content

    def training_state(self, output: str, name: str = "model_final") -> dict[str, Any]:
        """Return the content of a checkpoint without its settings, which contain paths of the workspace."""
        content = self.checkpoint(output, name)
        assert content.pop("settings")
        return content


def train_net() -> ModuleType:
    return load_program("train")


class CallBeforeStep(HookBase):
    """Calls a function before one iteration of a training."""

    def __init__(self, iteration: int, call: Callable[[], object]) -> None:
        self.iteration, self.call = iteration, call

    def before_step(self) -> None:
        if self.trainer.iter == self.iteration:
            self.call()


def train_net_with(hook: HookBase, patch: pytest.MonkeyPatch) -> ModuleType:
    """Import train_net with a further hook in its trainings."""
    module = train_net()
    build_hooks = module.Trainer.build_hooks
    patch.setattr(module.Trainer, "build_hooks", lambda self: [*build_hooks(self), hook])
    return module


def call_train_net(*arguments: str, threads: int = 1) -> "subprocess.CompletedProcess[str]":
    """Run train_net in a separate process, as users do."""
    return subprocess.run(
        [sys.executable, str(TRAIN_NET), *arguments],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )  # fmt: skip


def assert_equal_state(first: Any, second: Any, where: str = "checkpoint") -> None:
    """Compare nested dictionaries, lists, tensors and numbers bit for bit."""
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal_state(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            assert_equal_state(one, other, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where
