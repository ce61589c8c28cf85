"""Which look a style was mined for: its prompt without the name of the class."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from famix.io import parse_json
from famix.style.bank import StyleBank
from famix.utils.errors import BankError

__all__ = ["Looks", "bank_prompts", "json_list", "looks_of", "text_list"]

_PROMPT_ID = "prompt_id"


@dataclass(frozen=True)
class Looks:
    """The looks of a bank, such as "Urban Grit style" of the prompt "Urban Grit style road".

    Attributes:
        names: L of them, in the order of the bank's prompts.
        index: (N,) int64, look of every style.
    """

    names: tuple[str, ...]
    index: Tensor


def json_list(bank: StyleBank, key: str) -> list[Any]:
    """An entry of a bank's metadata that is a list; empty where there is none.

    Raises:
        BankError: it is something else.
    """
    try:
        content = parse_json(bank.metadata.get(key, "[]"))
        if not isinstance(content, list):
            raise TypeError("it is no list")
        return content
    except (ValueError, TypeError) as error:
        raise BankError(
            f"the metadata of the bank have {bank.metadata[key]!r:.200} as {key}, expected a JSON list"
        ) from error


def text_list(bank: StyleBank, key: str) -> list[str]:
    """An entry of a bank's metadata that is a list of texts; empty where there is none.

    Raises:
        BankError: it is something else.
    """
    texts = json_list(bank, key)
    if not all(isinstance(text, str) for text in texts):
        raise BankError(f"the bank's {key} must be a JSON list of texts, got {texts!r:.200}. Mine the bank again.")
    return texts


def bank_prompts(bank: StyleBank) -> list[str]:
    """Prompts of every style of a bank, one after the other; empty where the bank does not say them.

    Raises:
        BankError: styles refer to prompts that the bank does not have.
    """
    prompts, ids = text_list(bank, "prompts"), bank.annotations.get(_PROMPT_ID)
    if ids is None or not len(ids):
        return []
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(prompts):
        raise BankError(f"styles refer to prompts from number {int(ids.min())} to {int(ids.max())} of {len(prompts)}")
    return [prompts[index] for index in ids.tolist()]


def looks_of(bank: StyleBank) -> Looks | None:
    """Find the looks of a bank.

    Args:
        bank: mined with prompts that end with the name of the class, as `famix.mining` makes them; what ends otherwise
            is a look as a whole.

    Returns:
        None where the bank does not say its prompts, as measured and released ones.
    """
    prompts = bank_prompts(bank)
    if not prompts:
        return None
    names = {class_id: bank.class_name(class_id) for class_id in bank.counts()}
    looks = [
        prompt.removesuffix(f" {names[class_id]}")
        for prompt, class_id in zip(prompts, bank.class_ids.tolist(), strict=True)
    ]
    order = {look: place for place, look in enumerate(_in_order_of_prompts(bank, looks))}
    return Looks(tuple(order), torch.tensor([order[look] for look in looks]))


def _in_order_of_prompts(bank: StyleBank, looks: list[str]) -> list[str]:
    first: dict[str, int] = {}
    for look, prompt_id in zip(looks, bank.annotations[_PROMPT_ID].tolist(), strict=True):
        first[look] = min(first.get(look, prompt_id), prompt_id)
    return sorted(first, key=first.__getitem__)
