"""A stop where the numbers of mining break down, with what reproduces it."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from famix.io.atomic import save_tensors
from famix.mining.miner import MinedBatch
from famix.utils.errors import BankError
from famix.utils.messages import first_few

__all__ = ["check_finite"]


def check_finite(mined: MinedBatch, samples: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Refuse styles that are not finite, before they are kept.

    Args:
        mined: of one batch.
        samples: the batch, as the miner takes it.
        folder: for a file with these samples; "" for none.

    Raises:
        BankError: a mean or a standard deviation is NaN or infinite.
    """
    sound = mined.mean.isfinite().all(1) & mined.std.isfinite().all(1)
    if sound.all():
        return
    files = first_few([sample.get("file_name", "an unnamed sample") for sample in samples], 20)
    saved = f" {_save(mined.index, samples, folder)}." if folder else ""
    raise BankError(
        f"mining batch {mined.index}: the styles of the class ids {mined.class_ids[~sound].tolist()} are not finite, with "
        f"{files}.{saved} Lower STYLE_MINING.LR, or look at the files. The batches before it are kept"
    )


def _save(index: int, samples: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> str:
    path = os.path.join(folder, f"not_finite_mining_{index:06d}.pth")
    try:
        save_tensors({"batch": index, "samples": [dict(sample) for sample in samples]}, path)
    except OSError as error:  # of less concern than what led here
        return f"{path}, which would hold these samples, cannot be written ({error.strerror or error})"
    return f"{path} holds these samples"
