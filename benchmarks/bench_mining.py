"""Mining: its step and batch against the plain loop, its prompts, groups of batches, a pass, several processes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_plain import PlainSteps, plain_class_patches, plain_features, plain_prompts, plain_tail
from bench_setting import GRID, SGD, Row, Setting, in_turns, random_batch, registered_images, write_images
from detectron2.utils import comm
from torch import Tensor

from famix.clip import IMAGENET_TEMPLATES, CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES, build_mining_batches
from famix.engine import load_config
from famix.mining import MinedBatch, MiningSettings, PromptTable, StyleMiner, build_miner, mine_bank
from famix.style import StyleBank, optimize_styles
from famix_minitown.datasets import register
from famix_minitown.experiment import CONFIGS

__all__ = ["mining_rows", "pass_rows", "process_rows"]

BATCHES, GROUP = 2, 6  # of a pass, and most of a group
CLASS_NAMES = [entry.name for entry in CITYSCAPES_CLASSES]
SAME = 1e-4  # relative difference of banks that must be equal

Encode = Callable[[Tensor], Tensor]


def mining_rows(setting: Setting) -> Iterator[Row]:
    """Rows about single steps of mining, and about prompts."""
    count, encode = setting.sizes.styles, encoder(setting)
    patches, texts = setting.patches(count), setting.texts(count)
    plain, channels_first = PlainSteps(setting.clip, patches, texts, **SGD), patches.contiguous()

    def half(x: Tensor) -> Tensor:
        with torch.autocast(torch.device(setting.device).type, dtype=torch.bfloat16):
            return encode(x)

    seconds = in_turns(
        {
            "step": lambda: step_seconds(setting, patches, texts, encode),
            "bare": setting.timed(lambda: forward_backward(patches, encode)),
            "plain": setting.timed(plain.step),
            "plain bare": setting.timed(
                lambda: forward_backward(channels_first, lambda x: plain_tail(setting.clip, x))
            ),
            "half": lambda: step_seconds(setting, patches, texts, half),
        },
        2 * setting.sizes.rounds,
    )
    step, bare, plain_step, plain_bare, half_step = (value / count for value in seconds.values())
    yield Row(
        "mining step, per style", step, "bare frozen forward and backward", bare,
        target="mining step over the bare frozen forward and backward", at_most=1.10,
    )  # fmt: skip
    yield Row(
        "mining step, per style", step, "plain loop's step", plain_step,
        target="mining step over the plain loop's (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip
    yield Row("bare frozen forward and backward, per style", bare, "unfolded, channels first", plain_bare)
    yield Row("mining step in bfloat16, per style", half_step, "in float32", step)
    prompt, weights = ["Haunting Shadows style traffic light"], setting.clip.state_dict()
    seconds = in_turns(
        {
            "short": setting.timed(lambda: PromptEncoder(weights, device=setting.device)(prompt, IMAGENET_TEMPLATES)),
            "full": setting.timed(lambda: plain_prompts(setting.clip, prompt, IMAGENET_TEMPLATES)),
        },
        setting.sizes.rounds,
    )
    yield Row(
        f"prompt in {len(IMAGENET_TEMPLATES)} sentences", seconds["short"], "as rows of 77 tokens", seconds["full"],
        target="prompt over rows of 77 tokens (3 times faster)", at_most=1 / 3,
    )  # fmt: skip


def step_seconds(setting: Setting, patches: Tensor, texts: Tensor, encode: Encode, steps: int = 2) -> float:
    """Return the shortest time from one call of the encoder to the next, which is a whole step."""
    moments = []

    def timed(x: Tensor) -> Tensor:
        moments.append(setting.now())
        return encode(x)

    optimize_styles(patches, texts, timed, steps=steps, **SGD)
    return min(after - before for before, after in pairwise(moments))


def encoder(setting: Setting) -> Encode:
    """Return the network behind the mined stage in the form that the miner runs."""
    network = setting.miner_network
    side = network.input_side("res2")
    return lambda patches: network.encode_from("res2", F.adaptive_avg_pool2d(patches, side))


def forward_backward(patches: Tensor, encode: Encode) -> None:
    """Run the frozen network alone: no weight gradients, no styles, no optimizer."""
    x = patches.detach().requires_grad_()
    torch.autograd.grad(encode(x).sum(), x)


def pass_rows(setting: Setting) -> Iterator[Row]:
    """Rows about a batch, the prompts of a pass in one process, and grouped batches."""
    yield batch_row(setting)
    with registered_images(source_images(setting, "pass")) as name:
        _, bank, encoded = mine_pass(setting, name, workers=1)
    distinct = len(set(bank.annotations["prompt_id"].tolist()))
    yield Row(
        "prompts encoded", encoded, "distinct prompts of the bank", distinct, unit="",
        target="prompts encoded over distinct prompts", at_most=1.0,
    )  # fmt: skip
    yield from group_rows(setting)


def process_rows(setting: Setting) -> Iterator[Row]:
    """Rows about a pass that two processes share; none on a machine with one GPU."""
    if setting.device.startswith("cuda") and torch.cuda.device_count() < 2:
        return
    definition = source_images(setting, "processes")
    for count in (1, 2):
        torch.multiprocessing.spawn(mine_rank, (setting, definition, count), count)
    one, two = (float((setting.folder / f"seconds_of_{count}.txt").read_text()) for count in (1, 2))
    alone, shared = (StyleBank.load(setting.folder / f"bank_of_{count}.safetensors") for count in (1, 2))
    yield Row(f"mining pass, {BATCHES} batches, 2 processes of a thread", two, "1 process of a thread", one)
    yield same_row("bank of 2 processes", torch.cat([alone.mean, alone.std]), torch.cat([shared.mean, shared.std]))


def source_images(setting: Setting, folder: str) -> Path:
    """Write images for a pass, larger than the crops by the factor of GTA5's; returns their definition."""
    sizes = setting.sizes
    larger = round(1.37 * sizes.crop), round(2.5 * sizes.crop)
    return write_images(setting.folder / folder, BATCHES * sizes.mining_images, larger, setting.seed)


def make_miner(setting: Setting) -> tuple[StyleMiner, PromptEncoder]:
    """Return the recipe's miner with the sizes of the setting, and the encoder of its prompts."""
    sizes, cfg = setting.sizes, setting.config()
    encoder = PromptEncoder(setting.clip.state_dict(), activation="quick_gelu", causal=True, device=setting.device)
    templates = IMAGENET_TEMPLATES[: sizes.templates]
    miner = StyleMiner(
        clip=CLIPResNet.from_state_dict(setting.clip.state_dict(), trainable=()).to(setting.device),
        prompts=PromptTable(CLASS_NAMES, cfg.STYLE_MINING.STYLES),
        encode_prompts=lambda texts: torch.cat([encoder([text], templates) for text in texts]),
        settings=replace(MiningSettings.from_config(cfg), grid=GRID, steps=sizes.mining_steps, **SGD),
    )
    return miner, encoder


def mine_pass(setting: Setting, name: str, workers: int) -> tuple[float, StyleBank, int]:
    """Mine a dataset in this process's part; returns seconds, the bank of all processes and the encoded prompts."""
    sizes = setting.sizes
    cfg = setting.config(
        "DATASETS.TRAIN", (name,), "INPUT.CROP.SIZE", [sizes.crop, sizes.crop],
        "STYLE_MINING.IMS_PER_BATCH", sizes.mining_images, "DATALOADER.NUM_WORKERS", workers,
    )  # fmt: skip
    miner, encoder = make_miner(setting)
    comm.synchronize()
    start = setting.now()
    bank = mine_bank(
        miner, lambda group, finished: build_mining_batches(cfg, group=group), {"class_names": json.dumps(CLASS_NAMES)}
    )
    return setting.now() - start, bank, encoder.num_encoded


def mine_rank(rank: int, setting: Setting, definition: Path, count: int) -> None:
    """Mine as one of several processes, on one thread: rounding depends on the number of threads."""
    torch.set_num_threads(1)
    if setting.device.startswith("cuda"):
        torch.cuda.set_device(rank)
    backend, store = ("nccl" if setting.device.startswith("cuda") else "gloo"), setting.folder / f"store{count}"
    torch.distributed.init_process_group(backend, init_method=f"file://{store}", rank=rank, world_size=count)
    with registered_images(definition) as name:
        seconds, bank, _ = mine_pass(setting, name, workers=0)  # starting workers would take longer than the pass
    if rank == 0:
        bank.save(setting.folder / f"bank_of_{count}.safetensors")
        (setting.folder / f"seconds_of_{count}.txt").write_text(str(seconds))
    torch.distributed.destroy_process_group()


def labeled_batch(images: int, crop: int, generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Return noise images with labels of four classes, one for each patch."""
    classes = torch.arange(GRID[0] * GRID[1]).view(GRID) % 4
    labels = classes.repeat_interleave(crop // GRID[0], 0).repeat_interleave(crop // GRID[1], 1)
    return [{**sample, "sem_seg": labels} for sample in random_batch(images, crop, generator)]


def batch_row(setting: Setting) -> Row:
    """Return the row about a batch, nearly all prompts of which were drawn before: a class set has few."""
    sizes = setting.sizes
    miner, _ = make_miner(setting)
    batch = labeled_batch(sizes.mining_images, sizes.crop, setting.generator())
    mined = miner.mine_batch(0, batch)
    texts, templates = miner.prompts.texts(mined.prompt_ids), IMAGENET_TEMPLATES[: sizes.templates]
    plain_runs: list[PlainSteps] = []

    def plain() -> None:
        images, labels = (torch.stack([s[key] for s in batch]).to(setting.device) for key in ("image", "sem_seg"))
        pixel_mean, pixel_std = (
            torch.tensor(values, device=setting.device).view(-1, 1, 1)
            for values in (miner.settings.pixel_mean, miner.settings.pixel_std)
        )
        features = plain_features(setting.clip, (images - pixel_mean) / pixel_std)
        patches = plain_class_patches(features, labels, GRID)
        run = PlainSteps(setting.clip, patches, plain_prompts(setting.clip, texts, templates), **SGD)
        for _ in range(sizes.mining_steps):
            run.step()
        plain_runs.append(run)

    contenders = {"ours": setting.timed(lambda: miner.mine_batch(0, batch)), "plain": setting.timed(plain)}
    seconds = in_turns(contenders, rounds=2, warm_up=False)
    ours, theirs = mined.final_loss.mean().item(), plain_runs[-1].loss().item()
    # Not equal: features of 0 are at the ReLU's kink, where rounding decides on the gradient.
    if abs(ours - theirs) > 0.05 * theirs:
        raise AssertionError(f"mined styles have a loss of {ours:.3f}, those of the plain loop one of {theirs:.3f}")
    return Row(
        f"mining batch of {len(texts)} styles", seconds["ours"], "plain loop without remembered prompts",
        seconds["plain"], target="mining batch over the plain loop's (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip


def group_rows(setting: Setting) -> Iterator[Row]:
    """Rows about groups of batches, with a small network: a batch of RN50 fills the machine, and no config groups it."""
    register()
    weights, cfg = load_clip_state_dict("minitown"), load_config(str(CONFIGS / "famix.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", setting.device, "STYLE_MINING.METRIC", "euclidean"])
    cfg.STYLE_MINING.STEPS = setting.sizes.mining_steps
    miner, generator = build_miner(cfg, weights, CLASS_NAMES), setting.generator()
    images, crop = cfg.STYLE_MINING.IMS_PER_BATCH, cfg.INPUT.CROP.SIZE[0]
    batches = [(number, labeled_batch(images, crop, generator)) for number in range(min(miner.group, GROUP))]

    def styles(mined: list[MinedBatch]) -> Tensor:
        return torch.cat([torch.cat([one.mean, one.std]) for one in mined])

    together = styles(miner.mine_batches(batches))
    apart = styles([miner.mine_batch(*batch) for batch in batches])
    seconds = in_turns(
        {
            "together": setting.timed(lambda: miner.mine_batches(batches)),
            "apart": setting.timed(lambda: [miner.mine_batch(*batch) for batch in batches]),
        },
        setting.sizes.rounds,
    )
    yield Row(
        f"the town's CLIP: {len(batches)} batches as a group", seconds["together"], "one by one", seconds["apart"]
    )
    yield same_row("bank of grouped batches", apart, together)


def same_row(what: str, expected: Tensor, got: Tensor) -> Row:
    """Return the row about two banks that must be equal."""
    return Row(
        f"{what}: difference", float((expected - got).norm() / expected.norm()), "allowed, relative", SAME, unit="",
        target=f"{what}: the same as without, difference over 1e-4", at_most=1.0,
    )  # fmt: skip
