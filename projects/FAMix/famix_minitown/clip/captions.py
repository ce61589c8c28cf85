"""Random looks for training images, and captions that name the looks and the class."""

from collections.abc import Sequence

import numpy as np

from famix.clip.openai import tokenize
from famix_minitown.rendering.looks import LOOKS, WEATHER, Look, Looks

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
MOST_LOOKS = 3

_NUM_LOOKS = (0.08, 0.5, 0.3, 0.12)  # probabilities of 0, 1, 2 and 3 looks
_LEAST_STRENGTH = 0.45
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


def draw_looks(rng: np.random.Generator) -> Looks:
    """Draw up to three looks of different families that do not hide each other, with strengths in [0.45, 1]."""
    count = int(rng.choice(len(_NUM_LOOKS), p=_NUM_LOOKS))
    looks: list[Look] = []
    while len(looks) < count:
        looks = []
        for place in range(count):
            # Weather is drawn first or not at all, so that its share is independent of the number of looks.
            weather = place == 0 and rng.random() < _WEATHER_SHARE
            fitting = [look for look in LOOKS.values() if (look.family == WEATHER) == weather and _fits(look, looks)]
            if fitting:  # otherwise the first look hides all others, and all are drawn again
                looks.append(fitting[int(rng.integers(len(fitting)))])
    return tuple((look.name, float(rng.uniform(_LEAST_STRENGTH, 1.0))) for look in looks)


def _fits(look: Look, others: Sequence[Look]) -> bool:
    return all(
        look.family != other.family and look.family not in other.hides and other.family not in look.hides
        for other in others
    )


def caption(looks: Looks, class_name: str, rng: np.random.Generator) -> str:
    """Draw a caption for the looks and the class of an image, e.g. "a photo of the very golden blurry car."."""
    words = []
    for place in rng.permutation(len(looks)):
        name, strength = looks[place]
        usual, *others = LOOKS[name].phrases
        phrase = usual if not others or rng.random() < _USUAL_PHRASE_SHARE else _pick(others, rng)
        if not _WEAK <= strength <= _STRONG and rng.random() < _ADVERB_SHARE:
            phrase = f"{_ADVERBS[strength > _STRONG]} {phrase}"
        words.append(phrase)
    if not looks and rng.random() < 0.5:
        words = [_pick(PLAIN_PHRASES, rng)]
    synonyms = _SYNONYMS.get(class_name)
    words.append(class_name if synonyms is None or rng.random() < _CLASS_NAME_SHARE else _pick(synonyms, rng))
    return _pick(TEMPLATES, rng).format(" ".join(words))


def _pick(items: Sequence[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def vocabulary(class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the sorted tokens of all captions for these classes, including start and end tokens but not padding."""
    words = [*PLAIN_PHRASES, *_ADVERBS, *(phrase for look in LOOKS.values() for phrase in look.phrases)]
    words += [word for name in class_names for word in (name, *_SYNONYMS.get(name, ()))]
    # Tokens never span words, so a sentence contains only the tokens of its words.
    tokens = tokenize([*words, *(template.format("road") for template in TEMPLATES)]).unique()
    return tuple(int(token) for token in tokens if token > 0)
