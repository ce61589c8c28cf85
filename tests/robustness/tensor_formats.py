"""Kinds of files that contain tensors."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from famix.clip.export import save_clip, save_compact
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


def _make_bank(folder: Path) -> Path:
    bank = StyleBank({"stage": "res2", "grid": "[3, 3]", "class_names": '["road", "sky"]'})
    values = torch.rand(2, 6, 4, generator=torch.Generator().manual_seed(0))
    bank.add(torch.tensor([0, 1, 0, 255, 1, 0]), values[0], values[1], {"prompt_id": torch.arange(6)})
    bank.save(folder / "bank.safetensors")
    return folder / "bank.safetensors"


def _in_old_bank(content: bytes, rng: np.random.Generator) -> bytes:
    """Mutate a bank of the format version without checksums, so that later checks see the change."""
    return in_safetensors(content.replace(b'"format_version":"2"', b'"format_version":"1"'), rng)


def _load_bank(path: Path) -> Any:
    bank = StyleBank.load(path)
    drawn = bank.sample(torch.tensor([0, 1, 7]), torch.Generator().manual_seed(0))
    return bank.mean, bank.std, bank.class_ids, bank.annotations, bank.metadata, bank.class_name(0), drawn


def _make_mined_batch(folder: Path) -> Path:
    ids, values = torch.arange(2), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    results = PartialResults(folder / "bank.safetensors", {})
    results.write(MinedBatch(3, ids, values, values, ids, values[:, 0], values[:, 1]))
    return results.folder / "000003.safetensors"


def _load_mined_batch(path: Path) -> Any:
    return vars(PartialResults(path.parents[1] / "bank.safetensors", {}).read(3))


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


def _make_clip(folder: Path, form: Any) -> Path:
    torch.manual_seed(0)
    clip = CLIP(16, 64, (1, 1, 1, 1), 8, None, 77, 49408, 4, 1, 1).eval()
    if form == "compact":
        save_compact(clip.state_dict(), folder / "clip.pt", range(40), {})
    else:
        save_clip(clip, folder / "clip.pt", form)
    return folder / "clip.pt"


def _load_clip(path: Path) -> Any:
    return load_clip_state_dict(str(path))


def _load_released_bank(path: Path) -> Any:
    bank = StyleBank.from_released_pickle(path)
    return bank.mean, bank.std, bank.class_ids


def _make_released_checkpoint(folder: Path) -> Path:
    state = released_state(layers=(1, 1, 1, 1), width=8, decoder=8, low=4, classes=5)
    return write_checkpoint(folder / "released.pth", state)


TENSOR_FORMATS: dict[str, Format] = {
    "style bank": Format(_make_bank, _load_bank, (_in_old_bank,), has_checksum=True),
    "mined batch": Format(_make_mined_batch, _load_mined_batch, (in_safetensors,)),
    "checkpoint": Format(_make_checkpoint, _load_checkpoint, (in_zip,), has_checksum=True),
    **{
        f"CLIP, {form}": Format(partial(_make_clip, form=form), _load_clip, (mutation,), has_checksum=mutation is in_zip)
        for form, mutation in {
            "state_dict": in_zip, "torchscript": in_zip, "safetensors": in_safetensors, "compact": in_safetensors,
        }.items()
    },
    "released bank": Format(
        lambda folder: write_bank(folder / "saved_params.pkl", released_styles(1, channels=4)), _load_released_bank
    ),
    "released checkpoint": Format(
        _make_released_checkpoint, lambda path: vars(read_released_checkpoint(path)), (in_zip,), has_checksum=True
    ),
}  # fmt: skip
