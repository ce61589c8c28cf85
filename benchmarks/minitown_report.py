"""The tables of the town's benchmark: scores, gains over jitter and the other references, and the gap to the oracle."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from minitown_methods import CHOSEN, FAMILIES, METHODS, STRONGEST
from run_records import RunRecord
from tabulate import tabulate

from famix.reports.significance import format_p, format_spread
from famix_minitown.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.experiment import development_mean, unseen_mean

__all__ = [
    "CHOOSING_SEEDS",
    "MAX_COST",
    "UNSEEN",
    "Records",
    "Scores",
    "choose_strength",
    "class_table",
    "gain_table",
    "language_table",
    "score_table",
    "scores_of",
    "strength_table",
]

MAX_COST = 3.0
"""Points that jitter may cost on clear days, over the same method without jitter."""

CHOOSING_SEEDS = (1, 2, 3)
"""Seeds that settings are chosen on."""

UNSEEN, DEVELOPMENT, CLEAR = "unseen", "development", CONDITIONS[0]

Records = Mapping[str, Mapping[int, RunRecord]]  # method -> seed -> run
Scores = dict[str, dict[int, dict[str, float]]]  # method -> seed -> column of the table -> mIoU in percent

_REFERENCES = (CHOSEN, STRONGEST, f"noise_{CHOSEN}", "noise", "baseline")


def scores_of(records: Records) -> Scores:
    """Collect clear days, the tested conditions and their mean, and the mean of the development conditions."""
    return {
        method: {seed: _columns(record.miou) for seed, record in by_seed.items()} for method, by_seed in records.items()
    }


def _columns(miou: Mapping[str, float]) -> dict[str, float]:
    tested = {condition: value for condition, value in miou.items() if condition not in DEVELOPMENT_CONDITIONS}
    columns = {**tested, UNSEEN: unseen_mean(miou)}
    return columns | ({DEVELOPMENT: development_mean(miou)} if tested.keys() < miou.keys() else {})


def paired_gains(scores: Scores, method: str, reference: str, column: str = UNSEEN) -> list[float]:
    """Differences to a reference in points, one for every seed that both have."""
    pairs = [(own, scores.get(reference, {}).get(seed)) for seed, own in scores.get(method, {}).items()]
    return [own[column] - other[column] for own, other in pairs if other is not None and column in own]


def _column_names(scores: Scores) -> list[str]:
    return list(next(iter(next(iter(scores.values())).values())))


def score_table(scores: Scores) -> str:
    """Make the table of methods by conditions: mean and spread over the seeds."""
    columns = _column_names(scores)
    rows = [
        [
            name,
            *(format_spread([score[column] for score in by_seed.values()]) for column in columns),
            str(len(by_seed)),
        ]
        for name, by_seed in scores.items()
    ]
    return _markdown(["method", *columns, "seeds"], rows)


def choose_strength(scores: Scores, without: str) -> str | None:
    """Choose the strength of jitter for a method.

    Args:
        scores: of all runs.
        without: the method without jitter.

    Returns:
        The method with the jitter that gains most on the development conditions, of those that cost at most MAX_COST
        points on clear days; None where no run tells.
    """
    gains = {}
    for name in FAMILIES[without]:
        development, clear = (_choosing_gains(scores, name, without, column) for column in (DEVELOPMENT, CLEAR))
        if development and fmean(clear) >= -MAX_COST:
            gains[name] = fmean(development)
    return max(gains, key=gains.__getitem__) if gains else None


def _choosing_gains(scores: Scores, method: str, without: str, column: str) -> list[float]:
    kept = {
        name: {seed: by_seed[seed] for seed in CHOOSING_SEEDS if seed in by_seed} for name, by_seed in scores.items()
    }
    return paired_gains(kept, method, without, column)


def strength_table(scores: Scores) -> str:
    """Make the table of what each strength of jitter gains on the development conditions and costs on clear days."""
    rows = []
    for without, names in FAMILIES.items():
        chosen = choose_strength(scores, without)
        for name in names:
            development, clear = (_choosing_gains(scores, name, without, column) for column in (DEVELOPMENT, CLEAR))
            if development:
                cells = [format_spread(development, "+"), format_spread(clear, "+"), str(len(clear))]
                rows.append([name, without, *cells, "best" if name == chosen else ""])
    return _markdown(["method", "over", DEVELOPMENT, CLEAR, "seeds", ""], rows)


def language_table(scores: Scores) -> str:
    """Make the table of what styles add to the same training without them, the same jitter included."""
    columns = [column for column in (UNSEEN, DEVELOPMENT, CLEAR) if column in _column_names(scores)]
    rows = []
    for name, method in sorted(METHODS.items(), key=lambda item: item[1].same_without == "baseline"):  # jitter first
        reference = method.same_without
        if name in scores and reference in scores:
            cells: list[str] = []
            for column in columns:
                gains = paired_gains(scores, name, reference, column)
                cells += [format_spread(gains, "+"), format_p(gains)] if gains else ["", ""]
            rows.append([name, reference, *cells, str(len(paired_gains(scores, name, reference)))])
    return _markdown(["method", "over", *(text for column in columns for text in (column, "p")), "seeds"], rows)


def gain_table(scores: Scores) -> str:
    """Make the table of gains on the unseen conditions over each reference, and of the gap to the oracle."""
    references = [name for name in _REFERENCES if name in scores]
    rows = []
    for name in scores:
        row = [name]
        for reference in references:
            gains = paired_gains(scores, name, reference)
            row += [format_spread(gains, "+"), format_p(gains)] if name != reference and gains else ["", ""]
        rows.append([*row, gap_closed(scores, name)])
    headers = ["method", *(text for name in references for text in (f"over {name}", "p")), "gap closed"]
    return _markdown(headers, rows)


def gap_closed(scores: Scores, name: str) -> str:
    """(method - baseline) / (oracle - baseline), of means over the seeds; nothing with jitter, which the oracle lacks."""
    if not {"baseline", "oracle"} <= scores.keys() or "jitter" in name:
        return ""
    gap = fmean(paired_gains(scores, "oracle", "baseline"))
    return f"{100 * fmean(paired_gains(scores, name, 'baseline')) / gap:.0f} %" if gap > 0 else "no gap"


def class_table(records: Mapping[int, RunRecord]) -> str:
    """Make the table of the classes' IoU on clear days, mean over the seeds."""
    values: dict[str, list[float]] = {}
    for record in records.values():
        for name, value in record.scores.get(CLEAR, {}).get("IoU", {}).items():
            values.setdefault(name, []).append(value)
    return _markdown(["class", "IoU"], [[name, f"{fmean(found):.1f}"] for name, found in values.items()])


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
