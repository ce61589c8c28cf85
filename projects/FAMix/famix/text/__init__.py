"""Text to CLIP's embedding space: the prompts styles are mined for, and their encoder."""

from famix.text.encoder import PromptEncoder
from famix.text.prompts import IGNORE_PROMPT, check_styles, check_templates, class_prompt, fill_template
from famix.text.templates import IMAGENET_TEMPLATES
from famix.text.tower import OPEN_CLIP_TEXT, OPENAI_TEXT, TextDesign, TextTower

__all__ = [
    "IGNORE_PROMPT",
    "IMAGENET_TEMPLATES",
    "OPENAI_TEXT",
    "OPEN_CLIP_TEXT",
    "PromptEncoder",
    "TextDesign",
    "TextTower",
    "check_styles",
    "check_templates",
    "class_prompt",
    "fill_template",
]
