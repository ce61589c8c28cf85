"""Partial mining results: each finished batch is saved to a file, so a stopped pass can resume.

The files are in a folder next to the bank, named after a hash of the bank's metadata. A later run with the same settings,
on any number of processes, mines only the missing batches. A run with different settings uses a different folder.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import torch
from detectron2.utils import comm
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from famix.io.atomic import whole_file
from famix.mining.miner import MinedBatch
from famix.utils.errors import BankError

_SUFFIX = ".safetensors"
_TENSORS = tuple(field.name for field in fields(MinedBatch) if field.name != "index")


class PartialResults:
    """Storage for the finished batches of a mining pass.

    Args:
        bank: path of the style bank that the pass will write.
        metadata: metadata of the bank; batches mined with different settings are never mixed.
    """

    def __init__(self, bank: str | Path, metadata: Mapping[str, str]) -> None:
        bank = Path(bank)
        settings = hashlib.sha256(json.dumps(dict(metadata), sort_keys=True).encode()).hexdigest()
        self.folder = bank.with_name(f"{bank.name}.mining-{settings[:12]}")

    def indices(self) -> list[int]:
        """Return the numbers of the finished batches in ascending order, removing damaged files with a warning."""
        found = []
        for path in self.folder.glob(f"*{_SUFFIX}"):
            if not path.stem.isdigit():
                continue  # left behind by a killed process
            try:
                found.append(self.read(int(path.stem)).index)
            except BankError as error:
                logging.getLogger(__name__).warning("%s", error)
                path.unlink(missing_ok=True)
        return sorted(found)

    def share(self) -> tuple[list[int], set[int]]:
        """Divide the finished batches among the processes of a job. Call it in every process.

        Returns:
            The numbers of the batches that this process contributes to the bank, and the numbers of all finished batches.
        """
        present, rank = comm.all_gather(self.indices()), comm.get_rank()
        # Processes on one machine see the same files: the first process contributes them all.
        before: set[int] = set().union(*present[:rank])
        return [index for index in present[rank] if index not in before], set().union(*present)

    def read(self, index: int) -> MinedBatch:
        """Read a batch. Raises BankError if its file is missing or damaged."""
        path = self._path(index)
        try:
            tensors = load_file(path)
            return MinedBatch(index, **{name: tensors[name] for name in _TENSORS})
        except Exception as error:  # SafetensorError, or torch errors caused by impossible tensors
            raise BankError(
                f"Cannot read mined batch '{path}': {error}. Remove the file to mine the batch again."
            ) from error

    def write(self, batch: MinedBatch) -> None:
        """Save a batch. Raises BankError if the disk is full or the folder is not writable."""
        path = self._path(batch.index)
        try:
            with whole_file(path) as part:
                # Cloned, since the format rejects tensors that share memory.
                tensors = {name: getattr(batch, name).clone(memory_format=torch.contiguous_format) for name in _TENSORS}
                # save_file would use its own temporary file, which a killed process leaves behind.
                part.write_bytes(save(tensors))
        except (OSError, SafetensorError) as error:
            raise BankError(
                f"Cannot write mined batch '{path}': {error}. Free disk space or set MODEL.STYLE.BANK to a file in a different "
                "folder. Earlier batches are saved."
            ) from error

    def remove(self) -> None:
        """Delete all batches once they are in the bank."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}{_SUFFIX}"
