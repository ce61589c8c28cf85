"""Sources, targets and methods in the benchmark on real streets. This module does not import PyTorch."""

from dataclasses import dataclass, replace

from parts.common import Method, Needs

from studies import town_methods
from studies.town_methods import QUARTER

CHOSEN = "features"
"""Name in CANDIDATES of the fixed method, set before any target was scored.

Of the candidates that cost at most 1 point on held-out images of each source (`streets.py --stage choose`), it has the
largest mean gain over both sources on effects that no word names: +2.4, against +2.1 of "features_quarter".
"""

CONTROL = town_methods.CONTROLS[town_methods.CHOSEN]
"""Settings of the augmentation without language that was tuned in the town."""

CHOOSE, SCORE = STAGES = ("choose", "score")
FEATURES = "features"  # FAMix with words that name no condition; other methods use its mined banks
FEW_SEEDS = 3  # of the rows that are not in `with_all_seeds`

_NO_CONTROL = ("INPUT.COLOR_JITTER", "[0.0, 0.0, 0.0]", "INPUT.AUTO_AUGMENT.NAME", "")


@dataclass(frozen=True)
class Source:
    """Dataset to train on. Its definition is datasets/streets_<key in SOURCES>.yaml."""

    name: str  # of the dataset, without the split
    other_targets: tuple[str, ...]  # datasets from the source's cameras or cities that are targets for the other source
    options: tuple[str, ...]  # settings for the size of its images

    def dataset(self, split: str) -> str:
        """Return the registered name of a split."""
        return f"{self.name}_{split}"


SOURCES = {
    "camvid": Source("street_camvid", ("day",), ("INPUT.CROP.SIZE", "[224, 224]", "INPUT.SCALE_RANGE", "[0.75, 1.5]")),
    "idd_lite": Source("street_idd", ("val",), ("STYLE_MINING.MAX_BATCHES", "125")),  # as many as in the town
}
DUSK = "street_camvid_dusk"  # a target for both sources


def targets_of(source: str) -> tuple[str, ...]:
    """Return the target datasets of a source: those of the other source, and dusk."""
    others = [other for name, other in SOURCES.items() if name != source]
    return (*(other.dataset(split) for other in others for split in other.other_targets), DUSK)


def tested_by(source: str, stage: str) -> tuple[str, ...]:
    """Return DATASETS.TEST, which starts with unchanged images of the source."""
    splits = ("held", "unseen") if stage == CHOOSE else ("val",)
    own = tuple(SOURCES[source].dataset(split) for split in splits)
    return own if stage == CHOOSE else (*own, *targets_of(source))


CANDIDATES = {
    FEATURES: Method("minitown/famix.yaml"),
    "features_quarter": Method("minitown/famix.yaml", QUARTER),
    "features_always": Method("minitown/famix.yaml", ("MODEL.STYLE.PROBABILITY", "1.0")),
    "diverse_quarter": Method("minitown/famix_diverse.yaml", QUARTER),
}
"""Methods with language that `--stage choose` compares, each with the control."""


def methods_of(source: str, stage: str) -> dict[str, Method]:
    """Return the methods of a stage by name."""
    none, own = Method("minitown/baseline.yaml"), SOURCES[source]
    if stage == CHOOSE:
        return {"control": _with(none, CONTROL)} | {
            with_control(name): _with(method, CONTROL) for name, method in CANDIDATES.items()
        }
    pictures = (
        "DATASETS.TRAIN",
        f"('{own.dataset('train')}', '{own.dataset('effects')}')",
        "DATASETS.BALANCED",
        "True",
    )
    rows = {
        "none": none,
        "effects": _with(none, pictures),
        "noise": Method("minitown/noise.yaml", needs=Needs.NOISE_SCALE),
        FEATURES: CANDIDATES[FEATURES],
    }
    if CHOSEN:
        rows[CHOSEN] = CANDIDATES[CHOSEN]
    both: dict[str, Method] = {}
    for name, method in rows.items():
        both |= {name: _with(method, _NO_CONTROL), with_control(name): _with(method, CONTROL)}
    return both


def _with(method: Method, options: tuple[str, ...]) -> Method:
    return replace(method, options=(*method.options, *options))


def with_control(name: str) -> str:
    """Return the name of a method that also has the control."""
    return "control" if name == "none" else f"{name}_control"


def with_all_seeds() -> set[str]:
    """Return the methods that run with all seeds."""
    return {"none", "control", "effects", with_control(CHOSEN)}
