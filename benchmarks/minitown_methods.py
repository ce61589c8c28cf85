"""Methods of the town's benchmark: a config each, with settings that override it."""

from dataclasses import dataclass
from enum import Enum

__all__ = ["ABLATIONS", "CHOSEN", "FAMILIES", "METHODS", "MINED", "STRONGEST", "Method", "Needs"]

MINED = "famix"
"""The method whose mined banks other methods start from."""

CHOSEN = "jitter08half"
"""The best plain jitter, used by the configs with jitter: chosen by minitown_report.choose_strength."""

STRONGEST = "jitter08"
"""The jitter of the paper: 0.8, on all images."""


class Needs(Enum):
    """Input that a method takes from other runs or from labeled images; the value names its setting."""

    NOTHING = ""
    NOISE_SCALE = "MODEL.STYLE.NOISE_SCALE"  # matched to the styles of MINED with the same seed
    AGNOSTIC_BANK = "bank, class-agnostic"  # that of MINED with the same seed, rewritten
    MEASURED_BANK = "bank, measured"  # on labeled images of the tested conditions


@dataclass(frozen=True)
class Method:
    """One method.

    Attributes:
        config: name of a config of the town.
        options: KEY VALUE pairs that override it.
        same_without: the same method without styles, if there is one.
        needs: input that must be made first.
    """

    config: str
    options: tuple[str, ...] = ()
    same_without: str | None = None
    needs: Needs = Needs.NOTHING

    @property
    def derived(self) -> tuple[str, ...]:
        """Settings that depend on other runs and images, see `famix_minitown.experiment.same_settings`."""
        return () if self.needs is Needs.NOTHING else (self.needs.value.split(",")[0],)

    @property
    def needs_mined_bank(self) -> bool:
        """Whether a run of MINED with the same seed must be finished."""
        return self.needs in (Needs.NOISE_SCALE, Needs.AGNOSTIC_BANK)


def _jitter(strength: float, share: float = 1.0) -> tuple[str, ...]:
    return ("INPUT.COLOR_JITTER", f"[{strength}, {strength}, {strength}]", "INPUT.COLOR_JITTER_PROBABILITY", f"{share}")


_STRENGTHS = {"jitter04": _jitter(0.4), "jitter08half": _jitter(0.8, 0.5), "jitter08": _jitter(0.8)}


def _with_jitter(config: str) -> dict[str, Method]:
    """The strengths that cost little on clear days without styles."""
    names = [name for name in _STRENGTHS if name != STRONGEST]
    return {f"{config}_{name}": Method(config, _STRENGTHS[name], same_without=name) for name in names}


METHODS: dict[str, Method] = {
    "baseline": Method("baseline"),
    **{name: Method("jitter", options) for name, options in _STRENGTHS.items()},
    "noise": Method("noise", same_without="baseline", needs=Needs.NOISE_SCALE),
    "famix": Method("famix", same_without="baseline"),
    "famix_web": Method("famix_web", same_without="baseline"),
    "famix_weather": Method("famix_weather", same_without="baseline"),
    f"noise_{CHOSEN}": Method("noise", _STRENGTHS[CHOSEN], same_without=CHOSEN, needs=Needs.NOISE_SCALE),
    **_with_jitter("famix"),
    **_with_jitter("famix_weather"),
    "full_finetuning": Method("full_finetuning"),
    "oracle": Method("oracle", same_without="baseline", needs=Needs.MEASURED_BANK),
}

FAMILIES: dict[str, tuple[str, ...]] = {
    "baseline": tuple(_STRENGTHS),
    **{config: tuple(_with_jitter(config)) for config in ("famix", "famix_weather")},
}
"""Method without jitter -> the same with each strength of jitter."""

ABLATIONS: dict[str, Method] = {
    "no_freeze": Method("famix", ("MODEL.CLIP.TRAINABLE", "['all']")),
    "no_mix": Method("famix", ("MODEL.STYLE.MIX", "False")),
    "every_picture": Method("famix", ("MODEL.STYLE.PROBABILITY", "1.0")),
    "class_agnostic": Method("famix", needs=Needs.AGNOSTIC_BANK),
    "grid_2x2": Method("famix", ("MODEL.STYLE.GRID", "[2, 2]")),
    "grid_3x3": Method("famix", ("MODEL.STYLE.GRID", "[3, 3]")),
}
