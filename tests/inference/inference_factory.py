"""Trained networks in miniature, to predict with."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from clip_factory import save_tiny_clip
from data_factory import registered, write_definition
from famix.engine import load_config, save_weights
from famix.modeling import FAMixMaskFormer

__all__ = ["make_image", "make_run", "save_run"]


def make_run(folder: Path, config: Path, *options: str, definition: Path | None = None) -> Path:
    """Write config.yaml and model_final.pth of a run with random weights; returns its folder. CLIP's file is removed."""
    definition = definition or write_definition(folder / "data", splits={"train": {}, "val": {}, "night": {}})
    clip, run = save_tiny_clip(folder / "clip.pt"), folder / "run"
    paths = ["DATASETS.FILES", f"['{definition}']", "MODEL.CLIP.WEIGHTS", str(clip), "OUTPUT_DIR", str(run)]
    cfg = load_config(str(config), [*paths, *options])
    torch.manual_seed(0)
    with registered(definition):
        model = build_model(cfg)
    spread_scores(model)
    save_run(cfg, model, run)
    clip.unlink()
    return run


def save_run(cfg: CfgNode, model: nn.Module, run: Path) -> None:
    """Write config and weights, and beside them what only training needs."""
    save_weights(model, run / "model_final.pth", iterations=4)
    content = torch.load(run / "model_final.pth", weights_only=True)
    torch.save({**content, "optimizer": {"state": {0: torch.zeros(1000)}}}, run / "model_final.pth")
    (run / "config.yaml").write_text(cfg.dump())


def spread_scores(model: nn.Module) -> None:
    """Make the scores of a random decoder differ from pixel to pixel, so that labels do, too."""
    if isinstance(model, FAMixMaskFormer):
        with torch.no_grad():
            model.classifier.linear.weight.mul_(30)
        return
    head = model.sem_seg_head
    last = [module for module in head.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)][-1]
    with torch.no_grad():
        last.weight.normal_(generator=torch.Generator().manual_seed(1))


def make_image(height: int = 72, width: int = 112, seed: int = 0) -> np.ndarray:
    """Blocks of color and noise, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 12 + 1, width // 12 + 1, 3)).repeat(12, 0).repeat(12, 1)[:height, :width]
    return (blocks + rng.normal(0, 8, blocks.shape)).clip(0, 255).astype(np.uint8)
