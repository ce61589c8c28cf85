"""Report on the town's benchmark: scores, gains vs. jitter and other references, and the gap to the oracle."""

from collections.abc import Mapping
from statistics import fmean

from parts.common import Needs

from famix.evaluation.counting.scores import SEEN as SEEN_CLASSES
from famix.evaluation.counting.scores import UNSEEN as UNSEEN_CLASSES
from famix.reports.tables import format_p, format_spread
from famix_minitown.rendering.conditions import CONDITIONS, DEVELOPMENT_CONDITIONS
from famix_minitown.runs.experiment import development_mean, unseen_mean
from famix_minitown.runs.study import markdown
from studies.recorded import Records, describe_classes, describe_records
from studies.town_methods import CHOSEN, CONTROLS, METHODS, STRONGEST

MAX_COST = 1.5  # maximum loss on clear days in points, relative to the baseline
CHOOSING_SEEDS = (1, 2, 3)  # seeds used to choose settings
UNSEEN, DEVELOPMENT, CLEAR = "unseen", "development", CONDITIONS[0]
REFERENCES = (CHOSEN, "jitter08half", STRONGEST, f"noise_{CHOSEN}", "baseline")

Scores = dict[str, dict[int, dict[str, float]]]  # method -> seed -> column of the table -> mIoU in percent


def write_report(records: Records, command: str) -> str:
    """Return the report on all runs in Markdown. `command` is the command line that prints it."""
    scores = scores_of(records)
    parts = [
        "# The miniature town",
        f"Printed by `{command}`:",
        describe_records(records),
        f"mIoU in percent; {describe_classes(records)}. Mean ± standard deviation (n - 1) over the seeds. `unseen` is the mean over the "
        f"tested conditions except {CONDITIONS[0]}. `development` is the mean over the conditions used to choose "
        f"settings: {', '.join(DEVELOPMENT_CONDITIONS)}.",
        "Gains are in points and paired by seed, with p-values of the two-sided paired t-test.",
        "## Styles vs. the same training without styles",
        language_table(scores),
        "## Scores",
        score_table(scores),
        *split_section(records),
        *control_section(scores),
        "## Gains on the unseen conditions",
        "Gap closed: gain vs. the baseline as a share of the oracle's gain, for methods without jitter.",
        gain_table(scores),
    ]
    scales = [
        f"{record.settings['config'].get(Needs.NOISE_SCALE.value, 1.0):.3f} (seed {seed})"
        for seed, record in records.get("noise", {}).items()
    ]
    if scales:
        parts.append(f"MODEL.STYLE.NOISE_SCALE of `noise`, matched to the styles of `famix`: {', '.join(scales)}.")
    if "baseline" in records:
        values: dict[str, list[float]] = {}
        for record in records["baseline"].values():
            for name, value in record.scores.get(CLEAR, {}).get("IoU", {}).items():
                values.setdefault(name, []).append(value)
        rows = [[name, f"{fmean(found):.1f}"] for name, found in values.items()]
        parts += [f"IoU of the baseline on {CLEAR}, mean over the seeds:", markdown(["class", "IoU"], rows)]
    return "\n\n".join(parts) + "\n"


def scores_of(records: Records) -> Scores:
    """Collect the mIoU in each tested condition, the unseen mean, and the development mean."""

    def columns(miou: Mapping[str, float]) -> dict[str, float]:
        tested = {condition: value for condition, value in miou.items() if condition not in DEVELOPMENT_CONDITIONS}
        development = {DEVELOPMENT: development_mean(miou)} if tested.keys() < miou.keys() else {}
        return {**tested, UNSEEN: unseen_mean(miou), **development}

    return {name: {seed: columns(run.miou) for seed, run in by_seed.items()} for name, by_seed in records.items()}


def paired_gains(scores: Scores, method: str, reference: str, column: str = UNSEEN) -> list[float]:
    """Return the differences from a reference in points, one for each common seed."""
    pairs = [(own, scores.get(reference, {}).get(seed)) for seed, own in scores.get(method, {}).items()]
    return [own[column] - other[column] for own, other in pairs if other is not None and column in own]


def column_names(scores: Scores) -> list[str]:
    """Return the score columns of the first run."""
    return list(next(iter(next(iter(scores.values())).values())))


def score_table(scores: Scores) -> str:
    """Return a table with the mean and spread over the seeds for each method and condition."""
    columns = column_names(scores)
    rows = [
        [name, *(format_spread([run[column] for run in by_seed.values()]) for column in columns), str(len(by_seed))]
        for name, by_seed in scores.items()
    ]
    return markdown(["method", *columns, "seeds"], rows)


def split_section(records: Records) -> list[str]:
    """Return the mIoU over the classes with and without labels in training, if runs leave classes unlabeled."""
    rows, unlabeled = [], set()
    for name, by_seed in records.items():
        runs = [run for run in by_seed.values() if all(SEEN_CLASSES in score for score in run.scores.values())]
        cells = []
        for metric in (SEEN_CLASSES, UNSEEN_CLASSES) if runs else ():
            miou = [{condition: score[metric] for condition, score in run.scores.items()} for run in runs]
            cells += [format_spread([one[CLEAR] for one in miou]), format_spread([unseen_mean(one) for one in miou])]
        if runs:
            rows.append([name, *cells, str(len(runs))])
            unlabeled |= {
                str(class_name) for run in runs for class_name in run.settings["config"]["DATASETS.UNLABELED"]
            }
    if not rows:
        return []
    headers = [f"{classes} classes, {where}" for classes in ("labeled", "unlabeled") for where in (CLEAR, UNSEEN)]
    return [
        "## Classes without labels in training",
        f"mIoU over the classes with labels in training and over those without: {', '.join(sorted(unlabeled))}.",
        markdown(["method", *headers, "seeds"], rows),
    ]


def control_gains(scores: Scores, control: str) -> tuple[list[float], list[float]]:
    """Return the gains over the baseline on the development conditions and on clear days for each of CHOOSING_SEEDS."""
    kept = {name: {seed: runs[seed] for seed in CHOOSING_SEEDS if seed in runs} for name, runs in scores.items()}
    return paired_gains(kept, control, "baseline", DEVELOPMENT), paired_gains(kept, control, "baseline", CLEAR)


def choose_control(scores: Scores) -> str | None:
    """Choose the augmentation without language.

    Returns:
        The control with the largest gain on the development conditions among those that cost at most MAX_COST points on
        clear days, or None if no run qualifies.
    """
    gains = {}
    for name in CONTROLS:
        development, clear = control_gains(scores, name)
        if development and fmean(clear) >= -MAX_COST:
            gains[name] = fmean(development)
    return max(gains, key=gains.__getitem__) if gains else None


def control_section(scores: Scores) -> list[str]:
    """Return the gain on the development conditions and the cost on clear days of each control, if any was run."""
    rows, chosen = [], choose_control(scores)
    for name in CONTROLS:
        development, clear = control_gains(scores, name)
        if development:
            cells = [format_spread(development, "+"), format_spread(clear, "+"), str(len(clear))]
            rows.append([name, *cells, "chosen" if name == chosen else ""])
    if not rows:
        return []
    return [
        "## Augmentation without language",
        f"Gains vs. the baseline over seeds {', '.join(map(str, CHOOSING_SEEDS))}. The chosen one has the largest gain on the "
        f"development conditions among those that cost at most {MAX_COST} points on {CONDITIONS[0]}.",
        markdown(["method", DEVELOPMENT, CLEAR, "seeds", ""], rows),
    ]


def language_table(scores: Scores) -> str:
    """Return a table of the gains from styles vs. the same training without styles, with equal jitter."""
    columns = [column for column in (UNSEEN, DEVELOPMENT, CLEAR) if column in column_names(scores)]
    rows = []
    for name, method in sorted(METHODS.items(), key=lambda item: item[1].same_without == "baseline"):  # jitter first
        reference = method.same_without
        if name in scores and reference in scores:
            gains = {column: paired_gains(scores, name, reference, column) for column in columns}
            cells = [
                text for by in gains.values() for text in ((format_spread(by, "+"), format_p(by)) if by else ("", ""))
            ]
            rows.append([name, reference, *cells, str(len(gains[UNSEEN]))])
    return markdown(["method", "vs.", *(text for column in columns for text in (column, "p")), "seeds"], rows)


def gain_table(scores: Scores) -> str:
    """Return a table of the gains on the unseen conditions vs. each reference, and the share of the oracle's gap."""
    references = [name for name in REFERENCES if name in scores]
    rows = []
    for name in scores:
        row = [name]
        for reference in references:
            gains = paired_gains(scores, name, reference)
            row += [format_spread(gains, "+"), format_p(gains)] if name != reference and gains else ["", ""]
        rows.append([*row, gap_closed(scores, name)])
    headers = ["method", *(text for name in references for text in (f"vs. {name}", "p")), "gap closed"]
    return markdown(headers, rows)


def gap_closed(scores: Scores, name: str) -> str:
    """Return (method - baseline) / (oracle - baseline) of the means, or "" with jitter, which the oracle lacks."""
    if not {"baseline", "oracle"} <= scores.keys() or "jitter" in name:
        return ""
    gap = fmean(paired_gains(scores, "oracle", "baseline"))
    return f"{100 * fmean(paired_gains(scores, name, 'baseline')) / gap:.0f} %" if gap > 0 else "no gap"
