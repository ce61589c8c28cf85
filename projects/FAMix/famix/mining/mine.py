"""Resumable mining pass that turns a config into a style bank and is divided among the processes of a job."""

import logging
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from itertools import groupby
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, TensorboardXWriter

from famix.clip import CLIPImageTower, PromptEncoder, at_stage, check_templates, fill_template
from famix.data import MiningBatches
from famix.io.atomic import save_tensors
from famix.mining.miner import MinedBatch, MiningSettings, PromptTable, StyleMiner
from famix.mining.partial_results import PartialResults
from famix.style.bank import StyleBank
from famix.utils.errors import BankError
from famix.utils.messages import counted, first_few
from famix.utils.progress import progress_bar

_LOG_SECONDS = 10.0
_WORDS_SHOWN = 8  # in a warning
_PLAIN_TEMPLATES = ("{}.", "a {}.", "the {}.", "a photo of a {}.", "a photo of the {}.")
_VALUES = 2**21  # number of patch values optimized together; fewer leave cores idle, and more only use memory


def build_miner(
    cfg: CfgNode,
    clip_state_dict: dict[str, torch.Tensor],
    class_names: Sequence[str],
    basis: torch.Tensor | None = None,
) -> StyleMiner:
    """Build the miner described by MODEL.STYLE and STYLE_MINING.

    Args:
        cfg: the effective config.
        clip_state_dict: weights of the full CLIP, including the text tower.
        class_names: class names of the source dataset.
        basis: see `optimize_styles`.

    Raises:
        ConfigError: a setting is out of range.
    """
    settings, mining = MiningSettings.from_config(cfg), cfg.STYLE_MINING
    device = torch.device(cfg.MODEL.DEVICE)
    encoder = PromptEncoder(clip_state_dict, device=device)
    templates = check_templates(mining.TEMPLATES)
    _warn_of_unknown_words(encoder, mining.STYLES, class_names, templates)
    clip = at_stage(CLIPImageTower.from_state_dict(clip_state_dict, trainable=()).to(device), settings.stage)
    shape = clip.output_shape()[settings.stage]
    side, patches = settings.pool_size or clip.input_side(settings.stage), math.prod(settings.grid)
    cells = side**2 if side else math.prod(cfg.INPUT.CROP.SIZE) / shape.stride**2 / patches
    return StyleMiner(
        clip=clip,
        prompts=PromptTable(class_names, mining.STYLES),
        # Encode texts one at a time: rounding depends on texts encoded together, and a resumed pass encodes fewer.
        encode_prompts=lambda texts: torch.cat([encoder([text], templates) for text in texts]),
        settings=settings,
        group=batches_per_group(mining.IMS_PER_BATCH, patches, len(class_names), max(1, round(shape.channels * cells))),
        basis=basis,
    )


def _warn_of_unknown_words(
    encoder: PromptEncoder, styles: Sequence[str], class_names: Sequence[str], templates: Sequence[str]
) -> None:
    """Warn about words that the CLIP was not trained on, separately for style words, class names and templates."""

    def without_text(template: str) -> str:
        return fill_template(template, "")

    known = [template for template in _PLAIN_TEMPLATES if not encoder.unknown_words([without_text(template)])]
    rename = "Rename the classes in the dataset definition, or use another CLIP"
    for kind, texts, remedy in (
        ("style words", styles, "Their styles are arbitrary. Change STYLE_MINING.STYLES"),
        ("class names", class_names, f"Styles of these classes are imprecise. {rename}"),
        ("templates", [*map(without_text, templates)], f'Set STYLE_MINING.TEMPLATES, e.g. to "{known}"'),
    ):
        if unknown := encoder.unknown_words(texts):
            logging.getLogger(__name__).warning(
                "This CLIP was not trained on %s of the %s: %s. %s.",
                counted(len(unknown), "word"), kind, first_few(unknown, _WORDS_SHOWN), remedy,
            )  # fmt: skip


def batches_per_group(images: int, patches_per_image: int, num_classes: int, values_per_patch: int) -> int:
    """Return the number of batches to optimize together to keep a device busy, at least 1.

    Groups are fixed ranges of batch numbers and are mined as a whole. Rounding depends on the batches computed
    together, so fixed groups give the same results for any number of processes and after any interruption.

    Args:
        images: number of images per batch.
        patches_per_image: number of patches in the grid.
        num_classes: number of classes. A batch has at most one style per class, and one for unlabeled patches.
        values_per_patch: number of channels times number of cells of a pooled patch.
    """
    styles = min(num_classes + 1, images * patches_per_image)
    return max(1, _VALUES // (styles * values_per_patch))


def mine_bank(
    miner: StyleMiner,
    load_batches: Callable[[int, Collection[int]], MiningBatches],
    metadata: Mapping[str, str],
    partial: PartialResults | None = None,
    output_dir: str = "",
) -> StyleBank:
    """Mine the unfinished batches of this process, then merge the batches of all processes.

    Args:
        miner: the miner.
        load_batches: function of the number of batches per group and the numbers of finished batches. It returns the
            batches for this process to mine (see `MiningBatches`).
        metadata: metadata of the bank.
        partial: storage for reading finished batches and saving each mined batch immediately; None disables both.
        output_dir: folder for TensorBoard events (losses and number of styles per batch, number of styles per class) and for
            the samples of a batch with non-finite styles. "" writes neither.

    Returns:
        The bank, identical in every process and for any number of processes. Styles are in batch order.

    Raises:
        BankError: there are no batches, or some styles are not finite.
    """
    logger = logging.getLogger(__name__)
    kept, finished = partial.share() if partial is not None else ([], set())
    if finished:
        logger.info("Resuming after %s", counted(len(finished), "finished batch"))
    batches = load_batches(miner.group, finished)
    mined = [partial.read(index) for index in kept if partial is not None and index not in batches.remaining]
    done, styles, start, logged = 0, 0, time.perf_counter(), -math.inf
    summed = [0.0, 0.0]  # losses before and after mining, over the styles
    with ExitStack() as stack:
        storage = stack.enter_context(EventStorage())
        bar = stack.enter_context(progress_bar(len(batches), "mining styles", "batch"))
        writer = TensorboardXWriter(output_dir) if output_dir and comm.is_main_process() else None
        if writer is not None:
            stack.callback(writer.close)  # otherwise a process that ends loses buffered scalars

        def put_scalars(scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                storage.put_scalar(f"style_mining/{name}", value, smoothing_hint=False)
            if writer is not None:
                writer.write()
            storage.step()

        for _, pairs in groupby(batches, key=lambda batch: batch[0] // miner.group):
            group = dict(pairs)
            for batch in miner.mine_batches(list(group.items())):
                _require_finite(batch, group[batch.index], output_dir)
                mined.append(batch)
                if partial is not None:
                    partial.write(batch)
                losses = batch.initial_loss.mean().item(), batch.final_loss.mean().item()
                put_scalars({"initial_loss": losses[0], "final_loss": losses[1], "styles": len(batch.class_ids)})
                styles += len(batch.class_ids)
                summed = [total + len(batch.class_ids) * loss for total, loss in zip(summed, losses, strict=True)]
            done += len(group)
            means = [total / max(1, styles) for total in summed]
            bar.set_postfix({"loss": f"{means[1]:.3f}"}, refresh=False)
            bar.update(len(group))
            now = time.perf_counter()
            if now - logged >= _LOG_SECONDS or done == len(batches):
                logged, per_batch = now, (now - start) / done
                logger.info(
                    "Mining: batch %d/%d, %s, cosine loss %.3f -> %.3f, %.2f s/batch, ETA %s",
                    done, len(batches), counted(styles, "style"), *means, per_batch,
                    timedelta(seconds=round(per_batch * (len(batches) - done))),
                )  # fmt: skip
        bank = _merge(mined, metadata)
        put_scalars({f"styles_of/{bank.class_name(class_id)}": count for class_id, count in bank.counts().items()})
    return bank


def _require_finite(batch: MinedBatch, samples: Sequence[Mapping[str, Any]], folder: str) -> None:
    """Raise BankError if styles are not finite, after saving the samples of the batch in `folder` unless it is ""."""
    finite = batch.mean.isfinite().all(1) & batch.std.isfinite().all(1)
    if finite.all():
        return
    saved = ""
    if folder:
        path = os.path.join(folder, f"not_finite_mining_{batch.index:06d}.pth")
        try:
            save_tensors({"batch": batch.index, "samples": [dict(sample) for sample in samples]}, path)
            saved = f" The samples are saved in '{path}'."
        except OSError as error:  # must not hide the error about the styles
            saved = f" The samples cannot be written to '{path}' ({error.strerror or error})."
    files = first_few([sample.get("file_name", "an unnamed sample") for sample in samples], 20)
    raise BankError(
        f"Non-finite values in styles for the class ids {batch.class_ids[~finite].tolist()} of mining batch "
        f"{batch.index} ({files}).{saved} Lower STYLE_MINING.LR or check the files. Earlier batches are saved."
    )


def _merge(mined: list[MinedBatch], metadata: Mapping[str, str]) -> StyleBank:
    """Merge the batches of all processes in the order of their numbers."""
    everywhere = [batch for rank in comm.all_gather(mined) for batch in rank]
    if not everywhere:
        raise BankError("Mining found no batches. Lower STYLE_MINING.IMS_PER_BATCH or add images to DATASETS.TRAIN.")
    everywhere.sort(key=lambda batch: batch.index)

    def joined(name: str) -> torch.Tensor:
        return torch.cat([getattr(batch, name) for batch in everywhere])

    batch_id = torch.cat([torch.full_like(batch.class_ids, batch.index) for batch in everywhere])
    annotations = {"batch_id": batch_id, "prompt_id": joined("prompt_ids")}
    annotations |= {name: joined(name) for name in ("initial_loss", "final_loss")}
    bank = StyleBank(metadata)
    bank.add(joined("class_ids"), joined("mean"), joined("std"), annotations)
    return bank
