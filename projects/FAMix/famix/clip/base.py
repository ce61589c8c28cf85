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

from famix.clip.checkpointing import run_checkpointed
from famix.clip.text.tower import TextDesign, TextTower
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
        rectified: whether the maps are ReLU outputs, in which case restyled maps are rectified as well.
        pixel_mean, pixel_std: normalization of pixel values 0-255, per channel.
        input_resolution: image size of CLIP's training, in pixels.
        embedding_modules: names of submodules that only `embed` uses.
        with_embedding: whether the tower has these submodules.
        sizes_in_weights: whether the weights determine the architecture; otherwise MODEL.CLIP.ARCHITECTURE must name it.
        mined_on_images: whether styles are mined on patches cut out of images, embedded one by one, instead of patches of
            feature maps. Required if the stages mix information across the image.
        trainable: names of the trainable submodules.
        returned: stages that `forward` returns, or None for all. The maps of other stages are freed.
        checkpoint_activations: whether the backward pass recomputes the activations inside blocks.
        compile_backend: backend of torch.compile for the blocks, or "".
    """

    stages: tuple[str, ...]
    rectified: bool = False
    pixel_mean: tuple[float, ...] = (122.7709383, 116.7460125, 104.09373615)
    pixel_std: tuple[float, ...] = (68.5005327, 66.6321579, 70.32316305)
    input_resolution: int = 224
    embedding_modules: tuple[str, ...] = ()
    with_embedding: bool = True
    sizes_in_weights: bool = True
    mined_on_images: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.trainable: tuple[str, ...] = (_ALL,)
        self.returned: tuple[str, ...] | None = None  # all
        self.checkpoint_activations = False
        self.compile_backend = ""
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
    def architecture_named(cls, name: str) -> Any:
        """Return the architecture for a MODEL.CLIP.ARCHITECTURE value, or None if it belongs to a different family."""
        return None

    @classmethod
    def check_weights(cls, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError unless a state_dict has the expected tensors of the image and text tower."""

    @classmethod
    def text_design(cls, architecture: str = "") -> TextDesign:
        """Return the text design of an architecture, where known."""
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
        own, optional = self.state_dict().keys(), tuple(f"{name}." for name in self.embedding_modules)
        self.load_state_dict(
            {name: value for name, value in visual.items() if name in own or not f"{name}.".startswith(optional)}
        )

    @abstractmethod
    def stem(self, images: Tensor, dense: bool) -> Any:
        """Compute the state before the first stage from normalized images (B, 3, H, W).

        A state is a map (B, C, h, w), or any object that `map_of`, `with_map` and `state_of` can convert.

        Args:
            images: normalized images.
            dense: use the strides of `output_shape` instead of CLIP's original ones.
        """

    @abstractmethod
    def run_stage(self, stage: str, x: Any, dense: bool) -> Any:
        """Compute the state after a stage from the state before it."""

    def run_block(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a part of a stage. With `checkpoint_activations`, only its arguments are kept for the backward pass."""
        if self.compile_backend and isinstance(block, nn.Module) and block._compiled_call_impl is None:
            block.compile(backend=self.compile_backend)
        if self.checkpoint_activations:
            return run_checkpointed(self, block, *args, **kwargs)
        return block(*args, **kwargs)

    @abstractmethod
    def embed(self, x: Any) -> Tensor:
        """Compute image embeddings (N, D), not normalized, from the state after the last stage at original strides."""

    def map_of(self, x: Any) -> Tensor:
        """Return the map (B, C, h, w) of a state."""
        return x

    def with_map(self, x: Any, features: Tensor) -> Any:
        """Return a copy of a state with its map replaced."""
        return features

    def state_of(self, features: Tensor) -> Any:
        """Return the state for a map returned by `features_at`."""
        return features

    def replace_map(self, features: Tensor, new: Tensor) -> Tensor:
        """Return the map `new` in the form of `features_at`, with the class token of `features` if there is one."""
        return new

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
            Mapping from each stage in `returned` to (B, C, H / s, W / s), with channels C and stride s from `output_shape`.
        """
        features = {}
        x = self.stem(images, dense=True)
        for stage in self.stages:
            x = self.run_stage(stage, x, dense=True)
            if stage in self._taps:
                x = self.with_map(x, self._taps[stage](self.map_of(x)))
            if self.returned is None or stage in self.returned:
                features[stage] = self.map_of(x)
        return features

    @contextmanager
    def transform_stage(self, stage: str, transform: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """While the context is open, transform the output of a stage in `forward`, for later stages and in the result.

        Args:
            stage: one of `stages`.
            transform: function of the features (B, C, h, w), which keeps their shape.

        Raises:
            ConfigError: the stage is unknown or already transformed.
        """
        self.check_stage(stage)
        if stage in self._taps:
            raise ConfigError(
                f"transform_stage must not be nested for the same stage, got {stage} twice. Compose the functions."
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
        return self.map_of(self._run_to(stage, images))

    def _run_to(self, stage: str, images: Tensor) -> Any:
        self.check_stage(stage)
        x = self.stem(images, dense=False)
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
        x = self.state_of(features)
        for name in self.stages[self.stages.index(stage) + 1 :]:
            x = self.run_stage(name, x, dense=False)
        return self.embed(x)

    def encode_image(self, images: Tensor) -> Tensor:
        """Compute image embeddings (N, D), not normalized, from normalized images (N, 3, H, W)."""
        return self.encode_from(self.stages[0], self.features_at(self.stages[0], images))

    def check_stage(self, stage: str) -> None:
        """Raise ConfigError unless `stage` is one of `stages`."""
        if stage not in self.stages:
            names = ", ".join(self.stages)
            raise ConfigError(
                f"MODEL.STYLE.STAGE must be one of {names}, or image, got {stage!r}. Use a stage of the backbone."
            )

    def require_embedding(self) -> None:
        """Raise ConfigError unless the tower was built with the modules for image embeddings."""
        if not self.with_embedding:
            raise ConfigError(
                f"This {type(self).__name__} was built without the modules for image embeddings. Pass with_embedding=True."
            )

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
        """Set the mode of the trainable submodules. Frozen ones stay in eval mode."""
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
                path
                for path, _ in self.named_modules()
                if path.isidentifier() or (path.rpartition(".")[2].isdigit() and path.count(".") <= 2)
            ]
            raise ConfigError(
                f"MODEL.CLIP.TRAINABLE must list submodules of the backbone ({type(self).__name__}), got {name!r}. Use "
                f"{_ALL}, some of {', '.join(blocks)}, or submodules of these."
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


def family_named(name: str) -> tuple[type[CLIPImageTower], Any]:
    """Return the family and the architecture for a MODEL.CLIP.ARCHITECTURE value.

    Raises:
        ConfigError: the value is unknown.
    """
    for _, family in CLIP_FAMILY_REGISTRY:
        architecture = family.architecture_named(name)
        if architecture is not None:
            return family, architecture
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must be '', an OpenAI CLIP (RN50, ..., ViT-B/16, ...), or open_clip:MODEL with a model from a "
        f"registered family, got {name!r}. For a CLIP ResNet of other sizes, set MODEL.CLIP.WEIGHTS to the file and "
        "MODEL.CLIP.ARCHITECTURE to a name with the same text design."
    )


def check_output_stride(output_stride: int) -> None:
    """Raise ConfigError unless MODEL.CLIP.OUTPUT_STRIDE is valid."""
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"MODEL.CLIP.OUTPUT_STRIDE must be 8, 16 or 32, got {output_stride}. The paper uses 16.")
