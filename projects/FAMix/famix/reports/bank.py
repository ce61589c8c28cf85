"""Statistics and problems of style banks, and banks made by merging and filtering.

A style word is the prompt of a style without the name of its class, such as "foggy" of the prompt "foggy road".

The metadata of a merged or filtered bank contain a `history`, a JSON list of steps from old to new: {"step": "merge" or
"filter", "famix_version": ..., "inputs": [{"name", "styles", "sha256" of the styles, and differing metadata}], and the
selection of a filter}.

Shapes: N styles of C channels. A style is a point of 2C coordinates, its means followed by its standard deviations.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, TypeVar

import torch
from torch import Tensor

from famix.clip import clip_weights_hash
from famix.clip.files import design_marks
from famix.io import parse_json
from famix.mining.metadata import bank_text_design
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError
from famix.utils.messages import did_you_mean, first_few

HISTORY = "history"  # key of the metadata

T = TypeVar("T")

_PROMPT_ID, _BATCH_ID = "prompt_id", "batch_id"
_HIGHEST_LOSS = 2.0  # of 1 - cosine similarity
_FLOOR = 0.05  # share of the mean spread; smaller spreads of single coordinates would dominate the distance


def json_list(bank: StyleBank, key: str, kind: type[T]) -> list[T]:
    """Return a metadata entry that is a JSON list with entries of one type (str or dict); empty if it is missing.

    Raises:
        BankError: if it is malformed.
    """
    try:
        content = parse_json(bank.metadata.get(key, "[]"))
        if isinstance(content, list) and all(isinstance(entry, kind) for entry in content):
            return content
    except ValueError:
        pass
    raise BankError(
        f"the bank's {key} must be a JSON list of type {kind.__name__}, got {bank.metadata[key]!r:.200}. Mine it again."
    )


def bank_prompts(bank: StyleBank) -> list[str]:
    """Return the prompt of each style; empty for a bank without prompts.

    Raises:
        BankError: if styles refer to missing prompts.
    """
    prompts, ids = json_list(bank, "prompts", str), bank.annotations.get(_PROMPT_ID)
    if ids is None or not len(ids):
        return []
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(prompts):
        raise BankError(
            f"the bank's {_PROMPT_ID} must be in [0, {len(prompts) - 1}], got {int(ids.min())} to {int(ids.max())}. Mine "
            "the bank again."
        )
    return [prompts[index] for index in ids.tolist()]


def class_groups(bank: StyleBank) -> dict[str, Tensor]:
    """Group the styles by class: name -> (N,) bool, ordered by class id."""
    return {bank.class_name(class_id): bank.class_ids == class_id for class_id in bank.counts()}


def word_groups(bank: StyleBank) -> dict[str, Tensor]:
    """Group the styles by style word: word -> (N,) bool, in the order of the prompts.

    A prompt that does not end in the name of its class is a word as a whole. A bank without prompts has no groups.
    """
    words: dict[str, list[int]] = {}
    prompts, ids = bank_prompts(bank), bank.class_ids.tolist()
    for row, prompt in enumerate(prompts):
        words.setdefault(prompt.removesuffix(f" {bank.class_name(ids[row])}"), []).append(row)
    first = {word: int(bank.annotations[_PROMPT_ID][rows].min()) for word, rows in words.items()}
    groups = {}
    for word in sorted(words, key=first.__getitem__):
        groups[word] = torch.zeros(len(bank), dtype=torch.bool)
        groups[word][words[word]] = True
    return groups


def style_points(bank: StyleBank) -> Tensor:
    """Return (N, 2C) float32: means and standard deviations of each style."""
    return torch.cat([bank.mean, bank.std], dim=1)


def group_statistics(bank: StyleBank, chosen: Tensor) -> dict[str, float]:
    """Compute the statistics of the styles in a (N,) bool mask with at least one style.

    Returns:
        "styles", their number; "loss before" and "after", the mean cosine losses, if known; "spread", the RMS distance of
        the styles from their mean, relative to the RMS of the mean, NaN for a single style; "negative", the number of
        styles with a negative standard deviation in some channel, which the optimizer permits.
    """
    points = style_points(bank)[chosen]
    statistics: dict[str, float] = {"styles": len(points)}
    for name, key in (("loss before", "initial_loss"), ("after", "final_loss")):
        if key in bank.annotations:
            statistics[name] = float(bank.annotations[key][chosen].mean())
    center = points.mean(dim=0)
    size = float(center.square().mean().sqrt())
    spread = float((points - center).square().mean().sqrt()) / size if len(points) > 1 and size > 0 else math.nan
    return statistics | {"spread": spread, "negative": int((bank.std[chosen] < 0).any(dim=1).sum())}


def source_distance(bank: StyleBank, own: StyleBank) -> Tensor:
    """Compute (N,) distances of the styles from the source patches of their classes.

    The distance is the root mean square over all coordinates of the difference to the mean source patch, in units of the
    standard deviation among the source patches, which thus have a distance of about 1. Classes with fewer than two source
    patches are compared with all patches.

    Args:
        bank: N styles.
        own: statistics of source patches (tools/measure_bank.py) with the same CLIP, stage and grid.

    Raises:
        BankError: if the banks are incompatible, or `own` has fewer than two styles.
    """
    require_compatible(bank, own, ("the bank", "the measured bank"))
    if len(own) < 2:
        raise BankError(f"the measured bank must have at least 2 styles, got {len(own)}. Measure more images.")
    points, sources = style_points(bank), style_points(own)
    distance = torch.empty(len(bank))
    for class_id in bank.counts():
        mine = own.class_ids == class_id
        rows = sources[mine] if int(mine.sum()) > 1 else sources
        spread = rows.std(dim=0)
        spread = spread.clamp(min=_FLOOR * float(spread.square().mean().sqrt()) + torch.finfo(torch.float32).tiny)
        chosen = bank.class_ids == class_id
        distance[chosen] = ((points[chosen] - rows.mean(dim=0)) / spread).square().mean(dim=1).sqrt()
    return distance


def require_compatible(first: StyleBank, second: StyleBank, names: Sequence[str]) -> None:
    """Raise BankError unless two banks have the same CLIP, text tower, stage, grid, classes and channels."""
    keys = ("clip_hash", "stage", "grid", "class_names")
    facts = [{key: bank.metadata.get(key, "nothing") for key in keys} for bank in (first, second)]
    for bank, fact in zip((first, second), facts, strict=True):
        if bank_text_design(first).known and bank_text_design(second).known:
            fact["text tower"] = str(bank_text_design(bank))
        fact["channels"] = str(bank.num_channels)
    for key, expected in facts[0].items():
        found = facts[1][key]
        if expected != found:
            raise BankError(
                f"{key} must be equal in both banks, got {expected} in {names[0]} and {found} in {names[1]}. Combine only "
                "banks of the same CLIP, stage, grid and classes."
            )


def merge_banks(banks: Mapping[str, StyleBank]) -> StyleBank:
    """Merge the styles of one or more banks, by name, in their order.

    Metadata that are equal in all banks are kept, and others are moved to the history; prompts and sources are united.
    Only annotations of all banks are kept. Batches are renumbered.

    Raises:
        BankError: if the banks are incompatible, see `require_compatible`.
    """
    first = next(iter(banks))
    for name, bank in banks.items():
        require_compatible(banks[first], bank, (first, name))
    everything = [bank.metadata for bank in banks.values()]
    keys = dict.fromkeys(key for metadata in everything for key in metadata)
    metadata = {key: everything[0].get(key, "") for key in keys if len({entry.get(key) for entry in everything}) == 1}
    inputs = []
    for name, bank in banks.items():
        differing = {key: value for key, value in bank.metadata.items() if key not in (*metadata, "prompts", HISTORY)}
        inputs.append(_identify(name, bank) | differing)
    metadata[HISTORY] = _history(banks.values(), {"step": "merge", "inputs": inputs})
    prompts, sources = (
        list(dict.fromkeys(text for bank in banks.values() for text in json_list(bank, key, str)))
        for key in ("prompts", "source")
    )
    if prompts:
        metadata["prompts"] = json.dumps(prompts)
        metadata |= design_marks(next(design for design in map(bank_text_design, banks.values()) if design.known))
    if sources:
        metadata["source"] = json.dumps(sources)
    common = set.intersection(*(set(bank.annotations) for bank in banks.values()))
    merged, first_batch = StyleBank(metadata), 0
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


def filter_bank(
    bank: StyleBank, name: str, classes: Sequence[str] = (), prompts: Sequence[str] = (), max_loss: float | None = None
) -> StyleBank:
    """Keep the styles of a bank that meet all conditions; the history of the result names the bank.

    Args:
        bank: the styles.
        name: of the bank.
        classes: class names, "unlabelled" for patches without a class; empty for all.
        prompts: texts, one of which must be in a style's prompt; empty for all.
        max_loss: highest cosine loss after mining; None for any.

    Raises:
        BankError: if no style is left, a class is unknown, or the bank lacks the information of a condition.
    """
    kept = torch.ones(len(bank), dtype=torch.bool)
    if classes:
        ids = {bank.class_name(class_id): class_id for class_id in (*range(len(bank.class_names())), *bank.counts())}
        for one in classes:
            if one not in ids:
                raise BankError(
                    f"--class must be a class of the bank, got '{one}'.{did_you_mean(one, ids)} Choose from {', '.join(ids)}."
                )
        kept &= torch.isin(bank.class_ids, torch.tensor([ids[one] for one in classes]))
    if prompts:
        texts = bank_prompts(bank)
        if not texts:
            raise BankError("--prompt requires a mined bank with prompts. Select by --class.")
        kept &= torch.tensor([any(part in text for part in prompts) for text in texts])
    if max_loss is not None:
        if "final_loss" not in bank.annotations:
            raise BankError("--max-loss requires a mined bank with losses. Select by --class.")
        kept &= bank.annotations["final_loss"] <= max_loss
    if not kept.any():
        raise BankError(f"the selection matches none of the {len(bank)} styles of '{name}'. Select less strictly.")
    conditions = {"classes": list(classes), "prompts": list(prompts), "max_loss": max_loss}
    step = {"step": "filter", **{key: value for key, value in conditions.items() if value not in ([], None)}}
    filtered = StyleBank(bank.metadata | {HISTORY: _history([bank], step | {"inputs": [_identify(name, bank)]})})
    annotations = {key: values[kept] for key, values in bank.annotations.items()}
    filtered.add(bank.class_ids[kept], bank.mean[kept], bank.std[kept], annotations)
    return filtered


def find_problems(bank: StyleBank) -> list[str]:
    """Describe the problems of a loaded bank, whose values are finite; empty for a sound bank."""
    problems = [] if len(bank) else ["it has no styles"]
    names = bank.class_names()
    foreign = [class_id for class_id in bank.counts() if class_id >= len(names) and class_id != IGNORE_CLASS]
    if names and foreign:
        problems.append(f"it has styles of class ids {first_few(foreign)}, but only {len(names)} class names")
    problems += [f"its metadata lack {key}" for key in ("clip_hash", "stage", "grid") if not bank.metadata.get(key)]
    try:
        bank_prompts(bank)
    except BankError as error:
        problems.append(str(error))
    for key in ("initial_loss", "final_loss"):
        losses = bank.annotations.get(key, torch.zeros(0))
        outside = int((~((losses >= -1e-3) & (losses <= _HIGHEST_LOSS + 1e-3))).sum())
        if outside:
            problems.append(f"{outside} values of {key} are outside [0, {_HIGHEST_LOSS:g}]")
    empty = int(((bank.mean == 0).all(dim=1) & (bank.std == 0).all(dim=1)).sum())
    if empty:
        problems.append(f"{empty} styles are all zeros, which would erase a patch")
    return problems


def _identify(name: str, bank: StyleBank) -> dict[str, Any]:
    styles = {"mean": bank.mean, "std": bank.std, "class_ids": bank.class_ids.float()}
    return {"name": name, "styles": len(bank), "sha256": clip_weights_hash(styles)}  # accepts any tensors


def _history(banks: Iterable[StyleBank], step: Mapping[str, Any]) -> str:
    before = [entry for bank in banks for entry in json_list(bank, HISTORY, dict)]
    return json.dumps([*before, {**step, "famix_version": version("famix")}])
