"""A pass that is stopped at any moment resumes and ends with the same bank."""

import logging
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from error_matching import expect_error
from famix.engine import load_config
from famix.mining import MinedBatch, StyleMiner, mine, obtain_style_bank
from famix.mining.partial_results import PartialResults
from famix.style import StyleBank
from famix.utils.errors import BankError
from run_factory import CONFIG, Workspace


def _batch(index: int, styles: int = 2) -> MinedBatch:
    ids = torch.arange(styles)
    values = torch.rand(styles, 3, generator=torch.Generator().manual_seed(index))
    return MinedBatch(index, ids, values, values + 1, ids, values[:, 0], values[:, 1])


@pytest.fixture
def partial(tmp_path: Path) -> PartialResults:
    return PartialResults(tmp_path / "bank.safetensors", {"seed": "1"})


@pytest.mark.parametrize("styles", [0, 2])
def test_batches_are_read_with_the_same_settings_only(partial: PartialResults, tmp_path: Path, styles: int) -> None:
    batch = _batch(7, styles)
    partial.write(batch)
    for name in (field.name for field in fields(MinedBatch)):
        assert torch.equal(torch.as_tensor(getattr(partial.read(7), name)), torch.as_tensor(getattr(batch, name)))
    for bank, seed, expected in (("bank", "2", []), ("other", "1", []), ("bank", "1", [7])):
        assert PartialResults(tmp_path / f"{bank}.safetensors", {"seed": seed}).indices() == expected


def test_damaged_files_are_removed(partial: PartialResults, caplog: pytest.LogCaptureFixture) -> None:
    for index in (1, 2, 3):
        partial.write(_batch(index))
    torn = partial.folder / "000002.safetensors"
    torn.write_bytes(torn.read_bytes()[:50])
    (partial.folder / ".000004.host.9.part.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.WARNING, logger="famix"):
        assert partial.indices() == [1, 3]
    assert "000002.safetensors" in caplog.text and not torn.exists()


def test_write_errors_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with expect_error(BankError, "mined batch", remedy="MODEL.STYLE.BANK"):
        PartialResults(tmp_path / "file" / "bank", {}).write(_batch(3))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path)
    with made.registered():
        yield made


@pytest.mark.parametrize(
    ("group", "metric", "mined_again"),
    [(1, "source", {3, 4, 5}), (2, "euclidean", {2, 3, 4, 5})],
)
def test_resumed_pass_gives_the_same_bank(
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    group: int,
    metric: str,
    mined_again: set[int],
) -> None:
    """Three of six batches are finished; a group that is not finished as a whole is mined again."""
    monkeypatch.setattr(mine, "batches_per_group", lambda *sizes: group)

    def mine_into(name: str) -> StyleBank:
        settings = ["DATASETS.FILES", f"['{workspace.definition}']", "MODEL.CLIP.WEIGHTS", str(workspace.clip)]
        settings += ["STYLE_MINING.METRIC", metric, "STYLE_MINING.IMS_PER_BATCH", "1"]
        settings += ["MODEL.STYLE.BANK", str(workspace.folder / name), "OUTPUT_DIR", str(workspace.folder)]
        return obtain_style_bank(load_config(str(CONFIG), settings))

    whole = mine_into("whole.safetensors")
    assert whole.annotations["batch_id"].unique().tolist() == list(range(6))
    written: list[int] = []
    write = PartialResults.write

    def stop_after_third(partial: PartialResults, batch: MinedBatch) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(batch.index)
        write(partial, batch)

    with monkeypatch.context() as stopping:
        stopping.setattr(PartialResults, "write", stop_after_third)
        with pytest.raises(KeyboardInterrupt):
            mine_into("stopped.safetensors")
    assert not (workspace.folder / "stopped.safetensors").exists() and written == [0, 1, 2]
    again: list[int] = []
    mine_batches = StyleMiner.mine_batches
    monkeypatch.setattr(
        StyleMiner,
        "mine_batches",
        lambda miner, batches: again.extend(index for index, _ in batches) or mine_batches(miner, batches),
    )
    with caplog.at_level(logging.INFO, logger="famix"):
        resumed = mine_into("stopped.safetensors")
    assert "3 finished batches" in caplog.text
    assert set(again) == mined_again
    for name in ("mean", "std", "class_ids"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name))
    assert all(torch.equal(resumed.annotations[name], values) for name, values in whole.annotations.items())
    assert not list(workspace.folder.glob("*.mining-*")), "finished batches are removed"
