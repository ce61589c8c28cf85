"""Style bank: mined styles grouped by class, in memory and as a self-describing .safetensors file.

File format, version 2. Tensors: `mean` (N, C) and `std` (N, C) float32, `class_ids` (N,) int64 in [0, 255], and optional
annotations with one value per style, `annotation.<name>` (N,). Metadata: the strings from `famix.mining.metadata`, and
`checksum`, which detects corruption. Version 1 has no checksum.
"""

import hashlib
import json
import os
from collections.abc import Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from famix.io import parse_json, require_plain_file
from famix.io.atomic import whole_file
from famix.style.dominant import IGNORE_CLASS
from famix.style.patches import check_shape
from famix.style.released import RELEASED_CLASSES, read_released_styles
from famix.utils.errors import BankError, ConfigError
from famix.utils.messages import counted

FORMAT_VERSION = "2"
_WITHOUT_CHECKSUM = "1"
_NUM_CLASSES = 256
_ANNOTATION = "annotation."


class StyleBank:
    """Styles (mean and standard deviation of C channels), grouped by class and drawn at random for patches.

    Args:
        metadata: strings that describe the origin of the styles; they are saved with the bank.
    """

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        self.metadata: dict[str, str] = dict(metadata or {})
        self.mean = torch.empty(0, 0)  # (N, C) float32
        self.std = torch.empty(0, 0)  # (N, C) float32
        self.class_ids = torch.empty(0, dtype=torch.int64)  # (N,)
        self.annotations: dict[str, Tensor] = {}  # name -> (N,), such as the loss of each style
        self._index()

    def __len__(self) -> int:
        return len(self.class_ids)

    def __repr__(self) -> str:
        place = f" of {self.metadata['stage']}" if "stage" in self.metadata else ""
        counts = (len(self), "style"), (len(self.counts()), "class"), (self.num_channels, "channel")
        return f"StyleBank({', '.join(counted(*count) for count in counts)}{place})"

    @property
    def size(self) -> str:
        """Numbers of styles and classes for messages, e.g. "8 styles of 1 class"."""
        return f"{counted(len(self), 'style')} of {counted(len(self.counts()), 'class')}"

    @property
    def num_channels(self) -> int:
        """Number of channels C, or 0 for an empty bank."""
        return self.mean.shape[1]

    def counts(self) -> dict[int, int]:
        """Return the number of styles for each class id in the bank."""
        ids, counts = self.class_ids.unique(return_counts=True)
        return dict(zip(ids.tolist(), counts.tolist(), strict=True))

    def class_names(self) -> list[str]:
        """Return the class names from the metadata by label id, or [] if absent. Raises BankError if malformed."""
        written = self.metadata.get("class_names", "[]")
        try:
            return [str(name) for name in parse_json(written)]
        except (ValueError, TypeError) as error:
            raise BankError(
                f"class_names must be a JSON list, got {written!r} ({error}). Mine the bank again."
            ) from error

    def class_name(self, class_id: int) -> str:
        """Return the name of a label id, or "unlabelled" (255) or the id itself if the metadata has no name for it."""
        names = self.class_names()
        unnamed = "unlabelled" if class_id == IGNORE_CLASS else str(class_id)
        return names[class_id] if class_id < len(names) else unnamed

    def add(
        self, class_ids: Tensor, mean: Tensor, std: Tensor, annotations: Mapping[str, Tensor] | None = None
    ) -> None:
        """Append styles to the bank.

        Args:
            class_ids: (N,) integers in [0, 255].
            mean: (N, C), floating point.
            std: (N, C), floating point. Negative values, which the optimizer may produce, are kept.
            annotations: name -> (N,). Every call must use the same names.

        Raises:
            BankError: an argument has the wrong type or shape, class ids are out of range, or values are not finite.
        """
        ids, annotations = _as_class_ids(class_ids), dict(annotations or {})
        _as_class_ids(ids.cpu())  # also checks the values of ids on a GPU
        try:
            check_shape("class_ids", class_ids, ("N",), floating=False)
            check_shape("mean", mean, ("N", "C"), (len(ids), self.num_channels if len(self) else None))
            check_shape("std", std, ("N", "C"), mean.shape)
            for name, values in annotations.items():
                check_shape(f"annotations {name!r}", values, ("N",), (len(ids),), floating=False)
        except ConfigError as error:
            raise BankError(str(error)) from error
        if len(self) and annotations.keys() != self.annotations.keys():
            raise BankError(
                f"annotations must be {sorted(self.annotations)}, got {sorted(annotations)}. Use the same names in every call."
            )
        if not (mean.float().isfinite().all() and std.float().isfinite().all()):
            raise BankError("mean and std must be finite, got NaN or infinity. Lower STYLE_MINING.LR.")
        if not len(self):  # the first styles determine channels, annotations and device
            self.mean, self.std = mean.new_empty(0, mean.shape[1]).float(), std.new_empty(0, std.shape[1]).float()
            self.class_ids = ids.new_empty(0)
            self.annotations = {name: values.new_empty(0) for name, values in annotations.items()}
        self.mean = torch.cat([self.mean, mean.detach().float()])
        self.std = torch.cat([self.std, std.detach().float()])
        self.class_ids = torch.cat([self.class_ids, ids])
        self.annotations = {k: torch.cat([old, annotations[k].detach()]) for k, old in self.annotations.items()}
        self._index()

    def sample(self, class_ids: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw a style for each class id, uniformly from the styles of that class.

        A class without styles falls back to the ignore class (255). If that is also empty, mean and std are NaN (see
        `has_style`).

        Args:
            class_ids: integers in [0, 255], of any shape S.
            generator: random number generator on any device; None uses torch's global generator.

        Returns:
            mean and std, each of shape S + (C,), on the bank's device. `restyle_patches` expects channels as the second
            axis: use `.movedim(-1, 1)`.

        Raises:
            BankError: class ids are not integers or, on the CPU, are out of range.
        """
        ids = _as_class_ids(class_ids).to(self.mean.device)
        draw_device = generator.device if generator is not None else self.mean.device
        uniform = torch.rand(ids.shape, generator=generator, device=draw_device, dtype=torch.float64)
        count = self._count[ids]
        offset = (uniform.to(ids.device) * count).long()
        row = self._order[self._first[ids] + offset.minimum(count - 1).clamp(min=0)]
        return self._padded_mean[row], self._padded_std[row]

    def has_style(self, class_ids: Tensor) -> Tensor:
        """Return a bool tensor, shaped like `class_ids`, that is True where `sample` finds a style."""
        return self._count[_as_class_ids(class_ids).to(self._count.device)] > 0

    def to(self, device: torch.device) -> "StyleBank":
        """Return a copy of the bank on the given device."""
        moved = StyleBank(self.metadata)
        annotations = {name: values.to(device) for name, values in self.annotations.items()}
        moved.add(self.class_ids.to(device), self.mean.to(device), self.std.to(device), annotations)
        return moved

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the bank to a .safetensors file atomically, creating missing folders.

        Raises:
            BankError: the file cannot be written.
        """
        tensors = {"mean": self.mean, "std": self.std, "class_ids": self.class_ids}
        tensors |= {_ANNOTATION + name: values for name, values in self.annotations.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        metadata = {**self.metadata, "format_version": FORMAT_VERSION}
        try:
            with whole_file(path) as part:
                # save_file would use its own temporary file, which a killed process leaves behind.
                part.write_bytes(save(tensors, metadata={**metadata, "checksum": _checksum(tensors, metadata)}))
        except (OSError, SafetensorError) as error:
            raise BankError(
                f"Cannot write style bank '{path}': {error}. Set MODEL.STYLE.BANK to a different file."
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "StyleBank":
        """Read a bank written by `save`.

        Raises:
            BankError: the file is missing or damaged, is not a style bank, or has an unknown format version.
        """
        try:
            require_plain_file(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not iterable
            intact = metadata.pop("checksum", None) == _checksum(tensors, metadata)
            version = metadata.get("format_version")
            if version not in (FORMAT_VERSION, _WITHOUT_CHECKSUM) or not {"mean", "std", "class_ids"} <= tensors.keys():
                raise BankError(f"unknown format version {version}, or missing tensors in {sorted(tensors)}")
            if version == FORMAT_VERSION and not intact:
                raise BankError("the checksum does not match")
            bank = cls(metadata)
            annotations = {k.removeprefix(_ANNOTATION): v for k, v in tensors.items() if k.startswith(_ANNOTATION)}
            bank.add(tensors["class_ids"], tensors["mean"], tensors["std"], annotations)
            bank.class_names()
        except FileNotFoundError as error:
            raise BankError(f"Style bank not found: '{path}'. Mine one with --mine-styles-only.") from error
        except Exception as error:  # BankError, SafetensorError, or torch errors caused by impossible tensors
            raise BankError(
                f"Cannot read style bank '{path}' ({error}). Expected format version {FORMAT_VERSION}. Copy the file again, or "
                "mine the bank again."
            ) from error
        return bank

    @classmethod
    def from_released_pickle(cls, path: str | os.PathLike[str]) -> "StyleBank":
        """Import a `saved_params.pkl` file from the reference implementation without executing anything in it.

        Raises:
            BankError: the file is missing or damaged, has a different structure, or refers to objects other than tensors.
        """
        names = json.dumps(RELEASED_CLASSES)
        bank = cls({"stage": "res2", "grid": json.dumps([3, 3]), "class_names": names, "rectified": "true"})
        bank.add(*read_released_styles(path))
        return bank

    def _index(self) -> None:
        """Sort the styles by class and record the first style of each class, for drawing."""
        device = self.mean.device
        # A class without any styles draws the NaN row after the last style.
        nowhere = self.mean.new_full((1, self.num_channels), torch.nan)
        self._padded_mean, self._padded_std = torch.cat([self.mean, nowhere]), torch.cat([self.std, nowhere])
        self._order = torch.cat([self.class_ids.argsort(stable=True), torch.tensor([len(self)], device=device)])
        count = torch.bincount(self.class_ids, minlength=_NUM_CLASSES)
        first = count.cumsum(0) - count
        empty = count == 0
        self._count = torch.where(empty, count[IGNORE_CLASS], count)
        first = torch.where(empty, first[IGNORE_CLASS], first)
        self._first = torch.where(self._count == 0, len(self), first)


def _as_class_ids(class_ids: Tensor) -> Tensor:
    """Return class ids as int64. Values are checked only on the CPU, since the check would synchronize with a GPU."""
    if not isinstance(class_ids, Tensor):
        raise BankError(
            f"Class ids must be a tensor, got {type(class_ids).__name__}. Convert them with torch.as_tensor."
        )
    ids = class_ids.long()  # uint8 cannot be compared with 256
    is_integer = not (class_ids.is_floating_point() or class_ids.is_complex() or class_ids.dtype == torch.bool)
    if not is_integer or (ids.is_cpu and ((ids < 0) | (ids >= _NUM_CLASSES)).any()):
        raise BankError(
            f"Class ids must be integers in [0, 255], got {class_ids.unique().tolist()} of dtype {class_ids.dtype}. Map them to "
            "train ids."
        )
    return ids


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 hash of the tensors and of all metadata except the checksum."""
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
