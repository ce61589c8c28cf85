"""Style bank for a config: loaded if its file exists, otherwise mined and saved."""

import itertools
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from famix.clip import at_stage, clip_weights_hash, load_configured_clip, require_text_design
from famix.clip.build import tower_without_weights
from famix.clip.files import CLIPStateDict
from famix.data import build_mining_batches
from famix.io.atomic import FileLock
from famix.mining.measured import measure_source_basis
from famix.mining.metadata import bank_metadata, check_bank
from famix.mining.mine import build_miner, mine_bank
from famix.mining.partial_results import PartialResults
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import ConfigError
from famix.utils.messages import counted, first_few

_DEFAULT_NAME = "style_bank.safetensors"
_SECONDS_BETWEEN_ATTEMPTS = 2.0  # to lock a bank
_MOST_RISING = 0.1  # share of styles whose loss may rise without a warning


def style_bank_path(cfg: CfgNode) -> str:
    """Return the path of the bank: MODEL.STYLE.BANK, or style_bank.safetensors in OUTPUT_DIR."""
    return cfg.MODEL.STYLE.BANK or os.path.join(cfg.OUTPUT_DIR, _DEFAULT_NAME)


def obtain_style_bank(cfg: CfgNode) -> StyleBank:
    """Load the bank for a config, or mine and save it. If several runs share a bank, only one of them mines it.

    Args:
        cfg: the effective config; its datasets must be registered.

    Returns:
        The bank, identical in every process of a job. All processes must call this function.

    Raises:
        BankError: the bank is unreadable or does not fit the config.
        ConfigError: the bank is missing, and MODEL.CLIP.WEIGHTS is empty or its text tower has an unknown design.
    """
    logger = logging.getLogger(__name__)
    path = style_bank_path(cfg)
    class_names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_classes
    clip, metadata = _read_clip(cfg, class_names)
    with ExitStack() as held:
        if not _exists(path):
            _lock_together(path, held)
        if _exists(path):  # possibly mined by another run in the meantime
            bank = _load_fitting(cfg, path, clip, metadata)
            logger.info("Loaded %s from %s", bank.size, path)
            return bank
        if not clip:
            raise ConfigError(
                f"No style bank at '{path}', and MODEL.CLIP.WEIGHTS is empty, so none can be mined. Set "
                "MODEL.CLIP.WEIGHTS or MODEL.STYLE.BANK."
            )
        require_text_design(clip, cfg.MODEL.CLIP.WEIGHTS)
        logger.info("No style bank at %s yet: mining one", path)
        basis = measure_source_basis(cfg, clip) if cfg.STYLE_MINING.METRIC == "source" else None
        miner = build_miner(cfg, clip, class_names, basis)
        metadata["rectified"] = str(miner.clip.rectified).lower()
        partial = PartialResults(path, metadata)
        bank = mine_bank(
            miner,
            lambda group, finished: build_mining_batches(cfg, group=group, skip=finished),
            metadata,
            partial,
            cfg.OUTPUT_DIR,
        )
        if comm.is_main_process():
            bank.save(path)
            logger.info("Saved %s to %s", bank.size, path)
            _warn_of_few_styles(bank, cfg)
            _warn_of_rising_losses(bank, cfg)
        comm.synchronize()
        partial.remove()
        return bank


def _warn_of_few_styles(bank: StyleBank, cfg: CfgNode) -> None:
    """Warn if a style word has no style of any class, or if every class has fewer styles than there are words."""
    words, counts = cfg.STYLE_MINING.STYLES, bank.counts()
    labeled = bank.class_ids != IGNORE_CLASS
    counts.pop(IGNORE_CLASS, None)
    drawn = set((bank.annotations["prompt_id"][labeled] % len(words)).tolist())  # prompts are numbered class by class
    missing = [word for place, word in enumerate(words) if place not in drawn]
    if not missing and max(counts.values(), default=0) >= len(words):
        return
    most = cfg.STYLE_MINING.MAX_BATCHES
    logging.getLogger(__name__).warning(
        "Mining gave only %s for %s and %s.%s Each batch gives at most one style per class: lower "
        "STYLE_MINING.IMS_PER_BATCH (%d)%s to mine more batches.",
        counted(int(labeled.sum()), "style"),
        counted(len(counts), "class"),
        counted(len(words), "style word"),
        f" Words without a style: {first_few(missing, 10)}." if missing else "",
        cfg.STYLE_MINING.IMS_PER_BATCH,
        f" or raise STYLE_MINING.MAX_BATCHES ({most})" if most else "",
    )


def _warn_of_rising_losses(bank: StyleBank, cfg: CfgNode) -> None:
    """Warn if mining raised the loss of many styles, which happens if its steps are too long."""
    rose = bank.annotations["final_loss"] > bank.annotations["initial_loss"]
    if rose.float().mean() > _MOST_RISING:
        logging.getLogger(__name__).warning(
            "Mining raised the loss of %d of %s: lower STYLE_MINING.LR (%g) and mine again.",
            int(rose.sum()),
            counted(len(bank), "style"),
            cfg.STYLE_MINING.LR,
        )


def load_style_bank(cfg: CfgNode, path: str, class_names: Sequence[str]) -> StyleBank:
    """Load a bank that fits a config. Raises BankError if it is unreadable or does not fit."""
    return _load_fitting(cfg, path, *_read_clip(cfg, class_names))


def _read_clip(cfg: CfgNode, class_names: Sequence[str]) -> tuple[CLIPStateDict, dict[str, str]]:
    """Return the config's CLIP, empty if it has none, and the metadata of banks for the config."""
    clip = load_configured_clip(cfg) if cfg.MODEL.CLIP.WEIGHTS else CLIPStateDict()
    return clip, bank_metadata(cfg, clip_weights_hash(clip) if clip else "", class_names, clip.text_design)


def _load_fitting(cfg: CfgNode, path: str, clip: CLIPStateDict, metadata: dict[str, str]) -> StyleBank:
    bank = StyleBank.load(path)
    tower = at_stage(tower_without_weights(cfg, clip), cfg.MODEL.STYLE.STAGE)
    channels = tower.output_shape()[cfg.MODEL.STYLE.STAGE].channels
    check_bank(bank, metadata, path, channels, tower.rectified)
    return bank


def _exists(path: str) -> bool:
    return comm.all_gather(os.path.isfile(path))[0]  # the first process decides for all


def _lock_together(path: str, held: ExitStack) -> None:
    """Wait until no other run is mining the bank, then lock it. All processes of a job wait together."""

    def is_ours() -> bool:
        if not comm.is_main_process():
            return True
        folder, name = os.path.split(path)
        try:
            os.makedirs(folder or ".", exist_ok=True)
            held.callback(FileLock(os.path.join(folder, f".{name}.lock")).close, remove=True)
        except BlockingIOError:
            return False
        except OSError:  # an unwritable folder is reported when the bank is saved
            pass
        return True

    for attempt in itertools.count():
        if comm.all_gather(is_ours())[0]:
            return
        if not attempt:
            logging.getLogger(__name__).info("Another run is mining the style bank %s: waiting for it", path)
        time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
