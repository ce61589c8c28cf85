"""open_clip's models: names, configs, construction and downloads.

open_clip and timm are optional and slow to import, so every function imports them on use.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from famix.clip.architecture import ARCHITECTURES, require_shapes
from famix.clip.openai import model_urls
from famix.clip.text.tower import TextDesign
from famix.utils.errors import ConfigError, WeightsError
from famix.utils.messages import did_you_mean

PREFIX = "open_clip:"
_CONFIG_FOLDERS: list[Path] = []  # of plugins
_OPENAI = {
    name: name.replace("/", "-").replace("@336px", "-336") + "-quickgelu"
    for name in model_urls()
    if name.startswith("ViT")
}
"""OpenAI's names for their ViTs -> open_clip's names."""


@dataclass(frozen=True)
class OpenClipModel:
    """An open_clip model.

    Attributes:
        name: value of MODEL.CLIP.ARCHITECTURE.
        config: open_clip's model config with the keys embed_dim, vision_cfg and text_cfg.
        pixel_mean, pixel_std: statistics per channel, for pixel values 0-255.
    """

    name: str
    config: Mapping[str, Any]
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    @property
    def image_kind(self) -> str:
        """Kind of the image tower: a module of timm.models, "vit" or "resnet" for open_clip's own, or "" if unsupported."""
        vision = self.config["vision_cfg"]
        if "multimodal_cfg" in self.config or self.config["text_cfg"].get("hf_model_name"):
            return ""
        if not vision.get("timm_model_name"):
            return "resnet" if isinstance(vision.get("layers", 12), list) else "vit"
        with optional_packages(self.name):
            import timm
        return timm.model_entrypoint(vision["timm_model_name"]).__module__.split(".")[-1]

    @property
    def image_size(self) -> int:
        """Side of the square training images in pixels."""
        size = self.config["vision_cfg"].get("image_size", 224)
        return size[0] if isinstance(size, list | tuple) else size

    @property
    def has_text_prefix(self) -> bool:
        """Whether the names of the text tower's tensors begin with "text."."""
        return bool(self.config.get("custom_text"))

    @property
    def text_design(self) -> TextDesign:
        """Activation and mask of the text tower."""
        causal = not self.config["text_cfg"].get("no_causal_mask", False)
        return TextDesign("quick_gelu" if self.config.get("quick_gelu") else "gelu", causal)

    def build_image_tower(self) -> nn.Module:
        """Build open_clip's image tower with random weights."""
        with optional_packages(self.name):
            from open_clip.model import CLIPVisionCfg, _build_vision_tower
        config = CLIPVisionCfg(**self.config["vision_cfg"])
        return _build_vision_tower(self.config["embed_dim"], config, self.config.get("quick_gelu", False))

    def build_text_tower(self) -> nn.Module:
        """Build open_clip's text tower with random weights."""
        with optional_packages(self.name):
            from open_clip.model import CLIPTextCfg, _build_text_tower
        config = CLIPTextCfg(**self.config["text_cfg"])
        return _build_text_tower(self.config["embed_dim"], config, self.config.get("quick_gelu", False))

    def text_weights(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of the text tower without their prefix."""
        if self.has_text_prefix:
            return {name.removeprefix("text."): x for name, x in state_dict.items() if name.startswith("text.")}
        others = ("visual.", "logit_")
        return {name: x for name, x in state_dict.items() if not name.startswith(others)}

    def check_weights(self, state_dict: Mapping[str, Tensor]) -> None:
        """Raise WeightsError if names or shapes of the tensors differ from those of the model."""
        with torch.device("meta"):
            towers = {"visual.": self.build_image_tower(), "": self.build_text_tower()}
        expected = {
            f"{prefix}{name}": tuple(x.shape)
            for prefix, tower in towers.items()
            for name, x in tower.state_dict().items()
        }
        visual = {name: x for name, x in state_dict.items() if name.startswith("visual.")}
        remedy = "Set MODEL.CLIP.ARCHITECTURE to the model of these weights"
        require_shapes({**visual, **self.text_weights(state_dict)}, expected, self.name, remedy)


@lru_cache(maxsize=16)
def find_model(name: str) -> OpenClipModel | None:
    """Return the model for a MODEL.CLIP.ARCHITECTURE value.

    Args:
        name: "open_clip:" and the name of a model or the path of an open_clip_config.json, or OpenAI's name of a ViT.

    Returns:
        The model, or None if `name` has a different form.

    Raises:
        ConfigError: the model is unknown or invalid, or the optional packages are not installed.
    """
    if name in _OPENAI:
        model = _OPENAI[name]
    elif name.startswith(PREFIX):
        model = name.removeprefix(PREFIX)
    else:
        return None
    if model.removesuffix("-quickgelu") in ARCHITECTURES:
        return None  # a ResNet, which needs no open_clip
    if model.endswith(".json"):
        content = _read_config(name, Path(model))
        config, preprocess = content.get("model_cfg", content), content.get("preprocess_cfg", {})
    else:
        with optional_packages(name):
            import open_clip
        for folder in _CONFIG_FOLDERS:
            open_clip.add_model_config(folder)
        config = open_clip.get_model_config(model)
        if config is None:
            raise ConfigError(
                f"MODEL.CLIP.ARCHITECTURE, or MODEL.CLIP.WEIGHTS up to the slash, must be an open_clip model, got {name!r}.{did_you_mean(model, open_clip.list_models())} "
                "open_clip.list_models() returns all names; a custom model needs the path of its open_clip_config.json."
            )
        tags = open_clip.list_pretrained_tags_by_model(model)
        preprocess = open_clip.get_pretrained_cfg(model, tags[0]) if tags else {}
    with optional_packages(name):
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
    return OpenClipModel(
        name,
        config,
        tuple(255 * value for value in preprocess.get("mean", OPENAI_DATASET_MEAN)),
        tuple(255 * value for value in preprocess.get("std", OPENAI_DATASET_STD)),
    )


def register_model_configs(folder: Path) -> None:
    """Add open_clip model configs, one <name>.json each, to the names for MODEL.CLIP.ARCHITECTURE."""
    if folder not in _CONFIG_FOLDERS:
        _CONFIG_FOLDERS.append(folder)


def _read_config(name: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        config = content.get("model_cfg", content)
        if all(isinstance(config[key], dict) for key in ("vision_cfg", "text_cfg")) and int(config["embed_dim"]) > 0:
            return content
        reason = "vision_cfg and text_cfg must be objects"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error)
    raise ConfigError(
        f"MODEL.CLIP.ARCHITECTURE must name an open_clip_config.json with embed_dim, vision_cfg and text_cfg, got {name!r} "
        f"({reason}). Correct the path or the file."
    )


def download_weights(source: str) -> tuple[str, Path]:
    """Download weights with open_clip, or find them in its cache.

    Args:
        source: "open_clip:MODEL/PRETRAINED".

    Returns:
        The value of MODEL.CLIP.ARCHITECTURE, and the path of the weights file.

    Raises:
        ConfigError: the model or its pretrained weights are unknown, or open_clip is not installed.
        WeightsError: the download failed.
    """
    model, _, tag = source.removeprefix(PREFIX).partition("/")
    architecture = f"{PREFIX}{model}"
    find_model(architecture)
    import open_clip

    config, tags = open_clip.get_pretrained_cfg(model, tag), open_clip.list_pretrained_tags_by_model(model)
    if not config:
        raise ConfigError(
            f"MODEL.CLIP.WEIGHTS must be open_clip:MODEL/PRETRAINED, got {source!r}.{did_you_mean(tag, tags)} Pretrained weights of "
            f"{model}: {', '.join(tags) or 'none'}."
        )
    try:
        return architecture, Path(open_clip.download_pretrained(config))
    except Exception as error:  # huggingface_hub and urllib raise many types
        origin = config.get("url") or f"https://huggingface.co/{config.get('hf_hub', '')}"
        raise WeightsError(
            f"MODEL.CLIP.WEIGHTS {source} could not be downloaded ({str(error).splitlines()[0]}). Download the weights file of "
            f"{origin} on a machine with internet access, set MODEL.CLIP.WEIGHTS to its path and MODEL.CLIP.ARCHITECTURE to "
            f"{architecture}."
        ) from error


@contextmanager
def optional_packages(name: str) -> Iterator[None]:
    """Convert a failed import of open_clip or timm to a ConfigError about MODEL.CLIP.ARCHITECTURE."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"MODEL.CLIP.ARCHITECTURE {name} requires open_clip and timm ({error}). Install them with pip install "
            "'famix[open_clip]'."
        ) from error
