"""Mined batches on disk while a bank is being mined: what was done survives whatever stops the program.

Every batch is a file of its own, beside the bank to be, in a folder named after everything that the styles depend on.
A later start with the same settings, on any number of processes, mines what is missing; one with others does not see it.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from famix.io.atomic import whole_file
from famix.mining.miner import MinedBatch
from famix.utils.errors import BankError

__all__ = ["MiningShards"]

_SUFFIX = ".safetensors"
_TENSORS = tuple(field.name for field in fields(MinedBatch) if field.name != "index")


class MiningShards:
    """The finished batches of a mining pass.

    Args:
        bank: path of the bank to be.
        metadata: of the bank: batches of other settings are never mixed up.
    """

    def __init__(self, bank: str | Path, metadata: Mapping[str, str]) -> None:
        bank = Path(bank)
        settings = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()
        self.folder = bank.with_name(f"{bank.name}.mining-{settings[:12]}")

    def indices(self) -> list[int]:
        """Numbers of the batches that are there, ascending; a damaged file counts as none and is mined anew."""
        return sorted(index for index in map(self._index_of, self.folder.glob(f"*{_SUFFIX}")) if index is not None)

    def read(self, index: int) -> MinedBatch:
        """A batch.

        Raises:
            BankError: its file is missing or damaged.
        """
        path = self._path(index)
        try:
            tensors = load_file(path)
            return MinedBatch(index, **{name: tensors[name] for name in _TENSORS})
        except Exception as error:  # SafetensorError and, of tensors that make no sense, torch's own
            raise BankError(f"{path} is no mined batch ({error}); remove it to have it mined again") from error

    def write(self, batch: MinedBatch) -> None:
        """Keep a batch.

        Raises:
            BankError: the disk is full or the folder cannot be written.
        """
        path = self._path(batch.index)
        try:
            with whole_file(path) as part:
                # Clones, as the format has no place for tensors that share memory.
                tensors = {name: getattr(batch, name).clone(memory_format=torch.contiguous_format) for name in _TENSORS}
                part.write_bytes(save(tensors))  # its save_file would write to another file, and leave that if killed
        except (OSError, SafetensorError) as error:
            raise BankError(
                f"mined batch {batch.index} cannot be written to {path} ({error}); make room or set MODEL.STYLE.BANK to "
                "another folder. The batches before it are kept"
            ) from error

    def remove(self) -> None:
        """Forget all batches: the bank has them now."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}{_SUFFIX}"

    def _index_of(self, path: Path) -> int | None:
        if not path.stem.isdigit():
            return None  # what a killed process was writing
        try:
            return self.read(int(path.stem)).index
        except BankError as error:
            logging.getLogger(__name__).warning("%s", error)
            path.unlink(missing_ok=True)
            return None
