"""Which domain a data set shows, told from its name: what is the source, what is a target, what belongs together."""

import re
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.errors import ConfigError
from famix.wording import did_you_mean

__all__ = ["domain_groups", "domain_of", "is_source", "require_known_sources", "short_names"]

_PARTS = ("train", "training", "trainval", "val", "validation", "valid", "dev", "test", "all", "whole", "full")
_LISTS = ("official", "famix", "robustnet")  # whose list of files it is
_KINDS = ("panoptic",)  # of labels
_CLEAR = "clear"  # the weather that data sets without one in their name show


def domain_of(name: str) -> str:
    """The name of a data set without the words that say which part of its images it has.

    Args:
        name: e.g. "gta5_train" or "acdc_night_val".

    Returns:
        E.g. "gta5" or "acdc_night".
    """
    family = _family(name)
    words = [word for word in re.split("_", name.removeprefix(family)) if word and word not in _PARTS + _LISTS + _KINDS]
    return "_".join([family, *words] if family else words) or name


def is_source(cfg: CfgNode, name: str) -> bool:
    """Whether a data set shows the domain that was trained on, so that its score says nothing of generalisation.

    Args:
        cfg: reads DATASETS.TRAIN and TEST.SOURCE.
        name: of the data set.

    Returns:
        Whether TEST.SOURCE names it; where that is empty, whether its domain, by `domain_of`, is that of a data set of
        DATASETS.TRAIN or clear days of it.
    """
    if cfg.TEST.SOURCE:
        return name in cfg.TEST.SOURCE
    sources = {domain_of(source) for source in cfg.DATASETS.TRAIN}
    return domain_of(name) in sources | {f"{source}_{_CLEAR}" for source in sources}


def require_known_sources(cfg: CfgNode) -> None:
    """Find mistyped names in TEST.SOURCE.

    Raises:
        ConfigError: one is not registered.
    """
    for name in cfg.TEST.SOURCE:
        if name not in DatasetCatalog:
            raise ConfigError(f"TEST.SOURCE names an unknown data set, '{name}'.{did_you_mean(name, DatasetCatalog)}")


def domain_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Data sets that are conditions of one, such as ACDC's, whose mean is of interest.

    Args:
        names: of data sets.

    Returns:
        Name of the whole, e.g. "acdc" -> its data sets among the names; none where it has one only, or has all.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_family(name), []).append(name)
    return {family: tuple(group) for family, group in groups.items() if family and 1 < len(group) < len(names)}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Headings for data sets: their domains, or their names where two show the same domain."""
    domains = [domain_of(name) for name in names]
    return {name: domain if domains.count(domain) == 1 else name for name, domain in zip(names, domains, strict=True)}


def _family(name: str) -> str:
    """Name of the definition that a registered data set is a split of, else ""."""
    definition = MetadataCatalog.get(name).get("definition") if name in DatasetCatalog else None
    return definition.name if definition is not None else ""
