"""Readers of tensors, and hostile files for them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from famix.clip.weights import load_clip_state_dict
from famix.engine import SafeCheckpointer
from famix.io.released_checkpoint import load_released_checkpoint
from famix.style import StyleBank

READERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": lambda path: SafeCheckpointer(nn.Linear(1, 1)).load(str(path)),
    "released checkpoint": load_released_checkpoint,
    "CLIP": lambda path: load_clip_state_dict(str(path)),
    "bank": StyleBank.load,
    "released bank": StyleBank.from_released_pickle,
}
PICKLE_READERS = [name for name in READERS if name != "bank"]
ONE_FLOAT = b"\x80\x02}X\x01\x00\x00\x00aK\x00s."


class Calls:
    """Unpickling this calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def packed(content: bytes, compression: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """A zip file as torch.save writes it, around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in {"data.pkl": content, "version": b"3\n", **entries}.items():
            archive.writestr(f"archive/{name}", data)
    return stream.getvalue()
