"""The prompts of a class set, and the draw of a prompt for each class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from famix.clip import IGNORE_PROMPT, check_styles, class_prompt
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import ConfigError

__all__ = ["PromptTable"]


class PromptTable:
    """All prompts "{style} {class name}", numbered class by class; the prompt of unlabelled patches comes last.

    Args:
        class_names: names of the label ids 0, 1, ...
        styles: phrases such as "Urban Grit style".

    Attributes:
        prompts: the texts, indexed by prompt id.

    Raises:
        ConfigError: `styles` is empty.
    """

    def __init__(self, class_names: Sequence[str], styles: Sequence[str]) -> None:
        styles = check_styles(styles)
        self.num_classes = len(class_names)
        self.num_styles = len(styles)
        self.prompts = [class_prompt(i, style, class_names) for i in range(self.num_classes) for style in styles]
        self.prompts.append(IGNORE_PROMPT)

    def draw(self, class_ids: Tensor, generator: torch.Generator) -> Tensor:
        """Draw a prompt for every class; the draw of a class does not depend on the other classes.

        Args:
            class_ids: (N,) int64 on the CPU: label ids, or IGNORE_CLASS.
            generator: CPU source of the randomness.

        Returns:
            (N,) int64 prompt ids.

        Raises:
            ConfigError: a class id has no class name.
        """
        unlabelled = class_ids == IGNORE_CLASS
        if ((class_ids >= self.num_classes) & ~unlabelled).any():
            raise ConfigError(
                f"label ids must be below the number of class names, {self.num_classes}, got {class_ids.tolist()}. Check "
                "MODEL.SEM_SEG_HEAD.IGNORE_VALUE and the label ids of the dataset."
            )
        style = torch.randint(self.num_styles, (self.num_classes,), generator=generator)
        known = class_ids.masked_fill(unlabelled, 0)
        prompt_ids = known * self.num_styles + style[known]
        return prompt_ids.masked_fill(unlabelled, len(self.prompts) - 1)

    def texts(self, prompt_ids: Tensor) -> list[str]:
        """Return the texts of prompt ids (N,)."""
        return [self.prompts[i] for i in prompt_ids.tolist()]
