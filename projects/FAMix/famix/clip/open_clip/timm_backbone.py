"""timm backbones without a text tower, such as DINOv2, DINOv3 and ConvNeXt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from famix.clip.base import CLIPImageTower
from famix.clip.files import read_clip
from famix.clip.open_clip.convnext import CLIPConvNeXt
from famix.clip.open_clip.vit import CLIPTimmViT
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import did_you_mean

_CLASSES: tuple[type[CLIPConvNeXt] | type[CLIPTimmViT], ...] = (CLIPConvNeXt, CLIPTimmViT)


@dataclass(frozen=True)
class TimmModel:
    """A timm model with the part of `OpenClipModel`'s interface that image towers use.

    Attributes:
        name: name in timm.
        config: timm's default config of the model's pretrained weights.
        kind: module of timm.models.
    """

    name: str
    config: Mapping[str, Any]
    kind: str

    @property
    def pixel_mean(self) -> tuple[float, ...]:
        """Mean per channel, for pixel values 0-255."""
        return tuple(255 * value for value in self.config["mean"])

    @property
    def pixel_std(self) -> tuple[float, ...]:
        """Standard deviation per channel, for pixel values 0-255."""
        return tuple(255 * value for value in self.config["std"])

    @property
    def image_size(self) -> int:
        """Side of the training images in pixels."""
        return self.config["input_size"][-1]

    def build_image_tower(self) -> nn.Module:
        """Build the model with random weights under the names of open_clip's wrapper."""
        import timm

        tower = nn.Module()
        tower.trunk = timm.create_model(self.name, num_classes=0)
        tower.head = nn.Identity()
        return tower


def find_timm_model(name: str) -> TimmModel:
    """Return the timm model with a given name.

    Args:
        name: MODEL.TIMM.NAME, e.g. "vit_large_patch14_dinov2.lvd142m".

    Raises:
        ConfigError: the model is unknown or neither a ViT nor a ConvNeXt, or timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"MODEL.TIMM.NAME {name} requires timm ({error}). Install it with pip install 'famix[open_clip]'."
        ) from error
    if not timm.is_model(name):
        known = did_you_mean(name.split(".")[0], timm.list_models())
        raise ConfigError(
            f"MODEL.TIMM.NAME must be a timm model, got {name!r}.{known} timm.list_models() returns all names."
        )
    kind = timm.model_entrypoint(name.split(".")[0]).__module__.split(".")[-1]
    if not any(kind in family.kinds for family in _CLASSES):
        raise ConfigError(
            f"MODEL.TIMM.NAME must be a ViT or ConvNeXt from timm, got {name!r} from timm.models.{kind}. Use e.g. "
            "vit_base_patch14_dinov2."
        )
    config: Any = timm.get_pretrained_cfg(name)
    default: Any = config.to_dict() if config else timm.create_model(name).default_cfg
    return TimmModel(name, default, kind)


def build_timm_tower(name: str, weights: str, output_stride: int, trainable: Sequence[str]) -> CLIPImageTower:
    """Build a timm backbone.

    Args:
        name: see `find_timm_model`.
        weights: "" for random weights, "pretrained" for those that timm downloads, or the path of a file in timm's format.
        output_stride: see `CLIPConvNeXt` and `CLIPTimmViT`.
        trainable: names of the trainable submodules.

    Raises:
        ConfigError: a value is invalid.
        WeightsError: the weights cannot be loaded.
    """
    model = find_timm_model(name)
    (family,) = (family for family in _CLASSES if model.kind in family.kinds)
    architecture: Any = model
    tower = family(architecture, output_stride, trainable=trainable, with_embedding=False)
    if weights not in ("", "pretrained") and not Path(weights).is_file():
        raise WeightsError(f"MODEL.TIMM.WEIGHTS not found: '{weights}'. Correct the path, or set it to pretrained.")
    if weights:
        own = tower.trunk.state_dict()
        found = _pretrained(name) if weights == "pretrained" else dict(read_clip(Path(weights)))
        wrong = sorted(key for key in own if key not in found or found[key].shape != own[key].shape)
        if wrong:
            shown = ", ".join(
                f"{key}: {tuple(found[key].shape) if key in found else 'missing'} instead of {tuple(own[key].shape)}"
                for key in wrong[:3]
            )
            raise WeightsError(
                f"MODEL.TIMM.WEIGHTS must match MODEL.TIMM.NAME {name}, but {len(wrong)} tensors differ ({shown}) in {weights}. "
                "Correct either setting."
            )
        tower.trunk.load_state_dict({key: found[key] for key in own})
    return tower


def _pretrained(name: str) -> Mapping[str, Tensor]:
    import timm

    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except Exception as error:  # huggingface_hub and urllib raise many types
        origin = timm.get_pretrained_cfg(name)
        hub = origin.hf_hub_id if origin else ""
        raise WeightsError(
            f"MODEL.TIMM.WEIGHTS pretrained for {name} could not be downloaded ({str(error).splitlines()[0]:.200}). Download the "
            f"weights file from https://huggingface.co/{hub} on a machine with internet access and set MODEL.TIMM.WEIGHTS to its path."
        ) from error
