"""Style prompts and sentence templates."""

from collections.abc import Sequence

from famix.utils.errors import ConfigError

IGNORE_PROMPT = "photo"  # prompt for patches without a class
_PLACEHOLDER = "{}"

_IMAGENET_TEXT = """
a bad photo of a {}. a photo of many {}. a sculpture of a {}. a photo of the hard to see {}. a low resolution photo of
the {}. a rendering of a {}. graffiti of a {}. a bad photo of the {}. a cropped photo of the {}. a tattoo of a {}. the
embroidered {}. a photo of a hard to see {}. a bright photo of a {}. a photo of a clean {}. a photo of a dirty {}. a
dark photo of the {}. a drawing of a {}. a photo of my {}. the plastic {}. a photo of the cool {}. a close-up photo of
a {}. a black and white photo of the {}. a painting of the {}. a painting of a {}. a pixelated photo of the {}. a
sculpture of the {}. a bright photo of the {}. a cropped photo of a {}. a plastic {}. a photo of the dirty {}. a jpeg
corrupted photo of a {}. a blurry photo of the {}. a photo of the {}. a good photo of the {}. a rendering of the {}. a
{} in a video game. a photo of one {}. a doodle of a {}. a close-up photo of the {}. a photo of a {}. the origami {}.
the {} in a video game. a sketch of a {}. a doodle of the {}. a origami {}. a low resolution photo of a {}. the toy
{}. a rendition of the {}. a photo of the clean {}. a photo of a large {}. a rendition of a {}. a photo of a nice {}.
a photo of a weird {}. a blurry photo of a {}. a cartoon {}. art of a {}. a sketch of the {}. a embroidered {}. a
pixelated photo of a {}. itap of the {}. a jpeg corrupted photo of the {}. a good photo of a {}. a plushie {}. a photo
of the nice {}. a photo of the small {}. a photo of the weird {}. the cartoon {}. art of the {}. a drawing of the {}.
a photo of the large {}. a black and white photo of a {}. the plushie {}. a dark photo of a {}. itap of a {}. graffiti
of the {}. a toy {}. itap of my {}. a photo of a cool {}. a photo of a small {}. a tattoo of the {}.
"""

IMAGENET_TEMPLATES: tuple[str, ...] = tuple(
    f"{sentence}." for sentence in " ".join(_IMAGENET_TEXT.split()).rstrip(".").split(". ")
)
"""The 80 templates that OpenAI published for zero-shot ImageNet classification with CLIP."""


def class_prompt(class_id: int, style: str, class_names: Sequence[str], ignore_label: int = 255) -> str:
    """Return the prompt for patches of a class.

    Args:
        class_id: integer in [0, len(class_names) - 1], or `ignore_label`.
        style: e.g. "Urban Grit style"; not used for `ignore_label`.
        class_names: names of all classes, e.g. ("road", "sidewalk").
        ignore_label: label id of unlabeled pixels.

    Returns:
        "{style} {class name}", e.g. "Urban Grit style road", or "photo" for `ignore_label`.

    Raises:
        ConfigError: `class_id` is out of range.
    """
    if class_id == ignore_label:
        return IGNORE_PROMPT
    if not 0 <= class_id < len(class_names):
        raise ConfigError(
            f"class_id must be in [0, {len(class_names) - 1}] or {ignore_label}, got {class_id}. Correct the labels "
            "or the dataset's class names."
        )
    return f"{style} {class_names[class_id]}"


def check_styles(styles: Sequence[str]) -> tuple[str, ...]:
    """Return STYLE_MINING.STYLES as a tuple.

    Raises:
        ConfigError: the list is empty or contains items other than non-empty strings.
    """
    if isinstance(styles, str) or not styles or not all(_is_text(style) for style in styles):
        raise ConfigError(
            f"STYLE_MINING.STYLES must be a non-empty list of strings, got {styles!r}. Set e.g. "
            '["Urban Grit style"], or remove the key to use the 20 styles of the paper.'
        )
    return tuple(styles)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return STYLE_MINING.TEMPLATES as a tuple, or OpenAI's 80 templates for an empty list.

    Raises:
        ConfigError: a template does not contain exactly one "{}".
    """
    wrong = [item for item in templates if not _is_text(item) or item.count(_PLACEHOLDER) != 1]
    if isinstance(templates, str) or wrong:
        raise ConfigError(
            f"STYLE_MINING.TEMPLATES must be a list of sentences with one {_PLACEHOLDER} each, got "
            f"{wrong[0] if wrong else templates!r}. Set e.g. ['a photo of a {_PLACEHOLDER}.'], or [] for OpenAI's 80."
        )
    return tuple(templates) or IMAGENET_TEMPLATES


def fill_template(template: str, text: str) -> str:
    """Replace the "{}" in a template with `text`."""
    return template.replace(_PLACEHOLDER, text)


def _is_text(item: object) -> bool:
    return isinstance(item, str) and bool(item.strip())
