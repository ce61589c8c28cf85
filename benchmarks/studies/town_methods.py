"""Methods in the town's benchmark. This module does not import PyTorch."""

from dataclasses import replace
from typing import Any

from parts.common import Method, Needs

MINED = "famix"  # other methods use its mined banks
CHOSEN = "jitter08quarter"  # the tuned augmentation without language, in the configs with jitter; see choose_control
STRONGEST = "jitter08"  # the paper's jitter: 0.8 on all images


def _jitter(strength: float, share: float = 1.0) -> tuple[str, ...]:
    return ("INPUT.COLOR_JITTER", f"[{strength}, {strength}, {strength}]", "INPUT.COLOR_JITTER_PROBABILITY", f"{share}")


def _policy(name: str, magnitude: int, share: float = 1.0) -> tuple[str, ...]:
    node = "INPUT.AUTO_AUGMENT"
    return (
        *(f"{node}.NAME", name, f"{node}.MAGNITUDE", f"{magnitude}", f"{node}.PROBABILITY", f"{share}"),
        *_jitter(0.8, share=0.0),
    )


_PAPER_MINING = (
    *("STYLE_MINING.METRIC", "euclidean", "STYLE_MINING.STEPS", "100"),
    *("STYLE_MINING.LR", "1.0", "STYLE_MINING.MOMENTUM", "0.9"),
)
_MIXSTYLE = ("MODEL.STYLE.STRATEGY", "mixstyle")
_STRENGTHS = {
    "jitter04": _jitter(0.4),
    "jitter08quarter": _jitter(0.8, 0.25),
    "jitter08half": _jitter(0.8, 0.5),
    STRONGEST: _jitter(0.8),
}
CONTROLS = {
    **_STRENGTHS,
    "randaugment9half": _policy("RandAugment", 9, 0.5),
    "augmix3": _policy("AugMix", 3),
}
"""Augmentations without language: names -> settings."""


QUARTER = ("MODEL.STYLE.PROBABILITY", "0.25")  # of the images are restyled, as in the configs with jitter


def _method(config: str, *options: str, same_without: str | None = "baseline", needs: Needs = Needs.NOTHING) -> Method:
    return Method(f"minitown/{config}.yaml", options, same_without, needs)


def _with_jitter(config: str, *names: str, options: tuple[str, ...] = (), **others: Any) -> dict[str, Method]:
    """Return a method with jitter strengths, named "<config>_<strength>"."""
    return {
        f"{config}_{name}": _method(config, *options, *_STRENGTHS[name], same_without=name, **others) for name in names
    }


METHODS: dict[str, Method] = {
    "baseline": _method("baseline", same_without=None),
    **{name: _method("baseline", *options, same_without=None) for name, options in CONTROLS.items()},
    "noise": _method("noise", needs=Needs.NOISE_SCALE),
    "famix": _method("famix"),
    "famix_web": _method("famix_web"),
    "famix_weather": _method("famix_weather"),
    "famix_paper_mining": _method("famix", *_PAPER_MINING),
    **_with_jitter("noise", "jitter08half", needs=Needs.NOISE_SCALE),
    **_with_jitter("noise", CHOSEN, options=QUARTER, needs=Needs.NOISE_SCALE),
    **_with_jitter("famix", "jitter04", "jitter08half"),
    **_with_jitter("famix_weather", "jitter04", "jitter08half"),
    **_with_jitter("famix", CHOSEN, options=QUARTER),
    **_with_jitter("famix_weather", CHOSEN, options=QUARTER),
    **_with_jitter("famix_diverse", CHOSEN, options=QUARTER),
    "famix_random_jitter08quarter": _method(
        "famix_diverse", *QUARTER, *_STRENGTHS[CHOSEN], same_without=CHOSEN, needs=Needs.RANDOM_WORDS
    ),
    "mixstyle": _method("famix", *_MIXSTYLE),
    "mixstyle_jitter08quarter": _method("famix", *_MIXSTYLE, *QUARTER, *_STRENGTHS[CHOSEN], same_without=CHOSEN),
    "full_finetuning": _method("full_finetuning", same_without=None),
    "oracle": _method("oracle", needs=Needs.MEASURED_BANK),
    **_with_jitter("oracle", CHOSEN, options=QUARTER, needs=Needs.MEASURED_BANK),
}

_IN_FAMILY = ("baseline", "noise", "famix", "famix_weather", CHOSEN, f"famix_{CHOSEN}", f"famix_weather_{CHOSEN}")
VARIANTS: dict[str, tuple[str, ...]] = {
    "convnext": _IN_FAMILY,
    "vit": _IN_FAMILY,
    "maskformer": ("baseline", "famix", "famix_weather", CHOSEN, f"famix_{CHOSEN}", f"famix_weather_{CHOSEN}"),
    "open_vocabulary": ("baseline", "famix_weather", CHOSEN, f"famix_weather_{CHOSEN}"),
}
"""Other CLIP families and heads -> methods, whose configs are `<config of METHODS>_<variant>.yaml`."""


def methods_of(variant: str) -> dict[str, Method]:
    """Return the methods of a variant; those of "" are METHODS."""
    if not variant:
        return METHODS
    configs = {name: METHODS[name].config.removesuffix(".yaml") for name in VARIANTS[variant]}
    return {name: replace(METHODS[name], config=f"{config}_{variant}.yaml") for name, config in configs.items()}


ABLATIONS: dict[str, Method] = {
    "no_freeze": _method("famix", "MODEL.CLIP.TRAINABLE", "['all']"),
    "no_mix": _method("famix", "MODEL.STYLE.MIX", "False"),
    "every_picture": _method("famix", "MODEL.STYLE.PROBABILITY", "1.0"),
    "class_agnostic": _method("famix", needs=Needs.AGNOSTIC_BANK),
    "grid_2x2": _method("famix", "MODEL.STYLE.GRID", "[2, 2]"),
    "grid_3x3": _method("famix", "MODEL.STYLE.GRID", "[3, 3]"),
}
