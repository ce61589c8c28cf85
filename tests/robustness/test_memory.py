"""Memory does not grow with the iterations of a training; `make soak` measures two thousand."""

from pathlib import Path

import pytest
from detectron2.engine import HookBase

from famix.engine import hooks
from run_factory import Workspace, train_net_with


class Lengths(HookBase):
    """Records how many values of every scalar are kept at the end."""

    found: dict[str, int]

    def after_train(self) -> None:
        histories = self.trainer.storage.histories()
        type(self).found = {name: len(history.values()) for name, history in histories.items()}


def test_trainings_keep_a_bounded_number_of_scalars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectron2 keeps a million values of each, half a kilobyte an iteration in all."""
    workspace, module = Workspace(tmp_path), train_net_with(Lengths(), monkeypatch)
    monkeypatch.setattr(hooks, "_MAX_HISTORY", 3)
    with workspace.registered():
        module.run(workspace.parse("run", "SOLVER.MAX_ITER", "6", "MODEL.STYLE.STRATEGY", "noise"))
    assert Lengths.found["total_loss"] == 3 and max(Lengths.found.values()) == 3
