"""Domains of datasets, stated or derived from their names: sources, targets, and datasets that belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from famix.utils.errors import ConfigError
from famix.utils.messages import did_you_mean

__all__ = ["Roles", "domain_groups", "domain_of", "is_source", "require_known_sources", "roles_of", "short_names"]

_PARTS = frozenset(
    (
        *("train", "training", "trainval", "val", "validation", "valid", "dev", "test", "all", "whole", "full"),
        *("official", "famix", "robustnet"),  # authors of lists of files
        *("panoptic",),  # kinds of labels
    )
)
_CLEAR = "clear"  # weather of datasets without one in their name


@dataclass(frozen=True)
class Roles:
    """The roles of the datasets of a config.

    Attributes:
        sources: trained on.
        held_out: scored, with the domain of a source; excluded from the mean.
        targets: scored, with other domains.
        decided_by: "TEST.SOURCE"; "domain", if the definitions state the domains of all datasets; else "name".
    """

    sources: tuple[str, ...]
    held_out: tuple[str, ...]
    targets: tuple[str, ...]
    decided_by: str

    def __str__(self) -> str:
        """One line, e.g. "source: gta5_train; targets: acdc_fog_val, acdc_rain_val (by name; ...)"."""
        parts = [f"source: {', '.join(self.sources) or 'none'}", f"targets: {', '.join(self.targets) or 'none'}"]
        if self.held_out:
            parts.append(f"of the source's domain, not in the mean: {', '.join(self.held_out)}")
        change = (
            "" if self.decided_by == "TEST.SOURCE" else "; TEST.SOURCE, or 'domain' in their definitions, changes this"
        )
        return f"{'; '.join(parts)} (by {self.decided_by}{change})"


def roles_of(cfg: CfgNode) -> Roles:
    """Roles of the datasets of a config; reads DATASETS.TRAIN, DATASETS.TEST and TEST.SOURCE."""
    train, test = tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)
    are_stated = all(_stated_domain(name) is not None for name in train + test)
    return Roles(
        sources=train,
        held_out=tuple(name for name in test if is_source(cfg, name)),
        targets=tuple(name for name in test if not is_source(cfg, name)),
        decided_by="TEST.SOURCE" if cfg.TEST.SOURCE else "domain" if are_stated else "name",
    )


def domain_of(name: str) -> str:
    """Domain of a dataset, e.g. "acdc_night" for "acdc_night_val".

    It is `domain` in the dataset's definition, or else its name without words for splits.
    """
    stated = _stated_domain(name)
    if stated is not None:
        return stated
    family = _family(name)
    words = [word for word in name.removeprefix(family).split("_") if word and word not in _PARTS]
    return "_".join([family, *words] if family else words) or name


def is_source(cfg: CfgNode, name: str) -> bool:
    """Whether a dataset has a domain that was trained on, so its score says nothing about generalization.

    Args:
        cfg: reads DATASETS.TRAIN and TEST.SOURCE.
        name: of the dataset.

    Returns:
        Whether TEST.SOURCE names it. If TEST.SOURCE is empty, whether its domain, by `domain_of`, is that of a dataset in
        DATASETS.TRAIN or, unless its definition states the domain, clear days of it.
    """
    if cfg.TEST.SOURCE:
        return name in cfg.TEST.SOURCE
    sources = {domain_of(source) for source in cfg.DATASETS.TRAIN}
    if _stated_domain(name) is None:
        sources |= {f"{source}_{_CLEAR}" for source in sources}
    return domain_of(name) in sources


def require_known_sources(cfg: CfgNode) -> None:
    """Raise a ConfigError unless all names in TEST.SOURCE are registered."""
    for name in cfg.TEST.SOURCE:
        if name not in DatasetCatalog:
            raise ConfigError(f"TEST.SOURCE must name datasets, got '{name}'.{did_you_mean(name, DatasetCatalog)}")


def domain_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group datasets that are conditions of one dataset, such as ACDC's, for their mean.

    Args:
        names: of datasets.

    Returns:
        Name of the whole, e.g. "acdc" -> its datasets among the names, for groups with more than one name but not all.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_family(name), []).append(name)
    return {family: tuple(group) for family, group in groups.items() if family and 1 < len(group) < len(names)}


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Headings for datasets: their domains, or their names if two share a domain."""
    domains = [domain_of(name) for name in names]
    return {name: domain if domains.count(domain) == 1 else name for name, domain in zip(names, domains, strict=True)}


def _stated_domain(name: str) -> str | None:
    domain: str | None = MetadataCatalog.get(name).get("domain") if name in DatasetCatalog else None
    return domain


def _family(name: str) -> str:
    """Name of the definition that a registered dataset is a split of, else ""."""
    definition = MetadataCatalog.get(name).get("definition") if name in DatasetCatalog else None
    return definition.name if definition is not None else ""
