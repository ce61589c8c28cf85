"""Statistics and problems of style banks, and banks made by merging and filtering.

A style word is a style's prompt without its class name, e.g. "foggy" for the prompt "foggy road".

The metadata of a merged or filtered bank contains a `history`, a JSON list of steps from oldest to newest: {"step": "merge"
or "filter", "famix_version": ..., "inputs": [{"name", "styles", "sha256" of the styles, and differing metadata}], and the
conditions of a filter}.

Shapes: N styles with C channels. A style is a point with 2C coordinates, its means followed by its standard deviations.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

import famix
from famix.clip import clip_weights_hash
from famix.clip.files import design_marks
from famix.io import parse_json
from famix.mining.metadata import bank_text_design
from famix.style.bank import StyleBank
from famix.style.dominant import IGNORE_CLASS
from famix.utils.errors import BankError
from famix.utils.messages import did_you_mean, first_few

HISTORY = "history"  # metadata key

T = TypeVar("T")

_PROMPT_ID, _BATCH_ID = "prompt_id", "batch_id"
_HIGHEST_LOSS = 2.0  # maximum of 1 - cosine similarity
_FLOOR = 0.05  # of the mean spread; coordinates with a smaller spread would dominate the distance


def json_list(bank: StyleBank, key: str, kind: type[T]) -> list[T]:
    """Return a metadata entry that is a JSON list of one type (str or dict), or [] if it is missing.

    Raises:
        BankError: the entry is malformed.
    """
    try:
        content = parse_json(bank.metadata.get(key, "[]"))
        if isinstance(content, list) and all(isinstance(entry, kind) for entry in content):
            return content
    except ValueError:
        pass
    raise BankError(
        f"The bank's '{key}' must be a JSON list of type {kind.__name__}, got {bank.metadata[key]!r:.200}. Mine the bank "
        "again."
    )


def bank_prompts(bank: StyleBank) -> list[str]:
    """Return the prompt of each style, or [] for a bank without prompts.

    Raises:
        BankError: styles refer to missing prompts.
    """
    prompts, ids = json_list(bank, "prompts", str), bank.annotations.get(_PROMPT_ID)
    if ids is None or not len(ids):
        return []
    if not 0 <= int(ids.min()) <= int(ids.max()) < len(prompts):
        raise BankError(
            f"The bank's '{_PROMPT_ID}' values must be in [0, {len(prompts) - 1}], got {int(ids.min())} to {int(ids.max())}. "
            "Mine the bank again."
        )
    return [prompts[index] for index in ids.tolist()]


def class_groups(bank: StyleBank) -> dict[str, Tensor]:
    """Return a mapping from class name to an (N,) bool mask of its styles, ordered by class id."""
    return {bank.class_name(class_id): bank.class_ids == class_id for class_id in bank.counts()}


def word_groups(bank: StyleBank) -> dict[str, Tensor]:
    """Return a mapping from style word to an (N,) bool mask of its styles, in the order of the prompts.

    A prompt that does not end in its class name is itself the style word. A bank without prompts has no groups.
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
    """Return the (N, 2C) float32 means and standard deviations of the styles."""
    return torch.cat([bank.mean, bank.std], dim=1)


def group_statistics(bank: StyleBank, chosen: Tensor) -> dict[str, float]:
    """Compute statistics of the styles in an (N,) bool mask with at least one style.

    Returns:
        "styles" is their number. "loss before" and "after" are the mean cosine losses, if known. "spread" is the RMS
        distance of the styles from their mean relative to the RMS of the mean, or NaN for a single style. "negative" is
        the number of styles with a negative standard deviation in any channel, which the optimizer permits.
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
    """Compute the (N,) distances of the styles from the source patches of their classes.

    The distance is the root mean square over all coordinates of the difference from the mean source patch, in units of the
    standard deviation among the source patches. The source patches thus have a distance of about 1. Classes with fewer
    than two source patches are compared with all patches.

    Args:
        bank: bank of N styles.
        own: statistics of source patches (famix-bank measure), computed with the same CLIP, stage and grid.

    Raises:
        BankError: the banks are incompatible, or `own` has fewer than two styles.
    """
    require_compatible(bank, own, ("the bank", "the measured bank"))
    if len(own) < 2:
        raise BankError(f"The measured bank must contain at least 2 styles, got {len(own)}. Measure more images.")
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
    """Raise BankError unless two banks share the same CLIP, text tower, stage, grid, classes and channels."""
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
                f"{names[0]} and {names[1]} differ in {key}: {expected} and {found}. Combine only banks with the same CLIP, "
                "stage, grid and classes."
            )


def merge_banks(banks: Mapping[str, StyleBank]) -> StyleBank:
    """Merge the styles of one or more named banks in the given order.

    Metadata shared by all banks is kept, other metadata is moved to the history, and prompts and sources are combined.
    Only annotations that all banks have are kept. Batches are renumbered.

    Raises:
        BankError: the banks are incompatible, see `require_compatible`.
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
    """Keep the styles of a bank that meet all conditions. The history of the result names the bank.

    Args:
        bank: bank to filter.
        name: name of the bank.
        classes: class names, or "unlabelled" for patches without a class. If empty, all classes are kept.
        prompts: texts, at least one of which must occur in a style's prompt. If empty, all prompts are kept.
        max_loss: maximum cosine loss after mining. None sets no limit.

    Raises:
        BankError: no style is left, a class is unknown, or the bank lacks the information for a condition.
    """
    kept = torch.ones(len(bank), dtype=torch.bool)
    if classes:
        ids = {bank.class_name(class_id): class_id for class_id in (*range(len(bank.class_names())), *bank.counts())}
        for one in classes:
            if one not in ids:
                raise BankError(
                    f"--class must be a class in the bank, got '{one}'.{did_you_mean(one, ids)} Choose from {', '.join(ids)}."
                )
        kept &= torch.isin(bank.class_ids, torch.tensor([ids[one] for one in classes]))
    if prompts:
        texts = bank_prompts(bank)
        if not texts:
            raise BankError("--prompt requires a mined bank with prompts. Use --class instead.")
        kept &= torch.tensor([any(part in text for part in prompts) for text in texts])
    if max_loss is not None:
        if "final_loss" not in bank.annotations:
            raise BankError("--max-loss requires a mined bank with losses. Use --class instead.")
        kept &= bank.annotations["final_loss"] <= max_loss
    if not kept.any():
        raise BankError(f"None of the {len(bank)} styles in '{name}' meets all conditions. Relax the conditions.")
    conditions = {"classes": list(classes), "prompts": list(prompts), "max_loss": max_loss}
    step = {"step": "filter", **{key: value for key, value in conditions.items() if value not in ([], None)}}
    filtered = StyleBank(bank.metadata | {HISTORY: _history([bank], step | {"inputs": [_identify(name, bank)]})})
    annotations = {key: values[kept] for key, values in bank.annotations.items()}
    filtered.add(bank.class_ids[kept], bank.mean[kept], bank.std[kept], annotations)
    return filtered


def find_problems(bank: StyleBank) -> list[str]:
    """Describe the problems of a loaded bank with finite values. Returns [] for a sound bank."""
    problems = [] if len(bank) else ["it has no styles"]
    names = bank.class_names()
    foreign = [class_id for class_id in bank.counts() if class_id >= len(names) and class_id != IGNORE_CLASS]
    if names and foreign:
        problems.append(f"it has styles with class ids {first_few(foreign)}, but only {len(names)} class names")
    problems += [f"its metadata lacks '{key}'" for key in ("clip_hash", "stage", "grid") if not bank.metadata.get(key)]
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
    return {"name": name, "styles": len(bank), "sha256": clip_weights_hash(styles)}  # works for any tensors


def _history(banks: Iterable[StyleBank], step: Mapping[str, Any]) -> str:
    before = [entry for bank in banks for entry in json_list(bank, HISTORY, dict)]
    return json.dumps([*before, {**step, "famix_version": famix.__version__}])
