"""The contract of a CLIP family: an image tower that styles are mined in and mixed into.

A family is one subclass of `CLIPImageTower`, registered in CLIP_FAMILY_REGISTRY. Everything outside this folder uses
the members of the base class only, so a family can live in any package: docs/EXTENDING.md has an example.

Shapes: B images of (3, H, W), normalized by `pixel_mean` and `pixel_std`; C channels at a stage; D channels of CLIP's
embedding.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self, cast

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from fvcore.common.registry import Registry
from torch import Tensor, nn

from famix.clip.text_tower import TextDesign, TextTower
from famix.utils.errors import ConfigError, WeightsError

__all__ = ["CLIP_FAMILY_REGISTRY", "CLIPImageTower", "family_named", "family_of", "find_family"]

CLIP_FAMILY_REGISTRY = Registry("CLIP_FAMILY")
CLIP_FAMILY_REGISTRY.__doc__ = """
Subclasses of `CLIPImageTower`. The family of a checkpoint is the last registered one that recognises its state_dict;
the family of a config without weights is the one that knows MODEL.CLIP.ARCHITECTURE.
"""

_ALL = "all"
_VISUAL = "visual."


class CLIPImageTower(Backbone):
    """Image tower of a CLIP, as a Detectron2 backbone with a tap at every stage.

    A subclass implements the abstract methods, sets the attributes below and calls `freeze_except(trainable)` at the end of
    its constructor. Its constructor takes `(architecture, output_stride, *, trainable, with_embedding)`, as `from_state_dict`
    passes them.

    Attributes:
        stages: names of the maps that `forward` returns, in the order of computation.
        rectified: whether the maps are outputs of a ReLU, so that restyled maps must be rectified as well.
        pixel_mean, pixel_std: statistics of the training images, per channel for pixel values 0-255.
        input_resolution: side in pixels of the images that CLIP was trained on.
        embedding_modules: names of submodules that only the image embedding needs.
        trainable: names of the submodules that train.

    A family that takes only sizes divisible by a patch sets `size_divisibility` of `Backbone`. A family with tokens beside
    the map overrides `forward`, `features_at` and `encode_from`.
    """

    stages: tuple[str, ...]
    rectified: bool = False
    pixel_mean: Sequence[float] = (122.7709383, 116.7460125, 104.09373615)
    pixel_std: Sequence[float] = (68.5005327, 66.6321579, 70.32316305)
    input_resolution: int = 224
    embedding_modules: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.trainable: tuple[str, ...] = (_ALL,)
        self._taps: dict[str, Callable[[Tensor], Tensor]] = {}

    # The family: from names and weights to a network

    @classmethod
    @abstractmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """Return whether a CLIP state_dict, with the image tower below "visual.", belongs to this family."""

    @classmethod
    @abstractmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> Any:
        """Read the sizes of the network from the shapes of a recognised state_dict.

        Args:
            state_dict: a CLIP state_dict, or with `with_embedding=False` the backbone of a segmentation checkpoint under
                the names of a CLIP.
            with_embedding: whether the state_dict has the layers of the image embedding.

        Returns:
            An object that the constructor takes as `architecture`.

        Raises:
            WeightsError: tensors are missing or have impossible shapes.
        """

    @classmethod
    def named_architectures(cls) -> Mapping[str, Any]:
        """Return the values of MODEL.CLIP.ARCHITECTURE that this family knows, with the architecture of each."""
        return {}

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError unless a whole CLIP state_dict, image and text tower, has the expected layout."""

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return the design of the text tower that goes with a value of MODEL.CLIP.ARCHITECTURE.

        Unknown properties are left open; the config must name an architecture if the weights file does not show them.
        """
        return TextDesign()

    @classmethod
    def text_tower(cls, state_dict: Mapping[str, Tensor], design: TextDesign) -> TextTower:
        """Build the text tower of a CLIP state_dict, with its tokenizer and pooling."""
        return TextTower.from_state_dict(state_dict, design)

    @classmethod
    def from_state_dict(
        cls,
        sd: Mapping[str, Tensor],
        output_stride: int = 16,
        *,
        trainable: Sequence[str] = (_ALL,),
        with_embedding: bool = True,
    ) -> Self:
        """Build the image tower of a CLIP state_dict, with its weights.

        Args:
            sd: a CLIP state_dict; the entries "visual.*" are read.
            output_stride: stride of the last stage in `forward`, for families that offer a choice.
            trainable: names of the submodules that train, e.g. "layer4" or "layer4.2"; ("all",) for everything, () for
                nothing. All others are frozen: no gradients, and batch norm keeps its statistics in train mode.
            with_embedding: keep the layers that only the image embedding needs.

        Returns:
            The tower in eval mode. Called on `CLIPImageTower` itself, one of the family that recognises `sd`.

        Raises:
            WeightsError: no family recognises `sd`, or its tensors do not fit together.
            ConfigError: `output_stride` or a name in `trainable` is invalid.
        """
        family = cast(type[Self], family_of(sd)) if cls is CLIPImageTower else cls
        create: Any = family  # every family has the same constructor, see the class
        tower = create(family.read_architecture(sd), output_stride, trainable=trainable, with_embedding=with_embedding)
        tower.load_visual(sd)
        return tower.eval()

    def load_visual(self, sd: Mapping[str, Tensor]) -> None:
        """Copy the weights of the image tower ("visual.*") from a CLIP state_dict of the same architecture."""
        visual = {name.removeprefix(_VISUAL): value for name, value in sd.items() if name.startswith(_VISUAL)}
        absent = tuple(f"{name}." for name in self.embedding_modules if getattr(self, name, None) is None)
        self.load_state_dict({name: value for name, value in visual.items() if not name.startswith(absent)})

    # The network: stage by stage

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Map normalized images (B, 3, H, W) to the input of the first stage."""

    @abstractmethod
    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Map the input of a stage to its output (B, C, h, w).

        Args:
            stage: one of `stages`.
            x: output of the stage before, or of the stem.
            dense: True at the output stride of `forward`, False at CLIP's own strides.
        """

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """Map the last stage's output (N, C, h, w) at CLIP's own stride to image embeddings (N, D) of any length."""

    @abstractmethod
    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every stage in `forward`."""

    def input_side(self, stage: str) -> int | None:
        """Return the side in cells that `encode_from` requires of square features at a stage; None accepts any size."""
        return None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute dense features.

        Args:
            images: (B, 3, H, W), normalized.

        Returns:
            Stage name -> (B, C, H / s, W / s), with C and s of `output_shape`.
        """
        features = {}
        x = self.stem(images)
        for stage in self.stages:
            x = self.run_stage(stage, x, dense=True)
            if stage in self._taps:
                x = self._taps[stage](x)
            features[stage] = x
        return features

    @contextmanager
    def transform_stage(self, stage: str, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace the output of a stage in `forward` by `transform(output)` while the context is open.

        Later stages and the returned features both see the new map. The tap ends with the context, also after an exception.

        Args:
            stage: one of `stages`.
            transform: maps (B, C, h, w) to the same shape.

        Raises:
            ConfigError: the stage is unknown or has a tap already.
        """
        self.check_stage(stage)
        if stage in self._taps:
            raise ConfigError(
                f"transform_stage must not be nested for one stage, got {stage} twice. Compose the functions."
            )
        self._taps[stage] = transform
        try:
            yield
        finally:
            del self._taps[stage]

    def features_at(self, stage: str, images: Tensor) -> Tensor:
        """Compute the output of one stage at CLIP's own stride, without the later stages and without taps.

        Args:
            stage: one of `stages`.
            images: (B, 3, H, W), normalized.

        Returns:
            (B, C, h, w).
        """
        self.check_stage(stage)
        x = self.stem(images)
        for name in self.stages[: self.stages.index(stage) + 1]:
            x = self.run_stage(name, x, dense=False)
        return x

    def encode_from(self, stage: str, features: Tensor) -> Tensor:
        """Compute CLIP's image embedding from the output of a stage, at CLIP's own stride and without taps.

        Args:
            stage: one of `stages`.
            features: (N, C, h, w), see `features_at`.

        Returns:
            (N, D), of any length.

        Raises:
            ConfigError: the stage is unknown, the features have another size than `input_side`, or the tower was built
                without its embedding layers.
        """
        self.check_stage(stage)
        for name in self.stages[self.stages.index(stage) + 1 :]:
            features = self.run_stage(name, features, dense=False)
        return self.embed(features)

    def encode_image(self, images: Tensor) -> Tensor:
        """Compute CLIP's image embedding (N, D), of any length, from normalized images (N, 3, H, W)."""
        return self.encode_from(self.stages[0], self.features_at(self.stages[0], images))

    def check_stage(self, stage: str) -> None:
        """Raise ConfigError unless `stage` is one of `stages`."""
        if stage not in self.stages:
            names = ", ".join(self.stages)
            raise ConfigError(f"MODEL.STYLE.STAGE must be one of {names}, got {stage!r}. Name a stage of the backbone.")

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    # Freezing, which survives train() and eval()

    def freeze_except(self, trainable: Sequence[str]) -> None:
        """Let only the named submodules train: take the gradients of all others and keep these in eval mode.

        Raises:
            ConfigError: a name is not a submodule.
        """
        self.trainable = tuple(trainable)
        self.requires_grad_(_ALL in self.trainable)
        for name in self.trainable:
            self._trained(name).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Switch the trainable submodules; frozen ones stay in eval mode, so batch norm keeps CLIP's statistics."""
        super().train(mode)
        for child in self.children():
            child.eval()
        for name in self.trainable:
            target = self._trained(name)
            for child in target.children() if target is self else (target,):
                child.train(mode)
        return self

    def _trained(self, name: str) -> nn.Module:
        if name == _ALL:
            return self
        try:
            return self.get_submodule(name)
        except AttributeError as error:
            blocks = [
                f"{parent}.{index}" if index else parent
                for parent, child in self.named_children()
                for index in ["", *(map(str, range(len(child))) if isinstance(child, nn.Sequential) else ())]
            ]
            raise ConfigError(
                f"MODEL.CLIP.TRAINABLE must list submodules of the backbone, got {name!r}. Use {_ALL}, or some of "
                f"{', '.join(blocks)}."
            ) from error


def find_family(state_dict: Mapping[str, Tensor]) -> type[CLIPImageTower] | None:
    """Return the family that recognises a CLIP state_dict, or None."""
    families = [family for _, family in CLIP_FAMILY_REGISTRY]
    return next((family for family in reversed(families) if family.recognises(state_dict)), None)


def family_of(state_dict: Mapping[str, Tensor]) -> type[CLIPImageTower]:
    """Return the family that recognises a CLIP state_dict.

    Raises:
        WeightsError: no registered family does.
    """
    family = find_family(state_dict)
    if family is None:
        known = ", ".join(name for name, _ in CLIP_FAMILY_REGISTRY)
        first = ", ".join([*sorted(state_dict)[:3], "..."])
        raise WeightsError(
            f"CLIP weights must belong to one of the families {known}, got {len(state_dict)} tensors ({first}). Use one of OpenAI's "
            "ResNet models, e.g. RN50, or register the family, see docs/EXTENDING.md."
        )
    return family


def family_named(architecture: str) -> type[CLIPImageTower]:
    """Return the family that knows a value of MODEL.CLIP.ARCHITECTURE.

    Raises:
        ConfigError: no registered family does.
    """
    families = [family for _, family in CLIP_FAMILY_REGISTRY]
    for family in reversed(families):
        if architecture in family.named_architectures():
            return family
    known = ", ".join(name for family in families for name in family.named_architectures() if name)
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must be '' or one of {known}, got {architecture!r}. For a network of other sizes set "
        "MODEL.CLIP.WEIGHTS to its file, and MODEL.CLIP.ARCHITECTURE to any name with the same text tower."
    )
