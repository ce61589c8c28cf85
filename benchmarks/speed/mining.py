"""Speed of mining: single steps, whole batches, prompts, and groups of batches."""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from famix.clip import IMAGENET_TEMPLATES, CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES
from famix.engine import load_config
from famix.mining import MinedBatch, build_miner
from famix.style import optimize_styles
from famix_minitown.datasets import register
from famix_minitown.runs.experiment import CONFIGS
from speed.plain import PlainSteps, plain_class_patches, plain_features, plain_prompts, plain_tail
from speed.setting import GRID, Row, Setting, in_turns, scaled

GROUP = 6  # maximum number of batches in a group
CLASS_NAMES = [entry.name for entry in CITYSCAPES_CLASSES]
SAME = 1e-4  # maximum relative difference between banks that should be equal
SGD: dict[str, Any] = {"lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4}  # the recipe's

Encode = Callable[[Tensor], Tensor]


def mining_rows(setting: Setting) -> Iterator[Row]:
    """Measure mining steps, prompts, a batch, and a group of batches."""
    yield from step_rows(setting)
    yield prompt_row(setting)
    yield batch_row(setting)
    yield from group_rows(setting)


def step_rows(setting: Setting) -> Iterator[Row]:
    """Measure single mining steps."""
    sizes, clip, encode = setting.sizes, setting.clip, encoder(setting)
    side, generator = sizes.crop // 4 // GRID[0], setting.generator()
    channels_first = torch.randn(sizes.styles, sizes.architecture.channels(0), side, side, generator=generator)
    channels_first = channels_first.relu_().to(setting.device)
    patches = channels_first.contiguous(memory_format=torch.channels_last)
    texts = F.normalize(torch.randn(sizes.styles, sizes.architecture.embed_dim, generator=generator), dim=1)
    texts = texts.to(setting.device)

    def half(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(setting.device).type, dtype=torch.bfloat16):
            return encode(x)

    def step(network: Encode) -> float:
        """Return the shortest interval between two calls of the network, i.e. the time of one step."""
        moments = []

        def timed(x: Tensor) -> Tensor:
            moments.append(setting.now())
            return network(x)

        optimize_styles(patches, texts, timed, steps=2, **SGD)
        return min(after - before for before, after in pairwise(moments))

    def bare(inputs: Tensor, network: Encode) -> None:
        """Run only the frozen network, without weight gradients, styles and optimizer."""
        x = inputs.detach().requires_grad_()
        torch.autograd.grad(network(x).sum(), x)

    contenders = {
        "step": lambda: step(encode),
        "bare": setting.timed(lambda: bare(patches, encode)),
        "plain": setting.timed(PlainSteps(clip, patches, texts, **SGD).step),
        "plain bare": setting.timed(lambda: bare(channels_first, lambda x: plain_tail(clip, x))),
        "half": lambda: step(half),
    }
    taken = in_turns(contenders, sizes.rounds)
    seconds = {name: scaled(values, 1 / sizes.styles) for name, values in taken.items()}
    yield Row(
        "mining step, per style", seconds["step"], "frozen forward and backward pass alone", seconds["bare"],
        target="mining step / frozen forward and backward pass alone", at_most=1.10,
    )  # fmt: skip
    yield Row(
        "mining step, per style", seconds["step"], "step of the plain loop", seconds["plain"],
        target="mining step / step of the plain loop (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip
    name = "frozen forward and backward pass alone, per style"
    yield Row(name, seconds["bare"], "unfolded, channels first", seconds["plain bare"])
    yield Row("mining step in bfloat16, per style", seconds["half"], "in float32", seconds["step"])


def encoder(setting: Setting) -> Encode:
    """Return the layers after the mined stage as the miner runs them."""
    network = CLIPResNet.from_state_dict(setting.clip.state_dict(), trainable=()).to(setting.device)
    side = network.input_side("res2")
    return lambda patches: network.encode_from("res2", F.adaptive_avg_pool2d(patches, side))


def prompt_row(setting: Setting) -> Row:
    """Measure the time to encode one prompt."""
    prompt, weights = ["Haunting Shadows style traffic light"], setting.clip.state_dict()
    contenders = {
        "short": setting.timed(lambda: PromptEncoder(weights, device=setting.device)(prompt, IMAGENET_TEMPLATES)),
        "full": setting.timed(lambda: plain_prompts(setting.clip, prompt, IMAGENET_TEMPLATES)),
    }
    seconds = in_turns(contenders, setting.sizes.rounds)
    return Row(
        f"prompt in {len(IMAGENET_TEMPLATES)} sentences", seconds["short"], "padded to 77 tokens", seconds["full"],
        target="prompt / prompt padded to 77 tokens (3 times faster)", at_most=1 / 3,
    )  # fmt: skip


def batch_row(setting: Setting) -> Row:
    """Measure a batch whose prompts are nearly all cached, because there are few prompts per class."""
    sizes, clip, templates = setting.sizes, setting.clip, IMAGENET_TEMPLATES[: setting.sizes.templates]
    cfg = setting.config("STYLE_MINING.STEPS", sizes.mining_steps, "STYLE_MINING.TEMPLATES", list(templates))
    miner, batch = (
        build_miner(cfg, clip.state_dict(), CLASS_NAMES),
        labeled_batch(setting, sizes.mining_images, sizes.crop),
    )
    mined = miner.mine_batch(0, batch)
    texts = miner.prompts.texts(mined.prompt_ids)
    plain_runs: list[PlainSteps] = []

    def plain() -> None:
        images, labels = (torch.stack([s[key] for s in batch]).to(setting.device) for key in ("image", "sem_seg"))
        pixel_mean, pixel_std = (
            torch.tensor(values, device=setting.device).view(-1, 1, 1)
            for values in (miner.settings.pixel_mean, miner.settings.pixel_std)
        )
        features = plain_features(clip, (images - pixel_mean) / pixel_std)
        patches = plain_class_patches(features, labels, GRID)
        run = PlainSteps(clip, patches, plain_prompts(clip, texts, templates), **SGD)
        for _ in range(sizes.mining_steps):
            run.step()
        plain_runs.append(run)

    contenders = {"ours": setting.timed(lambda: miner.mine_batch(0, batch)), "plain": setting.timed(plain)}
    seconds = in_turns(contenders, sizes.rounds, warm_up=False)
    ours, theirs = mined.final_loss.mean().item(), plain_runs[-1].loss().item()
    # Losses differ slightly: features of 0 are at the ReLU's kink, where rounding determines the gradient.
    if abs(ours - theirs) > 0.05 * theirs:
        raise AssertionError(f"mined styles have a loss of {ours:.3f}, but those of the plain loop {theirs:.3f}")
    return Row(
        f"mining batch of {len(texts)} styles", seconds["ours"], "plain loop without a prompt cache",
        seconds["plain"], target="mining batch / batch of the plain loop (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip


def labeled_batch(setting: Setting, images: int, crop: int) -> list[dict[str, Tensor]]:
    """Return noise images with labels of four classes, one for each patch."""
    classes = torch.arange(GRID[0] * GRID[1]).view(GRID) % 4
    labels = classes.repeat_interleave(crop // GRID[0], 0).repeat_interleave(crop // GRID[1], 1)
    return [{**sample, "sem_seg": labels} for sample in setting.random_batch(images, crop)]


def group_rows(setting: Setting) -> Iterator[Row]:
    """Measure grouped batches with a small network. A single RN50 batch occupies all cores, so it is never grouped."""
    register()
    weights, cfg = load_clip_state_dict("minitown"), load_config(str(CONFIGS / "famix.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", setting.device, "STYLE_MINING.METRIC", "euclidean"])
    cfg.STYLE_MINING.STEPS = setting.sizes.mining_steps
    miner = build_miner(cfg, weights, CLASS_NAMES)
    samples = labeled_batch(setting, min(miner.group, GROUP) * cfg.STYLE_MINING.IMS_PER_BATCH, cfg.INPUT.CROP.SIZE[0])
    batches = [(number, samples[number :: min(miner.group, GROUP)]) for number in range(min(miner.group, GROUP))]

    def apart() -> list[MinedBatch]:
        return [miner.mine_batch(*batch) for batch in batches]

    def styles(mined: list[MinedBatch]) -> Tensor:
        return torch.cat([torch.cat([one.mean, one.std]) for one in mined])

    expected, got = styles(apart()), styles(miner.mine_batches(batches))
    contenders = {"together": setting.timed(lambda: miner.mine_batches(batches)), "apart": setting.timed(apart)}
    seconds = in_turns(contenders, setting.sizes.rounds)
    name = f"the town's CLIP: {len(batches)} batches in a group"
    yield Row(name, seconds["together"], "one at a time", seconds["apart"])
    difference = float((expected - got).norm() / expected.norm())
    yield Row(
        "bank of grouped batches: relative difference", [difference], "limit", [SAME], unit="",
        target="bank of grouped batches: relative difference / 1e-4", at_most=1.0,
    )  # fmt: skip
