"""Mining a style bank from prompts: offline, once, before training."""

from famix.mining.hook import StyleMiningHook
from famix.mining.metadata import bank_metadata, check_bank
from famix.mining.mine import build_miner, mine_bank
from famix.mining.miner import MinedBatch, StyleMiner
from famix.mining.obtain import load_or_mine, obtain_style_bank, style_bank_path
from famix.mining.prompt_table import PromptTable

__all__ = [
    "MinedBatch",
    "PromptTable",
    "StyleMiner",
    "StyleMiningHook",
    "bank_metadata",
    "build_miner",
    "check_bank",
    "load_or_mine",
    "mine_bank",
    "obtain_style_bank",
    "style_bank_path",
]
