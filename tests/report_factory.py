"""Reports of runs that never were."""

from collections.abc import Mapping

from famix.evaluation import Report, RunFacts, ScoredDataset, ScoredWeights

__all__ = ["fake_report"]

CLASSES = ("road", "sky")


def fake_report(
    scores: Mapping[str, float],
    *,
    method: str = "famix",
    seed: int = 1,
    weights: ScoredWeights | None = None,
    method_hash: str | None = None,
    protocol: str = "native",
    classes: tuple[str, ...] = CLASSES,
    sources: tuple[str, ...] = (),
    group: str = "",
    absent_classes: str = "skip",
) -> Report:
    """A report of mIoU alone.

    Args:
        scores: data set -> mIoU; acdc's are one group.
        method, seed, weights, method_hash: of the run; the hash is that of the method's name where None is given.
        protocol, classes: of every data set.
        sources: data sets that are no targets.
        absent_classes: rule of every data set.
        group: family of which the data sets that start with its name are conditions.
    """
    run = RunFacts(
        method=method,
        seed=seed,
        trained_on=("gta5_train",),
        weights=weights or ScoredWeights("last", "model_final.pth", "ab" * 32, 40000),
        evaluator="streaming",
        config_hash="cd" * 32,
        method_hash=method_hash or f"hash of {method}",
        date="2026-11-23T12:00:00+00:00",
        versions={"famix": "0.1.0", "torch": "2.14.1"},
    )
    data_sets = {
        name: ScoredDataset(
            heading=name.removesuffix("_val"),
            is_source=name in sources,
            group=group if group and name.startswith(group) and name not in sources else "",
            protocol=protocol,
            classes=classes,
            absent_classes=absent_classes,
        )
        for name in scores
    }
    return Report(run, data_sets, {name: {"sem_seg": {"mIoU": score}} for name, score in scores.items()})
