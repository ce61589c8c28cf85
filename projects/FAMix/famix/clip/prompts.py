"""The text a style is mined for: a style and a class name, put into sentence templates later."""

from collections.abc import Sequence

from famix.clip.templates import IMAGENET_TEMPLATES
from famix.utils.errors import ConfigError

__all__ = ["IGNORE_PROMPT", "check_styles", "check_templates", "class_prompt"]

IGNORE_PROMPT = "photo"  # of patches that have no class: any look that is still a photo's
_PLACEHOLDER = "{}"


def class_prompt(class_id: int, style: str, class_names: Sequence[str], ignore_label: int = 255) -> str:
    """Say what patches of a class shall look like.

    Args:
        class_id: of the patches, 0 .. len(class_names) - 1 or `ignore_label`.
        style: e.g. "Urban Grit style"; not used for `ignore_label`.
        class_names: of all classes, e.g. ("road", "sidewalk").
        ignore_label: id of pixels without a class.

    Returns:
        "{style} {class name}", e.g. "Urban Grit style road", or "photo" for `ignore_label`.

    Raises:
        ConfigError: no class has this id.
    """
    if class_id == ignore_label:
        return IGNORE_PROMPT
    if not 0 <= class_id < len(class_names):
        raise ConfigError(
            f"Got class id {class_id}, expected 0 .. {len(class_names) - 1} or {ignore_label} to ignore. "
            "Correct the labels or the dataset's class names."
        )
    return f"{style} {class_names[class_id]}"


def check_styles(styles: Sequence[str]) -> tuple[str, ...]:
    """Return STYLE_MINING.STYLES as a tuple.

    Raises:
        ConfigError: there is none, or one that is no text.
    """
    if isinstance(styles, str) or not styles or not all(_is_text(style) for style in styles):
        raise ConfigError(
            f"Got STYLE_MINING.STYLES {styles!r}, expected a list of one or more texts. "
            'Name styles, e.g. ["Urban Grit style"], or leave the key out for the 20 of the recipe.'
        )
    return tuple(styles)


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """Return STYLE_MINING.TEMPLATES as a tuple; OpenAI's 80 where it is empty.

    Raises:
        ConfigError: a template has not exactly one "{}".
    """
    wrong = [item for item in templates if not _is_text(item) or item.count(_PLACEHOLDER) != 1]
    if isinstance(templates, str) or wrong:
        raise ConfigError(
            f"Got STYLE_MINING.TEMPLATES with {wrong[0] if wrong else templates!r}, expected a list of sentences with "
            'one {} each, for the prompt. Correct it, e.g. ["a photo of a {}."], or give [] for OpenAI\'s 80.'
        )
    return tuple(templates) or IMAGENET_TEMPLATES


def fill_template(template: str, text: str) -> str:
    """Put `text` in the place of the template's "{}". Other braces, in either, stay as they are."""
    return template.replace(_PLACEHOLDER, text)


def _is_text(item: object) -> bool:
    return isinstance(item, str) and bool(item.strip())
