"""Contrastive training of the town's CLIP on crops and their captions, with checkpoints."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from famix.clip import clip_weights_hash
from famix.io import load_tensors, require_plain_file
from famix.io.atomic import save_tensors
from famix.utils.errors import ConfigError
from famix.utils.seeding import derive_seed
from famix_minitown.clip.captions import caption, vocabulary
from famix_minitown.clip.compact_clip import CompactCLIP, to_input, usable_device
from famix_minitown.clip.crops import looks_of

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_FIRST_STAGES = {"resnet": "layer1", "convnext": "trunk.stages.0", "vit": "transformer.resblocks.0"}
_BATCHES, _NOISE = 1, 2  # streams of random numbers
_LARGEST_SCALE = math.log(100.0)
_Origin = dict[str, dict[str, Any]]  # plan, crops and initial weights; equal for training runs with equal results


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of a training run."""

    family: str = "resnet"  # one of datasets.CLIP_ARCHITECTURES
    seed: int = 0
    steps: int = 3000
    batch: int = 128
    width: int = 16  # channels of the ResNet's stem
    style_noise: float = 0.1  # see `style_noise`; 0 disables it
    learning_rate: float = 1e-3  # peak after `warmup` updates, followed by cosine decay to 0
    warmup: int = 100
    weight_decay: float = 0.05  # applied to matrices only
    dtype: str = "float32"  # dtype of matrix products in both towers; weights and losses are float32
    log_every: int = 50
    save_every: int = 500


def soft_targets(keys: Tensor) -> Tensor:
    """Return the targets (N, N) of a batch, uniform over images with equal keys (N,)."""
    same = (keys[:, None] == keys[None, :]).float()
    return same / same.sum(dim=1, keepdim=True)


def style_noise(features: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """Perturb the mean and standard deviation of each channel at random.

    This smooths the gradients with respect to these statistics, which mining follows.

    Args:
        features: (N, C, H, W).
        amount: standard deviation of the relative change.
        generator: generator on the CPU.
    """
    shape = (2, *features.shape[:2], 1, 1)
    factors = 1 + amount * torch.randn(shape, generator=generator).to(features.device)
    mean = features.mean(dim=(2, 3), keepdim=True)
    return (features - mean) * factors[0] + mean * factors[1]


def draw_batch(
    crops: NDArray[Any], class_names: Sequence[str], model: CompactCLIP, plan: TrainingPlan, step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the crops and captions of a step, seeded by its number so that a resumed run draws the same batches.

    Returns:
        Images (N, 3, 64, 64), tokens (N, L), and keys (N,), which are equal for the same looks and class. All are on
        the model's device.
    """
    rng = np.random.default_rng(derive_seed(plan.seed, _BATCHES, step))
    records = crops[np.sort(rng.integers(len(crops), size=plan.batch))]
    images = records["image"].copy()
    flipped = rng.random(len(images)) < 0.5
    images[flipped] = images[flipped, :, ::-1]
    looks, labels = [looks_of(record) for record in records], records["label"].tolist()
    texts = [caption(look, class_names[label], rng) for look, label in zip(looks, labels, strict=True)]
    pairs = [(frozenset(name for name, _ in look), label) for look, label in zip(looks, labels, strict=True)]
    keys = torch.tensor([pairs.index(pair) for pair in pairs])
    return to_input(images).to(model.device), model.tokenize(texts).to(model.device), keys.to(model.device)


def train_clip(
    crops: NDArray[Any],
    class_names: Sequence[str],
    plan: TrainingPlan,
    checkpoint: Path | None = None,
    initial: Mapping[str, Tensor] | None = None,
    made_of: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> CompactCLIP:
    """Train a CLIP.

    Args:
        crops: (N,) RECORDs.
        class_names: class names of their labels.
        plan: settings of the training run.
        checkpoint: file to save to and resume from; None disables both.
        initial: initial weights (see `CompactCLIP.full_state_dict`); None initializes them at random.
        made_of: description of the crops (see `describe_crops`), which must match that in a checkpoint.
        device: device to train on, which may differ from the checkpoint's.

    Returns:
        The model in eval mode, on the device.

    Raises:
        ConfigError: the checkpoint is damaged or belongs to a different plan, crops or initial weights; the initial
            weights have different sizes; or the device is unusable.
    """
    device = usable_device(device)
    model = CompactCLIP(plan.width, vocabulary(class_names), plan.seed, plan.family).train()
    if initial is not None:
        model.load_full_state_dict(initial)
    model.to(device).clip.visual.to(memory_format=torch.channels_last)
    start = "" if initial is None else clip_weights_hash(initial)
    origin: _Origin = {"plan": asdict(plan), "crops": dict(made_of or {}), "initial": {"weights": start}}
    parameters = list(model.parameters())
    groups = [
        {"params": [entry for entry in parameters if entry.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [entry for entry in parameters if entry.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), fused=True)
    first = _resume(model, optimizer, origin, checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    noise = torch.Generator()
    hook = hook_noise(model, plan.style_noise, noise)
    losses: list[float] = []
    begin = time.perf_counter()
    for step in range(first, plan.steps):
        noise.manual_seed(derive_seed(plan.seed, _NOISE, step))
        rising, falling = min(1.0, (step + 1) / max(plan.warmup, 1)), 0.5 * (1 + math.cos(math.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rising * falling
        losses.append(_update(model, optimizer, draw_batch(crops, class_names, model, plan, step), DTYPES[plan.dtype]))
        done = step + 1
        if done % plan.log_every == 0 or done == plan.steps:
            speed = (done - first) / (time.perf_counter() - begin)
            left, mean = (plan.steps - done) / speed / 60, sum(losses) / len(losses)
            logger.info(f"Step {done} / {plan.steps}: loss {mean:.3f}, {speed:.2f} steps/s, {left:.1f} min left")
            losses.clear()
        if checkpoint is not None and done % plan.save_every == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), **origin, "step": done}
            save_tensors(state, checkpoint)
    hook.remove()
    return model.eval()


def hook_noise(model: CompactCLIP, amount: float, generator: torch.Generator) -> torch.utils.hooks.RemovableHandle:
    """Apply `style_noise` after the first stage while the model is in training mode."""

    def change(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not module.training or amount == 0:
            return output
        if output.ndim == 4:
            return style_noise(output, amount, generator)
        tokens = output[:, 1:].mT[..., None]  # a map of one column, without the class token
        return torch.cat([output[:, :1], style_noise(tokens, amount, generator)[..., 0].mT], dim=1)

    return model.clip.visual.get_submodule(_FIRST_STAGES[model.family]).register_forward_hook(change)


def _update(
    model: CompactCLIP, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> float:
    images, tokens, keys = batch
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        pictures, sentences = model.encode_image(images), model.encode_text(tokens)
    logits = model.clip.logit_scale.exp() * pictures.float() @ sentences.float().t()
    targets = soft_targets(keys)
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.t(), targets)) / 2
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.clip.logit_scale.clamp_(max=_LARGEST_SCALE)
    return float(loss.detach())


def _resume(model: CompactCLIP, optimizer: torch.optim.Optimizer, origin: _Origin, checkpoint: Path) -> int:
    """Load a checkpoint and return the number of finished updates."""
    remedy = "Remove it to start from scratch."
    try:
        require_plain_file(checkpoint)
        with checkpoint.open("rb") as file:
            state = load_tensors(file)
        got = {part: dict(state.get(part, {})) for part in origin}
        keys = [(part, key) for part in origin for key in {**origin[part], **got[part]}]
        differences = [
            f"{key} of {part} {got[part].get(key)!r} instead of {origin[part].get(key)!r}"
            for part, key in keys
            if got[part].get(key) != origin[part].get(key)
        ]
        if not differences:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            step = int(state["step"])
    except Exception as error:  # torch raises a different type for every kind of damage
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"Cannot read checkpoint '{checkpoint}' ({type(error).__name__}: {reason:.200}). {remedy}"
        ) from error
    if differences:
        raise ConfigError(
            f"Checkpoint '{checkpoint}' belongs to a training run with {', '.join(differences)}. {remedy}"
        )
    logger.info(f"Resuming at step {step} from {checkpoint}")
    return step
