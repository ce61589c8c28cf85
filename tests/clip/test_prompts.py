import hashlib

import pytest

from error_matching import expect_error
from famix.clip import IGNORE_PROMPT, IMAGENET_TEMPLATES, check_styles, check_templates, class_prompt
from famix.clip.text.prompts import fill_template
from famix.utils.errors import ConfigError

NAMES = ("road", "traffic light")


def test_class_prompt_is_style_and_name():
    assert class_prompt(1, "Urban Grit style", NAMES) == "Urban Grit style traffic light"
    assert class_prompt(255, "Urban Grit style", NAMES) == IGNORE_PROMPT == "photo"
    assert class_prompt(11, "Urban Grit style", NAMES, ignore_label=11) == "photo"


@pytest.mark.parametrize("class_id", [-1, 2, 255])
def test_unknown_class_id_is_refused(class_id):
    with expect_error(ConfigError, "class_id", class_id, "labels"):
        class_prompt(class_id, "x", NAMES, ignore_label=99)


def test_the_80_templates_are_openais_word_for_word():
    """SHA-256 of the list in OpenAI's notebook, one sentence a line."""
    assert check_templates([]) == check_templates(IMAGENET_TEMPLATES) == IMAGENET_TEMPLATES
    assert check_templates(["{}"]) == ("{}",) and check_styles(["fog"]) == ("fog",)
    digest = hashlib.sha256("\n".join(IMAGENET_TEMPLATES).encode()).hexdigest()
    assert digest == "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af"


@pytest.mark.parametrize("templates", [["a photo"], ["{} and {}"], ["a {}", ""], [3], "a {}"])
def test_bad_templates_are_refused(templates):
    with expect_error(ConfigError, "STYLE_MINING.TEMPLATES", remedy="a photo of a {}."):
        check_templates(templates)


@pytest.mark.parametrize("styles", [[], [" "], ["fog", 3], "fog"])
def test_bad_styles_are_refused(styles):
    with expect_error(ConfigError, "STYLE_MINING.STYLES", styles, "Urban Grit style"):
        check_styles(styles)


def test_other_braces_are_left_alone():
    assert fill_template("{x} of {}", "a {b}") == "{x} of a {b}"
