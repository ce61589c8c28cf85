"""What a style bank says of itself, and whether that is what the config asks for.

Metadata, all strings (JSON where noted): clip_hash, activation and causal (of the text tower), stage, grid (JSON [rows,
cols]), class_names (JSON), pool_size, prompts (JSON, indexed by the annotation prompt_id), templates (JSON), steps, lr,
momentum, weight_decay, metric, dtype, seed, images_per_batch, max_batches, crop_size (JSON), source (JSON list of
datasets) and famix_version.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from importlib.metadata import version

from detectron2.config import CfgNode

from famix.clip import OPENAI_TEXT, TextDesign, check_templates
from famix.clip.files import design_marks, design_of_marks
from famix.mining.prompt_table import PromptTable
from famix.style.bank import StyleBank
from famix.utils.errors import BankError

__all__ = ["bank_metadata", "bank_text_design", "check_bank"]

# A bank that differs in these cannot serve the config, whoever wants it to.
_BINDING = {
    "clip_hash": "set MODEL.CLIP.WEIGHTS to the CLIP that the bank was mined with",
    "stage": "set MODEL.STYLE.STAGE to the bank's",
    "grid": "set MODEL.STYLE.GRID to the bank's",
    "class_names": "use a source data set with the bank's classes",
}
_MINE_ANEW = "or mine another bank: remove the file, or name a new one in MODEL.STYLE.BANK"


def bank_metadata(
    cfg: CfgNode, clip_hash: str, class_names: Sequence[str], text_design: TextDesign = OPENAI_TEXT
) -> dict[str, str]:
    """Metadata of the bank that a config would mine.

    Args:
        cfg: the effective config.
        clip_hash: of the CLIP weights, see `clip_weights_hash`; "" where they are unknown, which is never compared.
        class_names: of the source data set.
        text_design: of the CLIP's text tower; unknown properties become "", which is never compared.

    Returns:
        The strings listed in the module's docstring.
    """
    mining = cfg.STYLE_MINING
    return {
        "clip_hash": clip_hash,
        **design_marks(text_design),
        "stage": cfg.MODEL.STYLE.STAGE,
        "grid": json.dumps(list(cfg.MODEL.STYLE.GRID)),
        "class_names": json.dumps(list(class_names)),
        "prompts": json.dumps(PromptTable(class_names, mining.STYLES).prompts),
        "templates": json.dumps(list(check_templates(mining.TEMPLATES))),
        "pool_size": str(mining.POOL_SIZE),
        "steps": str(mining.STEPS),
        "lr": str(mining.LR),
        "momentum": str(mining.MOMENTUM),
        "weight_decay": str(mining.WEIGHT_DECAY),
        "metric": mining.METRIC,
        "dtype": mining.DTYPE,
        "seed": str(mining.SEED),
        "images_per_batch": str(mining.IMS_PER_BATCH),
        "max_batches": str(mining.MAX_BATCHES),
        "crop_size": json.dumps(list(cfg.INPUT.CROP.SIZE)),
        "source": json.dumps(list(cfg.DATASETS.TRAIN)),
        "famix_version": version("famix"),
    }


def check_bank(bank: StyleBank, expected: Mapping[str, str], path: str, num_channels: int) -> None:
    """Refuse a bank that was mined for another network, stage, grid or class set; warn of other differences.

    Args:
        bank: the bank that was loaded.
        expected: what `bank_metadata` says of the config.
        path: of the bank, for messages.
        num_channels: of the stage that the config restyles.

    Raises:
        BankError: the bank cannot serve the config; names both values and the remedy.
    """
    for key, remedy in _BINDING.items():
        got, wanted = bank.metadata.get(key, "nothing"), expected[key]
        if key not in bank.metadata and key == "clip_hash":  # the released program's banks do not have it
            logging.getLogger(__name__).warning("Style bank %s does not say which CLIP it was mined with.", path)
        elif got != wanted and wanted:
            raise BankError(
                f"style bank {path} was mined for {key} {got}, the config asks for {wanted}; {remedy}, {_MINE_ANEW}"
            )
    mined, used = bank_text_design(bank), design_of_marks(expected)
    if mined.known and used.or_else(mined) != mined:
        raise BankError(
            f"style bank {path} was mined with a text tower of {mined}, MODEL.CLIP.ARCHITECTURE asks for {used}; set "
            f"MODEL.CLIP.ARCHITECTURE to that of the bank, {_MINE_ANEW}"
        )
    if bank.num_channels != num_channels:
        raise BankError(
            f"style bank {path} holds {len(bank)} styles of {bank.num_channels} channels, stage {expected['stage']} of "
            f"the backbone has {num_channels}; {_BINDING['clip_hash']}, {_MINE_ANEW}"
        )
    compared = {*_BINDING, *design_marks(mined), "famix_version"}
    others = [key for key in expected if key not in compared]
    differences = [
        f"{key} {_short(bank.metadata[key])} (config: {_short(expected[key])})"
        for key in others
        if bank.metadata.get(key, expected[key]) != expected[key]
    ]
    if differences:
        logging.getLogger(__name__).warning(
            "Style bank %s is used as it is, although it was mined with %s.", path, "; ".join(differences)
        )


def bank_text_design(bank: StyleBank) -> TextDesign:
    """Return the design of the text tower that read a bank's prompts; unknown for a bank without prompts.

    Banks of version 0.1 do not say it: they were mined with OpenAI's.
    """
    return design_of_marks(bank.metadata).or_else(OPENAI_TEXT) if "prompts" in bank.metadata else TextDesign()


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
