"""When the source's validation set is scored, and which weights are kept."""

import math
from collections.abc import Iterator

import pytest
from detectron2.engine import TrainerBase

from error_matching import expect_error
from famix.engine import SourceValidation
from famix.utils.errors import ConfigError


class Run(TrainerBase):
    """A training that does nothing but call the hook."""

    def __init__(self, scores: list[float], period: int) -> None:
        super().__init__()
        self.scores: Iterator[float] = iter(scores)
        self.scored: list[int] = []
        self.kept: list[tuple[int, float]] = []
        self.hook = SourceValidation(
            "gta5_val", period, evaluate=self.evaluate, keep=lambda done, score: self.kept.append((done, score))
        )
        self.register_hooks([self.hook])

    def run_step(self) -> None:
        """Nothing."""

    def evaluate(self) -> float:
        self.scored.append(self.steps)
        return next(self.scores)

    @property
    def steps(self) -> int:
        return self.storage.iter


def test_scores_every_period_and_after_the_last_iteration_and_keeps_the_best() -> None:
    run = Run([10.0, 30.0, 30.0, 20.0], period=3)
    run.train(0, 10)
    assert run.scored == [2, 5, 8, 9]
    assert run.kept == [(3, 10.0), (6, 30.0)]  # the earlier of equal scores
    assert run.hook.state_dict() == {"scored": 10, "best": 30.0, "best_at": 6}


def test_the_last_iteration_is_scored_once() -> None:
    run = Run([10.0, 30.0], period=2)
    run.train(0, 4)
    assert run.kept == [(2, 10.0), (4, 30.0)]


def test_a_resumed_run_remembers_its_best() -> None:
    run = Run([25.0, 35.0], period=2)
    run.hook.load_state_dict({"scored": 4, "best": 30.0, "best_at": 2})
    run.train(4, 8)
    assert run.scored == [5, 7] and run.kept == [(8, 35.0)]


def test_a_checkpoint_from_before_its_score_is_scored_first() -> None:
    run = Run([31.0, 1.0, 2.0], period=2)
    run.hook.load_state_dict({"scored": 2, "best": 30.0, "best_at": 2})
    run.train(4, 8)
    assert run.kept == [(4, 31.0)] and len(run.scored) == 3


def test_a_fresh_run_scores_nothing_first() -> None:
    run = Run([1.0], period=2)
    run.train(0, 2)
    assert run.scored == [1]


def test_a_set_without_labels_is_an_error() -> None:
    with expect_error(ConfigError, "MODEL_SELECTION.SOURCE_VAL", "gta5_val", "another"):
        Run([math.nan], period=1).train(0, 1)


def test_scores_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    run = Run([10.0, 5.0], period=1)
    with caplog.at_level("INFO", logger="famix"):
        run.train(0, 2)
    assert "after 2 iterations: mIoU 5.00 on gta5_val; best 10.00 after 1." in caplog.text
    assert run.storage.history("source/gta5_val/mIoU").values() == [(10.0, 0), (5.0, 1)]
