"""Text to CLIP's embedding space: the prompts styles are mined for, and their encoder."""

from .encoder import PromptEncoder
from .prompts import IGNORE_PROMPT, check_styles, check_templates, class_prompt
from .templates import IMAGENET_TEMPLATES
from .tower import TextTower

__all__ = [
    "IGNORE_PROMPT",
    "IMAGENET_TEMPLATES",
    "PromptEncoder",
    "TextTower",
    "check_styles",
    "check_templates",
    "class_prompt",
]
