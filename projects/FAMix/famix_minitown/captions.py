"""Random looks for training images, and captions that name the look and the class."""

from collections.abc import Sequence

import numpy as np

from famix.clip.openai import tokenize
from famix_minitown.looks import LOOKS, WEATHER

__all__ = ["TEMPLATES", "caption", "class_words", "draw_look", "vocabulary"]

Attributes = tuple[tuple[str, float], ...]
"""Names and strengths of looks."""

TEMPLATES = (
    "{}.",
    "a {}.",
    "the {}.",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}.",
    "a picture of the {}.",
    "an image of a {}.",
)
PLAIN_PHRASES = ("plain", "ordinary", "clear")
LEAST_STRENGTH = 0.45
MOST_ATTRIBUTES = 3

_NUM_ATTRIBUTES = (0.08, 0.5, 0.3, 0.12)  # probabilities of 0, 1, 2 and 3
_WEATHER_SHARE = 0.2
_WEAK, _STRONG, _ADVERB_SHARE = 0.6, 0.9, 0.3
_ADVERBS = ("slightly", "very")
_CLASS_NAME_SHARE = 0.6
_USUAL_PHRASE_SHARE = 0.5
_SYNONYMS = {
    "road": ("street",),
    "sidewalk": ("pavement",),
    "building": ("house",),
    "wall": ("stone wall",),
    "pole": ("post",),
    "traffic sign": ("sign",),
    "vegetation": ("tree", "plants"),
    "sky": ("heaven",),
    "person": ("pedestrian",),
    "car": ("vehicle",),
}


def class_words(name: str) -> tuple[str, ...]:
    """Return the words for a class: its name, then its synonyms."""
    return (name, *_SYNONYMS.get(name, ()))


def draw_look(rng: np.random.Generator) -> Attributes:
    """Draw up to three looks of different families, with strengths in [0.45, 1]; none hides another."""
    count = int(rng.choice(len(_NUM_ATTRIBUTES), p=_NUM_ATTRIBUTES))
    names = _draw_names(count, rng)
    while len(names) < count:  # the first look hides all others, so it must be alone
        names = _draw_names(count, rng)
    return tuple((name, float(rng.uniform(LEAST_STRENGTH, 1.0))) for name in names)


def _draw_names(count: int, rng: np.random.Generator) -> list[str]:
    """Draw `count` looks, or fewer if no more fit."""
    names: list[str] = []
    for place in range(count):
        # Weather is drawn first or not at all, so that its share is independent of the number of looks.
        weather = place == 0 and rng.random() < _WEATHER_SHARE
        fitting = [look.name for look in LOOKS.values() if (look.family == WEATHER) == weather]
        fitting = [name for name in fitting if _fits(name, names)]
        names += [_pick(fitting, rng)] if fitting else []
    return names


def _fits(name: str, others: Sequence[str]) -> bool:
    look = LOOKS[name]
    return all(
        look.family != LOOKS[other].family
        and look.family not in LOOKS[other].hides
        and LOOKS[other].family not in look.hides
        for other in others
    )


def caption(attributes: Attributes, class_name: str, rng: np.random.Generator) -> str:
    """Draw a caption for the looks and the class of an image, e.g. "a photo of the very golden blurry car."."""
    order = rng.permutation(len(attributes))
    words = [_phrase(attributes[place], rng) for place in order]
    if not attributes and rng.random() < 0.5:
        words = [_pick(PLAIN_PHRASES, rng)]
    noun = class_words(class_name)
    words.append(noun[0] if len(noun) == 1 or rng.random() < _CLASS_NAME_SHARE else _pick(noun[1:], rng))
    return _pick(TEMPLATES, rng).format(" ".join(words))


def _phrase(attribute: tuple[str, float], rng: np.random.Generator) -> str:
    name, strength = attribute
    usual, *others = LOOKS[name].phrases
    phrase = usual if not others or rng.random() < _USUAL_PHRASE_SHARE else _pick(others, rng)
    if _WEAK <= strength <= _STRONG or rng.random() >= _ADVERB_SHARE:
        return phrase
    return f"{_ADVERBS[strength > _STRONG]} {phrase}"


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def vocabulary(class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the tokens of all captions of these classes, sorted, with start and end tokens and without padding."""
    phrases = [phrase for look in LOOKS.values() for phrase in look.phrases]
    nouns = [word for name in class_names for word in class_words(name)]
    words = [*phrases, *nouns, *PLAIN_PHRASES, *_ADVERBS]
    # Tokens do not cross words, so every sentence has only the tokens of its words.
    tokens = tokenize([*words, *(template.format("road") for template in TEMPLATES)]).unique()
    return tuple(int(token) for token in tokens if token > 0)
