"""The style bank of a config: loaded where there is one, else mined and saved."""

import itertools
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.events import TensorboardXWriter

from famix.clip import clip_weights_hash, load_configured_clip, require_text_design
from famix.clip.build import tower_without_weights
from famix.clip.files import CLIPStateDict
from famix.data import build_mining_batches
from famix.io.atomic import FileLock
from famix.mining.measured import measure_source_basis
from famix.mining.metadata import bank_metadata, check_bank
from famix.mining.mine import build_miner, mine_bank
from famix.mining.partial_results import MiningShards
from famix.style.bank import StyleBank
from famix.utils.errors import ConfigError

__all__ = ["load_or_mine", "obtain_style_bank", "style_bank_path"]

_DEFAULT_NAME = "style_bank.safetensors"
_SECONDS_BETWEEN_ATTEMPTS = 2.0  # to be the one that mines a bank


def style_bank_path(cfg: CfgNode) -> str:
    """Where the bank of a config lies: MODEL.STYLE.BANK, or in OUTPUT_DIR."""
    return cfg.MODEL.STYLE.BANK or os.path.join(cfg.OUTPUT_DIR, _DEFAULT_NAME)


def obtain_style_bank(cfg: CfgNode) -> StyleBank:
    """Load the bank of a config, or mine and save it; called in every process of a job.

    Args:
        cfg: the effective config; its data sets are registered.

    Raises:
        BankError: the bank was mined for something else.
        ConfigError: there is no bank, and no CLIP to mine one with, or how its text tower computes is not known.
    """
    path, weights = style_bank_path(cfg), cfg.MODEL.CLIP.WEIGHTS
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
    clip = load_configured_clip(cfg) if weights else CLIPStateDict()
    metadata = bank_metadata(cfg, clip_weights_hash(clip) if clip else "", class_names, clip.text_design)
    shards = MiningShards(path, metadata)
    channels = tower_without_weights(cfg, clip).output_shape()[cfg.MODEL.STYLE.STAGE].channels

    def mine() -> StyleBank:
        if not clip:
            raise ConfigError(f"there is no style bank at {path}, and mining one needs CLIP: set MODEL.CLIP.WEIGHTS")
        require_text_design(clip, weights)
        present, finished = _find_finished(shards)
        basis = measure_source_basis(cfg, clip) if cfg.STYLE_MINING.METRIC == "source" else None
        miner = build_miner(cfg, clip, class_names, basis)
        batches = build_mining_batches(cfg, group=miner.group, skip=finished)
        writers = [TensorboardXWriter(cfg.OUTPUT_DIR)] if comm.is_main_process() else []
        try:
            kept = [shards.read(index) for index in present if index not in batches.remaining]
            return mine_bank(miner, batches, len(batches), metadata, writers, kept, shards.write, cfg.OUTPUT_DIR)
        finally:
            for writer in writers:
                writer.close()  # or a process that ends now loses what waits to be written

    return load_or_mine(
        path, mine=mine, check=lambda bank: check_bank(bank, metadata, path, channels), clean_up=shards.remove
    )


def _find_finished(shards: MiningShards) -> tuple[list[int], set[int]]:
    """Numbers of the batches on disk that are this process's to contribute, and of those of all processes."""
    present = comm.all_gather(shards.indices())
    everywhere = set().union(*present)
    # Processes of one machine see the same files: the first of them takes them all.
    before = set().union(*present[: comm.get_rank()])
    if everywhere:
        logging.getLogger(__name__).info("Going on: %d batches were mined before", len(everywhere))
    return [index for index in present[comm.get_rank()] if index not in before], everywhere


def load_or_mine(
    path: str,
    *,
    mine: Callable[[], StyleBank],
    check: Callable[[StyleBank], Any],
    clean_up: Callable[[], None] = lambda: None,
) -> StyleBank:
    """The bank at `path`, mined and saved there where there is none yet. Runs that share a bank mine it once.

    Args:
        path: of the bank.
        mine: mines a bank; called in every process of the job.
        check: raises BankError for a bank that does not fit.
        clean_up: called in every process once a mined bank is saved.

    Returns:
        The bank, the same one in every process.

    Raises:
        BankError: the bank cannot be read or does not fit.
    """
    logger = logging.getLogger(__name__)
    with ExitStack() as held:
        if not _exists(path):
            _lock_together(path, held)
        if _exists(path):  # or another run has mined it meanwhile
            bank = StyleBank.load(path)
            check(bank)
            logger.info("Loaded %d styles of %d classes from %s", len(bank), len(bank.counts()), path)
            return bank
        logger.info("No style bank at %s yet: mining one", path)
        bank = mine()
        if comm.is_main_process():
            bank.save(path)
            logger.info("Saved %d styles of %d classes to %s", len(bank), len(bank.counts()), path)
        comm.synchronize()
        clean_up()
        return bank


def _exists(path: str) -> bool:
    return comm.all_gather(os.path.isfile(path))[0]  # the first process decides for all


def _lock_together(path: str, held: ExitStack) -> None:
    """Wait until no other run mines the bank, and keep others from it; all processes of a job wait together."""

    def is_ours() -> bool:
        if not comm.is_main_process():
            return True
        folder, name = os.path.split(path)
        try:
            os.makedirs(folder or ".", exist_ok=True)
            held.callback(FileLock(os.path.join(folder, f".{name}.lock")).close, remove=True)
        except BlockingIOError:
            return False
        except OSError:  # who cannot write there is told when the bank is saved
            pass
        return True

    for attempt in itertools.count():
        if comm.all_gather(is_ours())[0]:
            return
        if not attempt:
            logging.getLogger(__name__).info("Another run mines the style bank %s: waiting until it is there", path)
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
