"""Strict reading of YAML: every mistake is reported with its file, its key, what was found and what was expected."""

import os
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from famix.io import MAX_YAML_BYTES, check_yaml, read_text
from famix.utils.errors import CorruptFileError, DatasetError
from famix.utils.messages import did_you_mean, shown
from famix.utils.paths import needs_expansion

try:
    from yaml import CSafeLoader as SafeLoader  # several times as fast
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader  # type: ignore[assignment]

__all__ = ["Fields", "read_yaml"]

T = TypeVar("T")

_KIND_NAMES = {str: "a text", int: "a whole number", dict: "a mapping", list: "a list"}


class _UniqueKeyLoader(SafeLoader):
    """PyYAML's safe loader, except that a key given twice is an error: YAML forbids it, PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands twice in one mapping", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> object:
    """Read a YAML file without executing anything that it holds.

    Args:
        file: the file, UTF-8.

    Returns:
        What the file holds: mappings, lists, texts, numbers, booleans or None.

    Raises:
        DatasetError: the file is missing, unreadable, no YAML, unfolds to far more than it holds, or gives a key twice.
    """
    try:
        text = read_text(file, MAX_YAML_BYTES)
        check_yaml(text)
        # A subclass of the safe loader: it builds plain data only.
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, CorruptFileError) as error:
        raise DatasetError(f"Dataset definition {file} cannot be read: {error}. See DATASETS.FILES.") from error
    except Exception as error:  # YAMLError, and what PyYAML raises of dates and numbers that are none
        raise DatasetError(f"Dataset definition {file} is no valid YAML: {error}") from error


class Fields:
    """The entries of one YAML mapping, read one by one with their types checked.

    Args:
        file: named in errors.
        values: the mapping.
        known: every key that the mapping may have.
        within: key of the mapping itself, such as "splits.train"; "" for the whole file.

    Raises:
        DatasetError: `values` is no mapping or has a key that is not known.
    """

    def __init__(self, file: Path, values: object, known: Iterable[str], within: str = "") -> None:
        self.file = file
        self._within = within
        if not isinstance(values, dict):
            raise self.error("", values, f"a mapping with the keys {', '.join(known)}")
        self._values = values
        known = list(known)
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise DatasetError(f"{file}: unknown key '{self.path(key)}'; expected one of {', '.join(known)}.{hint}")

    def path(self, key: object) -> str:
        """Full name of a key, for errors."""
        return ".".join(part for part in (self._within, str(key)) if part)

    def error(self, key: object, got: object, expected: str, hint: str = "") -> DatasetError:
        """An error about one key; `hint` starts with a blank."""
        where = f"key '{self.path(key)}'" if self.path(key) else "the file"
        return DatasetError(f"{self.file}: {where}: got {shown(got)}, expected {expected}.{hint}")

    def has(self, key: str) -> bool:
        """Whether a key is there."""
        return key in self._values

    def required(self, key: str, kind: type[T]) -> T:
        """Value of a key that must be there.

        Raises:
            DatasetError: it is missing or of another type than `kind`.
        """
        if key not in self._values:
            raise DatasetError(
                f"{self.file}: the key '{self.path(key)}' is missing; expected {_KIND_NAMES[kind]}. "
                "datasets/README.md describes the format."
            )
        return self._typed(key, kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Value of a key, or None when it is not there.

        Raises:
            DatasetError: it is of another type than `kind`.
        """
        return self._typed(key, kind) if key in self._values else None

    def any_of(self, key: str) -> object:
        """Value of a key that may have several types; None when it is not there."""
        return self._values.get(key)

    def below_root(self, key: str, path: str) -> str:
        """A path that a key has named, after a look at whether it stays below the dataset's root.

        Raises:
            DatasetError: it is absolute, or leads upwards; or it names an environment variable, which `root` may.
        """
        if needs_expansion(path):
            raise self.error(
                key, path, "a path below the root without '~' and environment variables, which 'root' may have"
            )
        if os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
            raise self.error(key, path, "a path below the root")
        return path

    def _typed(self, key: str, kind: type[T]) -> T:
        value = self._values[key]
        # In Python a bool is an int, in a definition `true` is no number.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, value, _KIND_NAMES[kind])
        return value
