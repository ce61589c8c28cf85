"""Style mining, which builds a style bank from prompts once before training."""

from famix.mining.measured import matching_noise_scale, measure_bank
from famix.mining.metadata import bank_metadata, check_bank
from famix.mining.mine import build_miner, mine_bank
from famix.mining.miner import MinedBatch, MiningSettings, PromptTable, StyleMiner
from famix.mining.obtain import load_style_bank, obtain_style_bank, style_bank_path

__all__ = [
    "MinedBatch",
    "MiningSettings",
    "PromptTable",
    "StyleMiner",
    "bank_metadata",
    "build_miner",
    "check_bank",
    "load_style_bank",
    "matching_noise_scale",
    "measure_bank",
    "mine_bank",
    "obtain_style_bank",
    "style_bank_path",
]
