"""Base class of the image towers that open_clip builds."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip.base import CLIPImageTower, check_output_stride
from famix.clip.open_clip.models import OpenClipModel, find_model
from famix.clip.open_clip.text import OpenClipTextTower
from famix.clip.text.tower import TextDesign
from famix.utils.errors import ConfigError


class OpenClipTower(CLIPImageTower):
    """Image tower with open_clip's modules and parameter names.

    Args:
        architecture: open_clip model.
        output_stride: stride of the last stage in `forward`: 8, 16 or 32. `encode_image` always uses the original strides.
        trainable: names of the trainable submodules.
        with_embedding: build the modules for image embeddings.

    Attributes:
        kinds: values of `OpenClipModel.image_kind` in this family.
        markers: names of tensors that identify the family.
        example: a model of the family, for error messages.
    """

    kinds: ClassVar[tuple[str, ...]]
    markers: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    sizes_in_weights = False

    def __init__(
        self,
        architecture: OpenClipModel,
        output_stride: int = 16,
        *,
        trainable: Sequence[str] = ("all",),
        with_embedding: bool = True,
    ) -> None:
        super().__init__()
        check_output_stride(output_stride)
        self.output_stride, self.with_embedding = output_stride, with_embedding
        self.pixel_mean, self.pixel_std = architecture.pixel_mean, architecture.pixel_std
        self.input_resolution = architecture.image_size
        tower = architecture.build_image_tower()
        for name, child in tower.named_children():
            self.add_module(name, child)
        for name, parameter in tower.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        self._set_up(tower)
        self.freeze_except(trainable)

    @abstractmethod
    def _set_up(self, tower: Any) -> None:
        """Prepare the modules of open_clip's tower, and remove those for image embeddings unless `with_embedding`."""

    @classmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """Return whether all `markers` are present."""
        return all(name in state_dict for name in cls.markers)

    @classmethod
    def architecture_named(cls, name: str) -> OpenClipModel | None:
        """Return the model if its image tower belongs to this family."""
        model = find_model(name)
        return model if model is not None and model.image_kind in cls.kinds else None

    @classmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> OpenClipModel:
        """Return the model named by the state_dict's `architecture`, because shapes do not determine it.

        Raises:
            ConfigError: the name is missing or belongs to a different family.
        """
        name = getattr(state_dict, "architecture", "")
        model = cls.architecture_named(name)
        if model is None:
            raise ConfigError(
                f"MODEL.CLIP.ARCHITECTURE must name the model of these weights, which belong to the family {cls.__name__}, got "
                f"{name!r}. Set it to e.g. open_clip:{cls.example}; in Python, pass architecture= to load_clip_state_dict."
            )
        return model

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Compare names and shapes with those of open_clip's model."""
        cls.read_architecture(state_dict).check_weights(state_dict)

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return the text design in the config of the model."""
        model = find_model(architecture)
        return TextDesign() if model is None else model.text_design

    @classmethod
    def text_tower(cls, state_dict: Mapping[str, Tensor], design: TextDesign) -> Any:
        """Build open_clip's text tower. The model determines its design."""
        tokenizer = getattr(state_dict, "tokenizer", "")
        return OpenClipTextTower(cls.read_architecture(state_dict), state_dict, tokenizer)


def pad_to(images: Tensor, divisor: int) -> Tensor:
    """Pad images (B, 3, H, W) with zeros at the bottom and right to multiples of `divisor`."""
    if torch.compiler.is_exporting():  # exported networks accept only such sizes
        return images
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % divisor, 0, -height % divisor))
