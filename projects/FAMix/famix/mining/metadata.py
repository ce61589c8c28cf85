"""Metadata of style banks: written by mining, and compared with the config when a bank is loaded."""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from detectron2.config import CfgNode

from famix.clip import OPENAI_TEXT, TextDesign, check_templates
from famix.clip.files import design_marks, design_of_marks
from famix.mining.miner import PromptTable
from famix.style.bank import StyleBank
from famix.utils.errors import BankError

# A bank with a different value of these cannot serve the config; a difference in other keys is a warning.
_BINDING = {
    "clip_hash": "Set MODEL.CLIP.WEIGHTS to the CLIP of the bank",
    "stage": "Set MODEL.STYLE.STAGE to the stage of the bank",
    "grid": "Set MODEL.STYLE.GRID to the grid of the bank",
    "class_names": "Use a source dataset with the classes of the bank",
}
_SETTINGS = (
    "pool_size",
    "steps",
    "lr",
    "momentum",
    "weight_decay",
    "metric",
    "parametrization",
    "dtype",
    "seed",
    "max_batches",
)
_MINE = "or mine a new bank: remove the file, or set MODEL.STYLE.BANK to a new one."


def bank_metadata(
    cfg: CfgNode, clip_hash: str, class_names: Sequence[str], text_design: TextDesign = OPENAI_TEXT
) -> dict[str, str]:
    """Return the metadata of the bank that a config would mine.

    Args:
        cfg: the effective config.
        clip_hash: hash of the CLIP weights, see `clip_weights_hash`; "" if unknown, which is never compared.
        class_names: class names of the source dataset.
        text_design: design of the CLIP's text tower; unknown properties become "", which is never compared.

    Returns:
        Strings; lists are in JSON.
    """
    mining = cfg.STYLE_MINING
    return {
        "clip_hash": clip_hash,
        **design_marks(text_design),  # activation and causal
        "stage": cfg.MODEL.STYLE.STAGE,
        "grid": json.dumps(list(cfg.MODEL.STYLE.GRID)),
        "class_names": json.dumps(list(class_names)),
        "prompts": json.dumps(PromptTable(class_names, mining.STYLES).prompts),  # indexed by the annotation prompt_id
        "templates": json.dumps(list(check_templates(mining.TEMPLATES))),
        **{key: str(mining[key.upper()]) for key in _SETTINGS},
        "images_per_batch": str(mining.IMS_PER_BATCH),
        "crop_size": json.dumps(list(cfg.INPUT.CROP.SIZE)),
        "source": json.dumps(list(cfg.DATASETS.TRAIN)),
        "famix_version": version("famix"),
    }


def check_bank(bank: StyleBank, expected: Mapping[str, str], path: str, num_channels: int) -> None:
    """Reject a bank of a different network, stage, grid or class set; warn about other differences.

    Args:
        bank: the loaded bank.
        expected: `bank_metadata` of the config.
        path: path of the bank, for messages.
        num_channels: channels of the stage that the config restyles.

    Raises:
        BankError: the bank cannot serve the config.
    """
    logger = logging.getLogger(__name__)
    for key, remedy in _BINDING.items():
        got, wanted = bank.metadata.get(key, "nothing"), expected[key]
        if key not in bank.metadata and key == "clip_hash":  # as in banks of the reference implementation
            logger.warning("Style bank '%s' does not name the CLIP it was mined with.", path)
        elif got != wanted and wanted:
            raise BankError(f"{key} of style bank '{path}' must be {wanted}, got {got}. {remedy}, {_MINE}")
    mined, used = bank_text_design(bank), design_of_marks(expected)
    if mined.known and used.or_else(mined) != mined:
        raise BankError(
            f"text tower of style bank '{path}' must be {used}, got {mined}. Set MODEL.CLIP.ARCHITECTURE to that of the "
            f"bank, {_MINE}"
        )
    if bank.num_channels != num_channels:
        raise BankError(
            f"style bank '{path}' must have styles of {num_channels} channels, the width of stage {expected['stage']}, got "
            f"{len(bank)} of {bank.num_channels}. {_BINDING['clip_hash']}, {_MINE}"
        )
    compared = {*_BINDING, *design_marks(mined), "famix_version"}
    differences = [
        f"{key} {_short(bank.metadata[key])} (config: {_short(value)})"
        for key, value in expected.items()
        if key not in compared and bank.metadata.get(key, value) != value
    ]
    if differences:
        logger.warning("Style bank '%s' was mined with different settings: %s.", path, "; ".join(differences))


def bank_text_design(bank: StyleBank) -> TextDesign:
    """Return the design of the text tower that encoded the bank's prompts; unknown for a bank without prompts.

    Banks of version 0.1 do not record it: they were mined with OpenAI's.
    """
    return design_of_marks(bank.metadata).or_else(OPENAI_TEXT) if "prompts" in bank.metadata else TextDesign()


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
