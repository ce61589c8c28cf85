"""Mining as a whole: a batch against the plain loop, a pass against its stages, groups of batches, several processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_data import registered_images, write_images
from bench_plain import PlainSteps, plain_class_patches, plain_features, plain_prompts
from bench_setting import GRID, SGD, Setting, random_batch
from bench_turns import Row, in_turns
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from famix.clip import IMAGENET_TEMPLATES, CLIPResNet, PromptEncoder, load_clip_state_dict
from famix.data import CITYSCAPES_CLASSES, build_mining_batches
from famix.engine import load_config
from famix.mining import MinedBatch, PromptTable, StyleMiner, build_miner, mine_bank
from famix.mining.miner import first_patches, take_patches
from famix.style import StyleBank, optimize_styles, patch_classes
from famix_minitown.datasets import register
from famix_minitown.experiment import CONFIGS

__all__ = ["BATCHES", "make_miner", "pass_config", "pass_rows", "process_rows"]

BATCHES = 2
LIKE_ONE = 1e-4  # of banks that must be the same
_BANK, _SECONDS = "bank_of_{}.safetensors", "seconds_of_{}.txt"  # processes


def pass_rows(setting: Setting) -> Iterator[Row]:
    """Rows about a batch and a pass of mining in one process."""
    yield from _batch_rows(setting)
    with registered_images(_source(setting, "pass")) as name:
        yield from _whole_rows(setting, pass_config(setting, name, workers=1))
    yield from _group_rows(setting)


def process_rows(setting: Setting) -> Iterator[Row]:
    """Rows about a pass that two processes share; none on a machine with one GPU."""
    if setting.device.startswith("cuda") and torch.cuda.device_count() < 2:
        return
    definition = _source(setting, "processes")
    (one, alone), (two, shared) = (mine_in_processes(setting, definition, count) for count in (1, 2))
    yield Row(f"mining pass, {BATCHES} batches, 2 processes of a thread", two, "1 process of a thread", one)
    yield _same_row("bank of 2 processes", torch.cat([alone.mean, alone.std]), torch.cat([shared.mean, shared.std]))


def _source(setting: Setting, folder: str) -> Path:
    """Images for all batches of a pass, as much larger than the crops as GTA5's are; returns their definition."""
    sizes = setting.sizes
    larger = round(1.37 * sizes.crop), round(2.5 * sizes.crop)
    return write_images(setting.folder / folder, BATCHES * sizes.mining_images, larger, setting.seed)


def make_miner(setting: Setting) -> tuple[StyleMiner, PromptEncoder]:
    """The recipe's miner with the sizes of the setting, and what encodes its prompts."""
    sizes, cfg = setting.sizes, setting.config()
    encoder = PromptEncoder(setting.clip.state_dict(), activation="quick_gelu", causal=True, device=setting.device)
    templates = IMAGENET_TEMPLATES[: sizes.templates]
    miner = StyleMiner(
        clip=CLIPResNet.from_state_dict(setting.clip.state_dict(), trainable=()).to(setting.device),
        prompts=PromptTable([entry.name for entry in CITYSCAPES_CLASSES], cfg.STYLE_MINING.STYLES),
        encode_prompts=lambda texts: torch.cat([encoder([text], templates) for text in texts]),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        grid=GRID,
        steps=sizes.mining_steps,
        **SGD,
    )
    return miner, encoder


def pass_config(setting: Setting, name: str, workers: int) -> CfgNode:
    """The config of a pass over the data set `name`, whose images so many processes load."""
    sizes = setting.sizes
    return setting.config(
        "DATASETS.TRAIN", (name,), "INPUT.CROP.SIZE", [sizes.crop, sizes.crop],
        "STYLE_MINING.IMS_PER_BATCH", sizes.mining_images, "DATALOADER.NUM_WORKERS", workers,
    )  # fmt: skip


def mine(miner: StyleMiner, cfg: CfgNode) -> StyleBank:
    """A whole pass: this process's batches, and the bank of all processes."""
    batches = build_mining_batches(cfg, group=miner.group)
    names = json.dumps([entry.name for entry in CITYSCAPES_CLASSES])
    return mine_bank(miner, batches, len(batches), {"class_names": names})


def patch_labels(crop: int) -> Tensor:
    """Labels (crop, crop) of four classes, each patch of one of them."""
    classes = torch.arange(GRID[0] * GRID[1]).view(GRID) % 4
    return classes.repeat_interleave(crop // GRID[0], 0).repeat_interleave(crop // GRID[1], 1)


def _batch_rows(setting: Setting) -> Iterator[Row]:
    """Prompts of a class set are few, so that nearly all were drawn by a batch before."""
    sizes, clock = setting.sizes, setting.clock
    miner, _ = make_miner(setting)
    batch = random_batch(sizes.mining_images, sizes.crop, setting.generator())
    for sample in batch:
        sample["sem_seg"] = patch_labels(sizes.crop)
    mined = miner.mine_batch(0, batch)
    texts, templates = miner.prompts.texts(mined.prompt_ids), IMAGENET_TEMPLATES[: sizes.templates]
    plain_runs: list[PlainSteps] = []

    def plain() -> None:
        images, labels = (torch.stack([s[key] for s in batch]).to(setting.device) for key in ("image", "sem_seg"))
        features = plain_features(setting.clip, (images - miner.pixel_mean) / miner.pixel_std)
        patches = plain_class_patches(features, labels, GRID)
        run = PlainSteps(setting.clip, patches, plain_prompts(setting.clip, texts, templates), **SGD)
        for _ in range(sizes.mining_steps):
            run.step()
        plain_runs.append(run)

    contenders = {"ours": clock.timed(lambda: miner.mine_batch(0, batch)), "plain": clock.timed(plain)}
    seconds = in_turns(contenders, rounds=2, warm_up=False)
    ours, theirs = mined.final_loss.mean().item(), plain_runs[-1].loss().item()
    # Not equal: features that are 0 lie on the ReLU's kink, where rounding decides whether there is a gradient.
    if abs(ours - theirs) > 0.05 * theirs:
        raise AssertionError(f"mined styles have a loss of {ours:.3f}, those of the plain loop one of {theirs:.3f}")
    yield Row(
        f"mining batch of {len(texts)} styles", seconds["ours"], "plain loop, which encodes prompts anew",
        seconds["plain"], target="mining batch over the plain loop's (1.5 times faster)", at_most=1 / 1.5,
    )  # fmt: skip


def _whole_rows(setting: Setting, cfg: CfgNode) -> Iterator[Row]:
    miner, encoder = make_miner(setting)
    banks: list[StyleBank] = []
    loaded = [samples for _, samples in build_mining_batches(cfg)]
    stages, clock = _Stages(miner, setting), setting.clock
    seconds = in_turns(
        {
            "pass": clock.timed(lambda: banks.append(mine(miner, cfg))),
            "load": clock.timed(lambda: list(build_mining_batches(cfg))),
            "find": clock.timed(lambda: stages.find(loaded)),
            "optimise": clock.timed(stages.optimise),
        },
        setting.sizes.rounds,
        warm_up=False,
    )
    names = {"load": "loading", "find": "features and classes of patches", "optimise": "optimising"}
    slowest = max(names, key=seconds.__getitem__)
    yield Row(
        f"mining pass, {BATCHES} batches", seconds["pass"], f"its slowest stage alone: {names[slowest]}",
        seconds[slowest],
    )  # fmt: skip
    for stage in ("load", "find"):
        yield Row(f"its {names[stage]}", seconds[stage], names["optimise"], seconds["optimise"])
    distinct = len(set(banks[0].annotations["prompt_id"].tolist()))
    yield Row(
        "prompts encoded", encoder.num_encoded, "distinct prompts of the bank", distinct, unit="",
        target="prompts encoded over distinct prompts", at_most=1.0,
    )  # fmt: skip


def _group_rows(setting: Setting) -> Iterator[Row]:
    """Of a small network: a batch of RN50's shape is work enough by itself, and no group of any config has two."""
    register()
    weights, cfg = load_clip_state_dict("minitown"), load_config(str(CONFIGS / "famix.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", setting.device, "STYLE_MINING.METRIC", "euclidean"])
    cfg.STYLE_MINING.STEPS = setting.sizes.mining_steps
    miner = build_miner(cfg, weights, [entry.name for entry in CITYSCAPES_CLASSES])
    crop, generator = cfg.INPUT.CROP.SIZE[0], setting.generator()
    batches = []
    for number in range(miner.group):
        batch = random_batch(cfg.STYLE_MINING.IMS_PER_BATCH, crop, generator)
        batches.append((number, [{**sample, "sem_seg": patch_labels(crop)} for sample in batch]))

    def styles(mined: list[MinedBatch]) -> Tensor:
        return torch.cat([torch.cat([one.mean, one.std]) for one in mined])

    together, clock = styles(miner.mine_batches(batches)), setting.clock
    apart = styles([miner.mine_batch(*batch) for batch in batches])
    seconds = in_turns(
        {
            "together": clock.timed(lambda: miner.mine_batches(batches)),
            "apart": clock.timed(lambda: [miner.mine_batch(*batch) for batch in batches]),
        },
        setting.sizes.rounds,
    )
    yield Row(f"the town's CLIP: {miner.group} batches as a group", seconds["together"], "one by one", seconds["apart"])
    yield _same_row("bank of grouped batches", apart, together)


class _Stages:
    """The stages of a pass, each by itself.

    Args:
        miner: whose stages they are.
        setting: of the run.
    """

    def __init__(self, miner: StyleMiner, setting: Setting) -> None:
        self.miner = miner
        self.device = setting.device
        self.patches: list[Tensor] = []
        self.setting = setting

    @torch.no_grad()
    def find(self, batches: list[list[dict[str, Tensor]]]) -> None:
        """Features of all batches, and the first patch of every class."""
        miner = self.miner
        self.patches = []
        for samples in batches:
            images, labels = (torch.stack([s[key] for s in samples]).to(self.device) for key in ("image", "sem_seg"))
            features = miner.clip.features_at("res2", (images - miner.pixel_mean) / miner.pixel_std)
            positions = first_patches(patch_classes(labels, GRID, miner.ignore_label))
            self.patches.append(take_patches(features, positions, GRID))

    def optimise(self) -> None:
        """The patches that were found."""
        clip = self.miner.clip
        for patches in self.patches:
            optimize_styles(
                patches,
                self.setting.texts(len(patches)),
                lambda x: clip.encode_from("res2", F.adaptive_avg_pool2d(x, self.miner.pool_size)),
                steps=self.miner.steps,
                **SGD,
            )


def mine_in_processes(setting: Setting, definition: Path, count: int) -> tuple[float, StyleBank]:
    """A pass by so many processes of one thread each: rounding depends on the number of threads.

    Returns:
        Seconds of the pass, without starting the processes, and the bank.
    """
    torch.multiprocessing.spawn(_mine_rank, (setting, definition, count), count)
    seconds = float((setting.folder / _SECONDS.format(count)).read_text())
    return seconds, StyleBank.load(setting.folder / _BANK.format(count))


def _mine_rank(rank: int, setting: Setting, definition: Path, count: int) -> None:
    torch.set_num_threads(1)
    backend = "gloo"
    if setting.device.startswith("cuda"):
        torch.cuda.set_device(rank)
        backend = "nccl"
    store = f"file://{setting.folder / f'store{count}'}"
    torch.distributed.init_process_group(backend, init_method=store, rank=rank, world_size=count)
    miner, _ = make_miner(setting)
    with registered_images(definition) as name:
        cfg = pass_config(setting, name, workers=0)  # they would take longer to start than the pass
        comm.synchronize()
        start = setting.clock.now()
        bank = mine(miner, cfg)
        seconds = setting.clock.now() - start
    if rank == 0:
        bank.save(setting.folder / _BANK.format(count))
        (setting.folder / _SECONDS.format(count)).write_text(str(seconds))
    torch.distributed.destroy_process_group()


def _same_row(what: str, expected: Tensor, got: Tensor) -> Row:
    difference = float((expected - got).norm() / expected.norm())
    return Row(
        f"{what}: difference", difference, "allowed, relative", LIKE_ONE, unit="",
        target=f"{what}: the same as without, difference over 1e-4", at_most=1.0,
    )  # fmt: skip
