"""Strict reading of YAML: each error names the file, the key, the value and the constraint."""

import os
from collections.abc import Hashable, Iterable, Mapping
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

_KIND_NAMES = {str: "a string", int: "an integer", dict: "a mapping", list: "a list"}


class _UniqueKeyLoader(SafeLoader):
    """PyYAML's safe loader that refuses repeated keys, of which PyYAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode):
                key = self.construct_object(key_node)
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} occurs twice in one mapping", key_node.start_mark
                    )
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> object:
    """Read a YAML file into mappings, lists, strings, numbers, booleans and None, without executing any of it.

    Raises:
        DatasetError: if the file is missing, unreadable or invalid YAML, repeats a key, or if its aliases expand to an
            excessive size.
    """
    try:
        text = read_text(file, MAX_YAML_BYTES)
        check_yaml(text)
        # A subclass of the safe loader: it builds plain data only.
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError, CorruptFileError) as error:
        raise DatasetError(f"Dataset definition {file} cannot be read: {error}. See DATASETS.FILES.") from error
    except Exception as error:  # YAMLError, and errors of PyYAML about impossible dates and numbers
        raise DatasetError(f"Dataset definition {file} is invalid YAML: {error}") from error


class Fields:
    """Type-checked access to the entries of one YAML mapping.

    Args:
        file: the file, named in errors.
        values: the mapping.
        known: all keys that the mapping may have.
        within: key of the mapping itself, such as "splits.train"; "" for the whole file.

    Raises:
        DatasetError: if `values` is not a mapping or has an unknown key.
    """

    def __init__(self, file: Path, values: object, known: Iterable[str], within: str = "") -> None:
        self.file = file
        self._within = within
        known = list(known)
        if not isinstance(values, dict):
            raise self.error("", values, f"a mapping with the keys {', '.join(known)}")
        self._values = values
        for key in values:
            if key not in known:
                hint = did_you_mean(key, known)
                raise DatasetError(f"{file}: unknown key '{self._path(key)}'.{hint} The keys are {', '.join(known)}.")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _path(self, key: object) -> str:
        return ".".join(part for part in (self._within, str(key)) if part)

    def error(self, key: object, got: object, expected: str, hint: str = "") -> DatasetError:
        """Make the error about one key; `hint` is a sentence after a blank."""
        where = f"'{self._path(key)}'" if self._path(key) else "the file"
        return DatasetError(f"{self.file}: {where} must be {expected}, got {shown(got)}.{hint}")

    def inner(self, key: str, values: object, known: Iterable[str]) -> "Fields":
        """Fields of a mapping inside this one."""
        return Fields(self.file, values, known, within=self._path(key))

    def any(self, key: str) -> object:
        """Value of any type, or None if the key is missing."""
        return self._values.get(key)

    def required(self, key: str, kind: type[T]) -> T:
        """Value of a key, which must exist and have the type `kind`."""
        value = self.optional(key, kind)
        if value is None:
            raise DatasetError(
                f"{self.file}: '{self._path(key)}' must be {_KIND_NAMES[kind]}, but the key is missing. "
                "datasets/README.md describes the format."
            )
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Value of a key, which must have the type `kind`, or None if the key is missing."""
        if key not in self._values:
            return None
        value = self._values[key]
        # In Python a bool is an int, in a definition `true` is not a number.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.error(key, value, _KIND_NAMES[kind])
        return value

    def choice(self, key: str, meanings: Mapping[str, T], default: str) -> T:
        """Meaning of a key with a fixed set of values."""
        value = default if self.any(key) is None else self.any(key)
        if not isinstance(value, str) or value not in meanings:
            raise self.error(key, value, " or ".join(map(repr, meanings)))
        return meanings[value]

    def number(self, key: str, allowed: range | tuple[int, ...], expected: str) -> int | None:
        """Integer out of `allowed`, or None if the key is missing."""
        value = self.optional(key, int)
        if value is not None and value not in allowed:
            raise self.error(key, value, expected)
        return value

    def strings(self, key: str, values: Iterable[object]) -> list[str]:
        """Entries of a list or mapping, which must be strings."""
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, value, "made of strings. Quote values that look like numbers")
        return list(values)  # type: ignore[arg-type]

    def below_root(self, key: str, path: str | None) -> str:
        """A path, by default the required value of a key, which must stay below the dataset's root.

        Raises:
            DatasetError: if it is absolute, leads upwards, or refers to environment variables or `~`.
        """
        path = self.required(key, str) if path is None else path
        if needs_expansion(path):
            raise self.error(
                key, path, "a path below the root, without '~' and environment variables", " 'root' may have both."
            )
        if os.path.isabs(path) or ".." in path.split("/") or "\0" in path:
            raise self.error(key, path, "a path below the root")
        return path
