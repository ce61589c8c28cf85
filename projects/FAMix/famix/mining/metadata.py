"""Metadata of style banks, written by mining and compared with the config when a bank is loaded."""

import json
import logging
from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode

import famix
from famix.clip import IMAGE, OPENAI_TEXT, TextDesign, check_templates
from famix.clip.files import design_marks, design_of_marks
from famix.mining.miner import PromptTable
from famix.style.bank import StyleBank
from famix.utils.errors import BankError
from famix.utils.messages import counted

# A bank with a different value for one of these keys is rejected; differences in other keys cause a warning.
_BINDING = {
    "clip_hash": "Set MODEL.CLIP.WEIGHTS to the bank's CLIP",
    "stage": "Set MODEL.STYLE.STAGE to the bank's stage",
    "grid": "Set MODEL.STYLE.GRID to the bank's grid",
    "class_names": "Use a source dataset with the bank's classes",
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
_MINE = "or mine a new bank by removing the file or setting MODEL.STYLE.BANK to a new path."


def bank_metadata(
    cfg: CfgNode, clip_hash: str, class_names: Sequence[str], text_design: TextDesign = OPENAI_TEXT
) -> dict[str, str]:
    """Return the metadata for the bank that a config would mine.

    Args:
        cfg: the effective config.
        clip_hash: hash of the CLIP weights (see `clip_weights_hash`), or "" if unknown. "" is never compared.
        class_names: class names of the source dataset.
        text_design: design of CLIP's text tower. Unknown properties are stored as "" and never compared.

    Returns:
        Metadata strings, with lists encoded as JSON.
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
        **({"unlabeled": json.dumps(list(cfg.DATASETS.UNLABELED))} if cfg.DATASETS.UNLABELED else {}),
        "famix_version": famix.__version__,
    }


def check_bank(
    bank: StyleBank, expected: Mapping[str, str], path: str, num_channels: int, rectified: bool | None = None
) -> None:
    """Reject a bank for a different network, stage, grid or class set, and warn about other differences.

    Args:
        bank: the loaded bank.
        expected: result of `bank_metadata` for the config.
        path: path of the bank, used in messages.
        num_channels: number of channels of the stage that the config restyles.
        rectified: whether the features of this stage are ReLU outputs; None if unknown.

    Raises:
        BankError: the bank does not fit the config.
    """
    logger = logging.getLogger(__name__)
    kind = {"true": "rectified", "false": "signed"}
    mined_in, used_in = kind.get(bank.metadata.get("rectified", "")), kind.get(str(rectified).lower())
    same_stage = bank.metadata.get("stage", expected["stage"]) == expected["stage"]  # otherwise reported below
    if same_stage and mined_in and used_in and mined_in != used_in:
        raise BankError(
            f"Style bank '{path}' has styles of {mined_in} features, but stage {expected['stage']} has {used_in} features. "
            f"{_BINDING['clip_hash']}, {_MINE}"
        )
    for key, remedy in _BINDING.items():
        if key == "clip_hash" and expected["stage"] == IMAGE:  # picture styles suit any network
            continue
        got, wanted = bank.metadata.get(key, "missing"), expected[key]
        if key not in bank.metadata and key == "clip_hash":  # as in banks of the reference implementation
            logger.warning("Style bank '%s' does not record which CLIP it was mined with.", path)
        elif got != wanted and wanted:
            raise BankError(f"{key} is {got} in style bank '{path}', but {wanted} in the config. {remedy}, {_MINE}")
    mined, used = bank_text_design(bank), design_of_marks(expected)
    if mined.known and used.or_else(mined) != mined:
        raise BankError(
            f"The text tower is {mined} in style bank '{path}', but {used} in the config. Set MODEL.CLIP.ARCHITECTURE to the "
            f"bank's architecture, {_MINE}"
        )
    if bank.num_channels != num_channels:
        raise BankError(
            f"Style bank '{path}' contains {bank.size} with {counted(bank.num_channels, 'channel')}, but stage "
            f"{expected['stage']} has {counted(num_channels, 'channel')}. {_BINDING['clip_hash']}, {_MINE}"
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
    """Return the design of the text tower that encoded the bank's prompts, or an unknown design if it has none.

    Banks of version 0.1 do not record the design; they were mined with OpenAI's.
    """
    return design_of_marks(bank.metadata).or_else(OPENAI_TEXT) if "prompts" in bank.metadata else TextDesign()


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
