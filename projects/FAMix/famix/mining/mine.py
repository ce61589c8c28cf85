"""From a config to a style bank: the mining pass over the source, sharded over the processes of a job."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter

from famix.clip import CLIPImageTower, PromptEncoder, check_templates, fill_template
from famix.mining.finite import check_finite
from famix.mining.groups import batches_per_group, in_groups
from famix.mining.miner import MinedBatch, StyleMiner
from famix.mining.prompt_table import PromptTable
from famix.style.bank import StyleBank
from famix.utils.errors import BankError, ConfigError
from famix.utils.progress import progress_bar

__all__ = ["build_miner", "check_precision", "mine_bank"]

_LOG_SECONDS = 10.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # float16 has too few exponents for the gradients


def build_miner(
    cfg: CfgNode,
    clip_state_dict: dict[str, torch.Tensor],
    class_names: Sequence[str],
    basis: torch.Tensor | None = None,
) -> StyleMiner:
    """Build the miner that MODEL.STYLE and STYLE_MINING describe.

    Args:
        cfg: the effective config.
        clip_state_dict: the whole CLIP, image and text tower.
        class_names: of the source data set.
        basis: of the changes of a style, see `optimize_styles`.

    Raises:
        ConfigError: settings out of their range.
    """
    mining = cfg.STYLE_MINING
    check_precision(mining.DTYPE)
    device = torch.device(cfg.MODEL.DEVICE)
    encoder = PromptEncoder(clip_state_dict, device=device)
    templates = check_templates(mining.TEMPLATES)
    unknown = encoder.unknown_words([*mining.STYLES, *class_names, *(fill_template(entry, "") for entry in templates)])
    if unknown:
        logging.getLogger(__name__).warning(
            "This CLIP was never shown the words: %s. Styles mined with them mean nothing; change STYLE_MINING.STYLES "
            "or TEMPLATES.",
            ", ".join(unknown),
        )
    clip = CLIPImageTower.from_state_dict(clip_state_dict, trainable=()).to(device)
    stage, grid = cfg.MODEL.STYLE.STAGE, tuple(cfg.MODEL.STYLE.GRID)
    shape = clip.output_shape()[stage]
    side = mining.POOL_SIZE or clip.input_side(stage)
    cells = side**2 if side else math.prod(cfg.INPUT.CROP.SIZE) / shape.stride**2 / math.prod(grid)
    values = max(1, round(shape.channels * cells))
    return StyleMiner(
        clip=clip,
        prompts=PromptTable(class_names, mining.STYLES),
        # One by one: rounding depends on what is encoded together, and a pass that goes on has not encoded all of it.
        encode_prompts=lambda texts: torch.cat([encoder([text], templates) for text in texts]),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
        stage=stage,
        grid=grid,
        pool_size=mining.POOL_SIZE,
        ignore_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        seed=mining.SEED,
        group=batches_per_group(mining.IMS_PER_BATCH, math.prod(grid), len(class_names), values),
        dtype=_DTYPES[mining.DTYPE],
        steps=mining.STEPS,
        lr=mining.LR,
        momentum=mining.MOMENTUM,
        weight_decay=mining.WEIGHT_DECAY,
        basis=basis,
    )


def check_precision(name: str) -> None:
    """Raise ConfigError unless STYLE_MINING.DTYPE is a precision that styles can be mined in."""
    if name not in _DTYPES:
        raise ConfigError(f"STYLE_MINING.DTYPE is {name!r}, expected one of {', '.join(_DTYPES)}")


def mine_bank(
    miner: StyleMiner,
    batches: Iterable[tuple[int, list[dict[str, Any]]]],
    num_batches: int,
    metadata: dict[str, str],
    writers: Sequence[EventWriter] = (),
    finished: Sequence[MinedBatch] = (),
    keep: Callable[[MinedBatch], None] | None = None,
    folder: str = "",
) -> StyleBank:
    """Mine this process's batches, then put those of all processes together.

    Args:
        miner: see StyleMiner.
        batches: pairs of a batch's number in the pass and its samples, by ascending number; every process of the job
            gets other groups of them.
        num_batches: how many of them this process gets, for the progress report.
        metadata: of the bank.
        writers: receive the scalars style_mining/{initial_loss,final_loss,styles} per batch and, at the end,
            style_mining/styles_of/<class name>.
        finished: batches that were mined before; of all processes' batches each stands in one place only.
        keep: called with every batch as soon as it is mined, to save it.
        folder: for the samples of a batch whose styles are not finite; "" to keep none.

    Returns:
        The same bank in every process, whatever their number: styles stand in the order of the batches.

    Raises:
        BankError: no batch held any patch, or styles are not finite.
    """
    mined: list[MinedBatch] = []
    progress = _Progress(num_batches)
    with EventStorage() as storage:
        for group in in_groups(batches, miner.group):
            for batch in miner.mine_batches(group):
                check_finite(batch, dict(group)[batch.index], folder)
                mined.append(batch)
                if keep is not None:
                    keep(batch)
                _put_scalars(storage, batch)
                _write(writers, storage)
            progress.report(mined)
        progress.close()
        bank = _merge([*finished, *mined], metadata)
        for class_id, count in bank.counts().items():
            storage.put_scalar(f"style_mining/styles_of/{bank.class_name(class_id)}", count, smoothing_hint=False)
        _write(writers, storage)
    return bank


def _merge(mined: Sequence[MinedBatch], metadata: dict[str, str]) -> StyleBank:
    everywhere = [batch for rank in comm.all_gather(list(mined)) for batch in rank]
    if not everywhere:
        raise BankError("mining saw no batch; lower STYLE_MINING.IMS_PER_BATCH or add images to DATASETS.TRAIN")
    bank = StyleBank(metadata)
    everywhere.sort(key=lambda batch: batch.index)
    joined = {
        name: torch.cat([getattr(batch, name) for batch in everywhere])
        for name in ("class_ids", "mean", "std", "prompt_ids", "initial_loss", "final_loss")
    }
    batch_ids = torch.cat([torch.full_like(batch.class_ids, batch.index) for batch in everywhere])
    annotations = {
        "batch_id": batch_ids,
        "prompt_id": joined["prompt_ids"],
        "initial_loss": joined["initial_loss"],
        "final_loss": joined["final_loss"],
    }
    bank.add(joined["class_ids"], joined["mean"], joined["std"], annotations)
    return bank


def _put_scalars(storage: EventStorage, batch: MinedBatch) -> None:
    storage.put_scalar("style_mining/initial_loss", batch.initial_loss.mean().item(), smoothing_hint=False)
    storage.put_scalar("style_mining/final_loss", batch.final_loss.mean().item(), smoothing_hint=False)
    storage.put_scalar("style_mining/styles", len(batch.class_ids), smoothing_hint=False)


def _write(writers: Sequence[EventWriter], storage: EventStorage) -> None:
    for writer in writers:
        writer.write()
    storage.step()


class _Progress:
    """Shows how far mining is: a bar; and lines at the start, every few seconds and at the end."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.start = time.perf_counter()
        self.logged = -math.inf
        self._bar = progress_bar(num_batches, "mining styles", "batch")

    def report(self, mined: Sequence[MinedBatch]) -> None:
        """Say what was done and how long the rest will take."""
        now, done = time.perf_counter(), len(mined)
        self._bar.set_postfix({"loss": f"{mined[-1].final_loss.mean():.3f}"}, refresh=False)
        self._bar.update(done - self._bar.n)
        if now - self.logged < _LOG_SECONDS and done < self.num_batches:
            return
        self.logged = now
        per_batch = (now - self.start) / done
        logging.getLogger(__name__).info(
            "Mining: batch %d/%d, %d styles, cosine loss %.3f -> %.3f, %.2f s/batch, ETA %s",
            done,
            self.num_batches,
            sum(len(batch.class_ids) for batch in mined),
            mined[-1].initial_loss.mean(),
            mined[-1].final_loss.mean(),
            per_batch,
            timedelta(seconds=round(per_batch * (self.num_batches - done))),
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
