"""YAML whose aliases would unfold to far more than the file holds, found before anything is built."""

import yaml

from famix.intake.doubt import DoubtfulFileError

__all__ = ["MAX_YAML_BYTES", "check_nodes", "check_yaml"]

MAX_YAML_BYTES = 1 << 18
"""Of a definition or config; the largest one that comes with the package has a few thousand."""

_MAX_UNFOLDED = 1 << 20  # characters and entries, aliases written out


def check_yaml(text: str) -> None:
    """Raise unless YAML has a sensible size also when all its aliases are written out.

    Raises:
        DoubtfulFileError: it has not, or it is nested too deeply.
        yaml.YAMLError: it is no YAML.
    """
    try:
        check_nodes(yaml.compose(text, Loader=yaml.SafeLoader))
    except RecursionError as error:
        raise DoubtfulFileError("its YAML is nested too deeply") from error


def check_nodes(node: yaml.Node | None) -> None:
    """Raise unless the nodes of a YAML document, aliases written out, have a sensible size.

    Args:
        node: the document's first one; None for an empty document.

    Raises:
        DoubtfulFileError: they have not, or an alias stands for what it is part of.
    """
    if node is not None and _unfolded(node, {}) > _MAX_UNFOLDED:
        raise DoubtfulFileError("its YAML aliases unfold to more than any such file needs")


def _unfolded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Size of a node; `known` holds those of nodes by id, None while they are being measured."""
    key = id(node)
    if key not in known:
        known[key] = None
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        own = 1 if flat else 1 + len(node.value)
        known[key] = own + sum(_unfolded(child, known) for child in flat)
    size = known[key]
    if size is None:
        raise DoubtfulFileError("a YAML alias stands for what it is part of")
    return size
