"""Base class and registry of CLIP families.

A family is a subclass of `CLIPImageTower`. Code outside this folder uses only members of the base class, so a family can
live in any package. docs/EXTENDING.md has an example.

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

CLIP_FAMILY_REGISTRY = Registry("CLIP_FAMILY")
CLIP_FAMILY_REGISTRY.__doc__ = """
Subclasses of `CLIPImageTower`. If several families recognize a state_dict or know an architecture, the last registered
one is used.
"""

_ALL = "all"
_VISUAL = "visual."


class CLIPImageTower(Backbone):
    """CLIP image tower as a Detectron2 backbone.

    Subclasses implement the abstract methods, set the attributes below and call `freeze_except(trainable)` at the end of
    their constructor, which has the signature `(architecture, output_stride, *, trainable, with_embedding)`.

    Attributes:
        stages: names of the maps that `forward` returns, in the order of computation.
        rectified: whether the maps are ReLU outputs; restyled maps are rectified then, too.
        pixel_mean, pixel_std: normalization of pixel values 0-255, per channel.
        input_resolution: image size of CLIP's training, in pixels.
        embedding_modules: names of submodules that only `embed` uses.
        trainable: names of the trainable submodules.
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

    @classmethod
    @abstractmethod
    def recognises(cls, state_dict: Mapping[str, Tensor]) -> bool:
        """Return whether a CLIP state_dict (image tower under "visual.") belongs to this family."""

    @classmethod
    @abstractmethod
    def read_architecture(cls, state_dict: Mapping[str, Tensor], with_embedding: bool = True) -> Any:
        """Infer the architecture from a state_dict of this family.

        Args:
            state_dict: CLIP weights, or those of a segmentation backbone with the prefix "visual.".
            with_embedding: False for a segmentation backbone, which lacks the `embedding_modules`.

        Returns:
            The constructor's `architecture`.

        Raises:
            WeightsError: tensors are missing or have invalid shapes.
        """

    @classmethod
    def named_architectures(cls) -> Mapping[str, Any]:
        """Return the family's values of MODEL.CLIP.ARCHITECTURE and their architectures."""
        return {}

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError unless a state_dict has the expected tensors of the image and text tower."""

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return the text design of an architecture, as far as it is known."""
        return TextDesign()

    @classmethod
    def text_tower(cls, state_dict: Mapping[str, Tensor], design: TextDesign) -> TextTower:
        """Build the text tower from a CLIP state_dict."""
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
        """Build the image tower from a CLIP state_dict.

        Args:
            sd: CLIP weights; only the entries "visual.*" are used.
            output_stride: stride of the last stage, for families with dilated stages.
            trainable: submodules to train, e.g. "layer4" or "layer4.2"; ("all",) for everything, () for nothing. The rest is
                frozen: no gradients, and batch norm keeps its statistics.
            with_embedding: build the `embedding_modules`, which `encode_from` requires.

        Returns:
            The tower in eval mode. `CLIPImageTower.from_state_dict` returns one of the family that recognizes `sd`.

        Raises:
            WeightsError: no family recognizes `sd`, or its tensors are inconsistent.
            ConfigError: `output_stride` or a name in `trainable` is invalid.
        """
        family = cast(type[Self], family_of(sd)) if cls is CLIPImageTower else cls
        create: Any = family  # mypy checks the constructor of the base class
        tower = create(family.read_architecture(sd), output_stride, trainable=trainable, with_embedding=with_embedding)
        tower.load_visual(sd)
        return tower.eval()

    def load_visual(self, sd: Mapping[str, Tensor]) -> None:
        """Copy the weights of the image tower ("visual.*") from a CLIP state_dict of the same architecture."""
        visual = {name.removeprefix(_VISUAL): value for name, value in sd.items() if name.startswith(_VISUAL)}
        absent = tuple(f"{name}." for name in self.embedding_modules if getattr(self, name, None) is None)
        self.load_state_dict({name: value for name, value in visual.items() if not name.startswith(absent)})

    @abstractmethod
    def stem(self, images: Tensor) -> Tensor:
        """Compute the input of the first stage from normalized images (B, 3, H, W)."""

    @abstractmethod
    def run_stage(self, stage: str, x: Tensor, dense: bool) -> Tensor:
        """Run a stage.

        Args:
            stage: one of `stages`.
            x: output of the previous stage or of the stem.
            dense: use the strides of `output_shape` instead of CLIP's original ones.

        Returns:
            (B, C, h, w).
        """

    @abstractmethod
    def embed(self, features: Tensor) -> Tensor:
        """Compute image embeddings (N, D), not normalized, from the last stage at CLIP's original stride."""

    @abstractmethod
    def output_shape(self) -> dict[str, ShapeSpec]:
        """Return channels and stride of every stage."""

    def input_side(self, stage: str) -> int | None:
        """Return the height and width that `encode_from` requires at a stage, or None if it accepts any size."""
        return None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute dense features.

        Args:
            images: (B, 3, H, W), normalized.

        Returns:
            Stage name -> (B, C, H / s, W / s), with channels C and stride s of `output_shape`.
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
        """Transform the output of a stage in `forward`, for later stages and in the result, while the context is open.

        Args:
            stage: one of `stages`.
            transform: function of the features (B, C, h, w), which keeps their shape.

        Raises:
            ConfigError: the stage is unknown or already transformed.
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
        """Compute the output of a stage at CLIP's original stride, without transforms.

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
        """Compute image embeddings from the output of a stage at CLIP's original stride, without transforms.

        Args:
            stage: one of `stages`.
            features: output of `features_at`, (N, C, h, w).

        Returns:
            (N, D), not normalized.

        Raises:
            ConfigError: the stage is unknown, the size differs from `input_side`, or the tower was built with
                `with_embedding=False`.
        """
        self.check_stage(stage)
        for name in self.stages[self.stages.index(stage) + 1 :]:
            features = self.run_stage(name, features, dense=False)
        return self.embed(features)

    def encode_image(self, images: Tensor) -> Tensor:
        """Compute image embeddings (N, D), not normalized, from normalized images (N, 3, H, W)."""
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

    def freeze_except(self, trainable: Sequence[str]) -> None:
        """Freeze all submodules except the named ones: no gradients, and eval mode even after `train()`.

        Raises:
            ConfigError: a name is not a submodule.
        """
        self.trainable = tuple(trainable)
        self.requires_grad_(_ALL in self.trainable)
        for name in self.trainable:
            self._trained(name).requires_grad_(True)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the trainable submodules; frozen ones stay in eval mode."""
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
    """Return the family that recognizes a CLIP state_dict, or None."""
    families = [family for _, family in CLIP_FAMILY_REGISTRY]
    return next((family for family in reversed(families) if family.recognises(state_dict)), None)


def family_of(state_dict: Mapping[str, Tensor]) -> type[CLIPImageTower]:
    """Return the family that recognizes a CLIP state_dict.

    Raises:
        WeightsError: no registered family recognizes it.
    """
    family = find_family(state_dict)
    if family is None:
        known = ", ".join(name for name, _ in CLIP_FAMILY_REGISTRY)
        first = ", ".join([*sorted(state_dict)[:3], "..."])
        raise WeightsError(
            f"CLIP weights must belong to one of the families {known}, got {len(state_dict)} tensors ({first}). Use one of OpenAI's "
            "ResNet models, e.g. RN50, or register a family (docs/EXTENDING.md)."
        )
    return family


def family_named(architecture: str) -> type[CLIPImageTower]:
    """Return the family of a value of MODEL.CLIP.ARCHITECTURE.

    Raises:
        ConfigError: the value is unknown.
    """
    families = [family for _, family in CLIP_FAMILY_REGISTRY]
    for family in reversed(families):
        if architecture in family.named_architectures():
            return family
    known = ", ".join(name for family in families for name in family.named_architectures() if name)
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must be '' or one of {known}, got {architecture!r}. For other sizes, set "
        "MODEL.CLIP.WEIGHTS to the file and MODEL.CLIP.ARCHITECTURE to a name with the same text design."
    )
