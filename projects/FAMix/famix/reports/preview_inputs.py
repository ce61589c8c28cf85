"""What a preview of styles needs, from the config of a run: the network, its classes and the bank."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from torch import nn

from famix.clip import clip_weights_hash, load_configured_clip
from famix.clip.files import CLIPStateDict
from famix.data import register_datasets
from famix.data.class_table import ClassTable, classes_of
from famix.engine import Trainer, load_config
from famix.inference.loading import default_device, load_model
from famix.mining import bank_metadata, check_bank, style_bank_path
from famix.style.bank import StyleBank
from famix.utils.errors import BankError, ConfigError

__all__ = ["PreviewInputs", "load_preview_inputs"]


@dataclass(frozen=True)
class PreviewInputs:
    """A network and the styles to show it.

    Attributes:
        cfg: the config.
        model: on a GPU where there is one.
        is_trained: whether its predictions mean anything.
        classes: that it tells apart.
        bank: that fits the config; at least one style.
    """

    cfg: CfgNode
    model: nn.Module
    is_trained: bool
    classes: ClassTable
    bank: StyleBank


def load_preview_inputs(
    config_file: str, opts: Sequence[str] = (), *, weights: Path | None = None, bank: Path | None = None
) -> PreviewInputs:
    """Load all of it.

    Args:
        config_file: of the run.
        opts: KEY VALUE KEY VALUE ..., which override the file.
        weights: of a network that was trained with the config; None takes an untrained one on the config's CLIP.
        bank: file; None takes the config's.

    Raises:
        FAMixError: something is missing or does not fit.
    """
    cfg = load_config(config_file, opts)
    register_datasets(cfg.DATASETS.FILES)
    classes = classes_of(cfg)
    styles = _load_bank(cfg, str(bank or style_bank_path(cfg)), classes)
    if weights is not None:
        return PreviewInputs(cfg, load_model(weights, config_file, opts).model, True, classes, styles)
    if not cfg.MODEL.CLIP.WEIGHTS:
        raise ConfigError(
            "there are neither --weights nor MODEL.CLIP.WEIGHTS; features of a random network say nothing"
        )
    cfg.MODEL.DEVICE = str(default_device())
    return PreviewInputs(cfg, Trainer.build_model(cfg), False, classes, styles)


def _load_bank(cfg: CfgNode, path: str, classes: ClassTable) -> StyleBank:
    bank, weights = StyleBank.load(path), cfg.MODEL.CLIP.WEIGHTS
    if not len(bank):
        raise BankError(f"style bank {path} has no styles")
    clip = load_configured_clip(cfg) if weights else CLIPStateDict()
    clip_hash = clip_weights_hash(clip) if weights else ""
    check_bank(bank, bank_metadata(cfg, clip_hash, classes.names, clip.text_design), path, bank.num_channels)
    return bank
