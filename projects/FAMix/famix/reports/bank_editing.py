"""Banks made of banks: merged, filtered, and checked. What is made says in its metadata what it was made of.

The metadata's `history` is a JSON list of steps, the oldest first: {"step": "merge" or "filter", "famix_version": ...,
"inputs": [{"name", "styles", "sha256" of these, and what differed}], and for a filter what it kept}.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from famix.clip.files import design_marks
from famix.clip.weights import clip_weights_hash
from famix.mining.metadata import bank_text_design
from famix.reports.bank_looks import bank_prompts, json_list, text_list
from famix.reports.bank_statistics import require_compatible
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError
from famix.utils.messages import did_you_mean, first_few

__all__ = ["HISTORY", "Selection", "filter_bank", "find_problems", "merge_banks"]

HISTORY = "history"
"""Key of the metadata."""

_PROMPT_ID, _BATCH_ID = "prompt_id", "batch_id"
_LOSSES = ("initial_loss", "final_loss")
_HIGHEST_LOSS = 2.0  # of 1 - cosine similarity


@dataclass(frozen=True)
class Selection:
    """Which styles stay. What is empty or None does not select.

    Attributes:
        classes: names of classes; "unlabelled" for those of patches without a class.
        prompts: texts of which a style's prompt must contain one, e.g. "foggy".
        max_loss: highest cosine loss after mining.
    """

    classes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    max_loss: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What it selects by, without what it does not."""
        plain = {"classes": list(self.classes), "prompts": list(self.prompts), "max_loss": self.max_loss}
        return {key: value for key, value in plain.items() if value not in ([], None)}


def merge_banks(banks: Mapping[str, StyleBank]) -> StyleBank:
    """Put the styles of banks together.

    Args:
        banks: name, for messages and the history -> bank; at least one.

    Returns:
        All styles, bank by bank. Metadata on which all agree are kept; prompts and sources are united; what differs
        stands in the history. Annotations that not all banks have are left out. Batches get numbers of their own.

    Raises:
        BankError: two banks are of different CLIPs, stages, grids or classes.
    """
    names = list(banks)
    for name in names[1:]:
        require_compatible(banks[names[0]], banks[name], (names[0], name))
    prompts = list(dict.fromkeys(text for bank in banks.values() for text in text_list(bank, "prompts")))
    common = set.intersection(*(set(bank.annotations) for bank in banks.values()))
    merged = StyleBank(_merged_metadata(banks, prompts))
    first_batch = 0
    for bank in banks.values():
        annotations = {name: values for name, values in bank.annotations.items() if name in common}
        if _PROMPT_ID in common:
            places = [prompts.index(text) for text in bank_prompts(bank)]
            annotations[_PROMPT_ID] = torch.tensor(places, dtype=torch.int64)
        if _BATCH_ID in common and len(bank):
            annotations[_BATCH_ID] = bank.annotations[_BATCH_ID] + first_batch
            first_batch = int(annotations[_BATCH_ID].max()) + 1
        merged.add(bank.class_ids, bank.mean, bank.std, annotations)
    return merged


def filter_bank(bank: StyleBank, name: str, selection: Selection) -> StyleBank:
    """Keep some of the styles of a bank.

    Args:
        bank: the styles.
        name: of the bank, for the history.
        selection: what is kept.

    Returns:
        A bank with the same metadata, and a history.

    Raises:
        BankError: no style is left, a class is unknown, or the bank does not say what is selected by.
    """
    kept = _chosen(bank, selection)
    if not kept.any():
        raise BankError(f"none of the {len(bank)} styles of {name} is left; select less strictly")
    step = {"step": "filter", **selection.to_json(), "inputs": [_identify(name, bank)]}
    filtered = StyleBank(bank.metadata | {HISTORY: _history([bank], step)})
    annotations = {key: values[kept] for key, values in bank.annotations.items()}
    filtered.add(bank.class_ids[kept], bank.mean[kept], bank.std[kept], annotations)
    return filtered


def find_problems(bank: StyleBank) -> list[str]:
    """What is wrong with a bank that could be read: none of its channels is NaN, as loading sees to that.

    Returns:
        A sentence for each problem; none where training can use the bank without surprises.
    """
    problems = [] if len(bank) else ["it has no styles"]
    names, counts = bank.class_names(), bank.counts()
    foreign = [class_id for class_id in counts if class_id >= len(names) and class_id != IGNORE_CLASS]
    if names and foreign:
        problems.append(f"it has styles of the class ids {first_few(foreign)}, but names of {len(names)} classes")
    problems += [
        f"its metadata do not say {key}" for key in ("clip_hash", "stage", "grid") if not bank.metadata.get(key)
    ]
    try:
        bank_prompts(bank)
    except BankError as error:
        problems.append(str(error))
    for key in _LOSSES:
        losses = bank.annotations.get(key, torch.zeros(0))
        strange = int((~((losses >= -1e-3) & (losses <= _HIGHEST_LOSS + 1e-3))).sum())
        if strange:
            problems.append(f"{strange} values of {key} lie outside of 0 to {_HIGHEST_LOSS:g}")
    empty = int(((bank.mean == 0).all(dim=1) & (bank.std == 0).all(dim=1)).sum())
    if empty:
        problems.append(f"{empty} styles are all zeros, which would erase a patch")
    return problems


def _merged_metadata(banks: Mapping[str, StyleBank], prompts: Sequence[str]) -> dict[str, str]:
    everything = [bank.metadata for bank in banks.values()]
    keys = dict.fromkeys(key for metadata in everything for key in metadata)
    agreed = {key: everything[0].get(key, "") for key in keys if len({entry.get(key) for entry in everything}) == 1}
    inputs = [
        {
            **_identify(name, bank),
            **{key: value for key, value in bank.metadata.items() if key not in (*agreed, "prompts", HISTORY)},
        }
        for name, bank in banks.items()
    ]
    metadata = {**agreed, HISTORY: _history(list(banks.values()), {"step": "merge", "inputs": inputs})}
    if prompts:
        metadata["prompts"] = json.dumps(list(prompts))
        metadata |= design_marks(next(filter(lambda found: found.known, map(bank_text_design, banks.values()))))
    sources = list(dict.fromkeys(text for bank in banks.values() for text in text_list(bank, "source")))
    return metadata | ({"source": json.dumps(sources)} if sources else {})


def _identify(name: str, bank: StyleBank) -> dict[str, Any]:
    styles = {"mean": bank.mean, "std": bank.std, "class_ids": bank.class_ids.float()}
    return {"name": name, "styles": len(bank), "sha256": clip_weights_hash(styles)}  # of any tensors


def _history(banks: Sequence[StyleBank], step: Mapping[str, Any]) -> str:
    before = [entry for bank in banks for entry in json_list(bank, HISTORY)]
    return json.dumps([*before, {**step, "famix_version": version("famix")}])


def _chosen(bank: StyleBank, selection: Selection) -> Tensor:
    kept = torch.ones(len(bank), dtype=torch.bool)
    if selection.classes:
        ids = {bank.class_name(class_id): class_id for class_id in (*range(len(bank.class_names())), *bank.counts())}
        for name in selection.classes:
            if name not in ids:
                raise BankError(f"the bank has no class '{name}'.{did_you_mean(name, ids)} It has: {', '.join(ids)}")
        kept &= torch.isin(bank.class_ids, torch.tensor([ids[name] for name in selection.classes]))
    if selection.prompts:
        texts = bank_prompts(bank)
        if not texts:
            raise BankError("the bank does not say its prompts; select by class, or take a bank that was mined")
        kept &= torch.tensor([any(part in text for part in selection.prompts) for text in texts])
    if selection.max_loss is not None:
        if "final_loss" not in bank.annotations:
            raise BankError("the bank does not say its losses; select by class, or take a bank that was mined")
        kept &= bank.annotations["final_loss"] <= selection.max_loss
    return kept
