"""Kinds of files that hold tensors: how to write a small sound one, and how the package reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from famix.clip.export import CLIPFileForm, save_clip, save_compact
from famix.clip.openai import CLIP
from famix.clip.weights import load_clip_state_dict
from famix.engine import SafeCheckpointer
from famix.io.checkpointer import read_checkpoint
from famix.io.released_checkpoint import read_released_checkpoint
from famix.mining.miner import MinedBatch
from famix.mining.partial_results import PartialResults
from famix.style import StyleBank
from released_factory import released_state, released_styles, write_bank, write_checkpoint
from robustness.mutations import Format, in_safetensors, in_zip

__all__ = ["TENSOR_FORMATS"]


def _make_bank(folder: Path) -> Path:
    bank = StyleBank({"stage": "res2", "grid": "[3, 3]", "class_names": '["road", "sky"]'})
    values = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    bank.add(torch.tensor([0, 1, 0, 255, 1, 0]), values[0], values[1], {"prompt_id": torch.arange(6)})
    bank.save(folder / "bank.safetensors")
    return folder / "bank.safetensors"


def _in_old_bank(content: bytes, rng: np.random.Generator) -> bytes:
    """In a header of the format version that had no checksum, so that what is changed comes to be looked at."""
    return in_safetensors(content.replace(b'"format_version":"2"', b'"format_version":"1"'), rng)


def _load_bank(path: Path) -> Any:
    bank = StyleBank.load(path)
    drawn = bank.sample(torch.tensor([0, 1, 7]), torch.Generator().manual_seed(0))
    return bank.mean, bank.std, bank.class_ids, bank.annotations, bank.metadata, bank.class_name(0), drawn


def _training(folder: Path) -> SafeCheckpointer:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 4, 4)).square().sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return SafeCheckpointer(model, str(folder), optimizer=optimizer, schedule=schedule)


def _make_checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    _training(folder).save("model_0000003", iteration=3)
    return folder / "model_0000003.pth"


def _load_checkpoint(path: Path) -> Any:
    checkpointer = _training(path.parent)
    rest = checkpointer.resume_or_load("", resume=True)
    states = {name: entry.state_dict() for name, entry in checkpointer.checkpointables.items()}
    return checkpointer.model.state_dict(), states, rest, read_checkpoint(path).get("iteration")


def _small_clip() -> CLIP:
    torch.manual_seed(0)
    return CLIP(16, 64, (1, 1, 1, 1), 8, None, 77, 49408, 4, 1, 1).eval()


def _clip_maker(form: CLIPFileForm) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        save_clip(_small_clip(), folder / "clip.pt", form)
        return folder / "clip.pt"

    return make


def _make_compact(folder: Path) -> Path:
    save_compact(_small_clip().state_dict(), folder / "clip.safetensors", range(40), {})
    return folder / "clip.safetensors"


def _make_released_bank(folder: Path) -> Path:
    return write_bank(folder / "saved_params.pkl", released_styles(1, channels=4))


def _load_released_bank(path: Path) -> Any:
    bank = StyleBank.from_released_pickle(path)
    return bank.mean, bank.std, bank.class_ids


def _make_released_checkpoint(folder: Path) -> Path:
    return write_checkpoint(
        folder / "released.pth", released_state(layers=(1, 1, 1, 1), width=8, decoder=8, low=4, classes=5)
    )


def _load_released_checkpoint(path: Path) -> Any:
    read = read_released_checkpoint(path)
    return read.weights, read.iterations, read.best_score


def _shards(folder: Path) -> PartialResults:
    return PartialResults(folder / "bank.safetensors", {})


def _make_shard(folder: Path) -> Path:
    ids, values = torch.arange(2), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    _shards(folder).write(MinedBatch(3, ids, values, values, ids, values[:, 0], values[:, 1]))
    return _shards(folder).folder / "000003.safetensors"


def _load_shard(path: Path) -> Any:
    return vars(_shards(path.parents[1]).read(3))


TENSOR_FORMATS: dict[str, Format] = {
    "style bank": Format(_make_bank, _load_bank, (_in_old_bank,), has_checksum=True),
    "mined batch": Format(_make_shard, _load_shard, (in_safetensors,)),
    "checkpoint": Format(_make_checkpoint, _load_checkpoint, (in_zip,), has_checksum=True),
    "CLIP, state_dict": Format(
        _clip_maker("state_dict"), lambda path: load_clip_state_dict(str(path)), (in_zip,), has_checksum=True
    ),
    "CLIP, TorchScript": Format(
        _clip_maker("torchscript"), lambda path: load_clip_state_dict(str(path)), (in_zip,), has_checksum=True
    ),
    "CLIP, safetensors": Format(
        _clip_maker("safetensors"), lambda path: load_clip_state_dict(str(path)), (in_safetensors,)
    ),
    "CLIP, compact": Format(_make_compact, lambda path: load_clip_state_dict(str(path)), (in_safetensors,)),
    "released bank": Format(_make_released_bank, _load_released_bank),
    "released checkpoint": Format(_make_released_checkpoint, _load_released_checkpoint, (in_zip,), has_checksum=True),
}
