"""The command that writes the page of runs, and a check of pages in a real browser where there is one."""

import importlib
import re
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from error_matching import explains, line_of_mistake
from famix.inference.loading import load_model
from famix.reports import read_results
from famix.reports.bank_page import BankView, render_bank
from famix.reports.runs import chosen_images, predict_examples, read_runs
from famix.reports.tables import format_number
from reports.banks import make_bank
from reports.pages import assert_sound
from run_factory import ROOT, Workspace, load_tool

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def runs(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The run, and the same weights scored as of another seed by another method."""
    other = tmp_path_factory.mktemp("other") / "again"
    shutil.copytree(workspace.folder / "run", other)
    results = (other / "results.json").read_text()
    facts = {'"method": "run"': '"method": "again"', '"seed": 1': '"seed": 2', '"method_hash": "': '"method_hash": "0'}
    for old, new in facts.items():
        assert old in results
        results = results.replace(old, new)
    (other / "results.json").write_text(results)
    return [workspace.folder / "run", other]


@pytest.fixture(scope="module")
def page_file(workspace: Workspace, runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of both runs with two examples of every dataset."""
    file = tmp_path_factory.mktemp("pages") / "report.html"
    with workspace.registered():
        load_tool("report").main([*map(str, runs), "--output", str(file), "--device", "cpu"])
    return file


def test_page_of_real_runs(page_file: Path, runs: list[Path]) -> None:
    page = assert_sound(page_file.read_text())
    for folder in runs:
        results = read_results(folder / "results.json")
        for heading, name in (("tiny_night", "tiny_night"), ("source: tiny_val", "tiny_val")):
            score = format_number(results[name]["sem_seg"]["mIoU"])
            assert page.column(heading, 1)[folder.name].removesuffix(" ★") == score
    assert len(page.sources) == 2 * 2 * (2 + 2 * 3)  # datasets, images; image and truth, three images of each run
    for folder in runs:
        for found in read_results(folder / "results.json").values():
            assert f"{folder.name} {format_number(found['calibration']['ECE'])}" in page.text
    assert len(set(page.sources)) < len(page.sources), "both runs have the same weights"
    assert page.text.count("Confusions") == 1 and page_file.stat().st_size < 500_000
    shares = [int(share) for share in re.findall(r"errors, (\d+) % correct", page.text)]
    assert len(shares) == 8
    # Both images of the dataset are shown, for each of two runs.
    assert sum(shares[:4]) / 4 == pytest.approx(results["tiny_night"]["sem_seg"]["pACC"], abs=0.5)


def test_predict_examples(workspace: Workspace, runs: list[Path]) -> None:
    (run,) = read_runs(runs[:1])
    with workspace.registered():
        loaded = load_model(runs[0], device="cpu")
        examples = predict_examples(run, loaded, 2)
    assert (chosen_images(50, 2), chosen_images(3, 5), chosen_images(1, 1)) == ([12, 37], [0, 1, 2], [0])
    expected = [(name, f"{index}.png") for name in ("tiny_val", "tiny_night") for index in range(2)]
    assert [(one.dataset, one.title) for one in examples] == expected
    for one in examples:
        folder = one.dataset.removeprefix("tiny_")
        files = (workspace.folder / f"data/{kind}/{folder}/{one.title}" for kind in ("images", "labels"))
        image, label = (np.asarray(Image.open(file)) for file in files)
        assert np.array_equal(one.image, image)
        truth = np.select([label == 0, label == 1, label == 2], [0, 10, 13], 255)  # road, sky and car
        assert np.array_equal(one.truth, truth)
        with torch.no_grad():
            (result,) = loaded.model([{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())}])
        assert np.array_equal(one.predicted, result["sem_seg"].argmax(0))


@pytest.mark.parametrize(
    ("name", "reason"), [("gone", "Scored checkpoint not found"), ("changed", "has changed since it was scored")]
)
def test_page_without_the_scored_weights(
    workspace: Workspace, runs: list[Path], tmp_path: Path, capsys: Output, name: str, reason: str
) -> None:
    weights = shutil.copytree(runs[0], tmp_path / name) / "model_final.pth"
    content = torch.load(weights, weights_only=True)
    weights.unlink()
    if name == "changed":
        torch.save({**content, "more": 1}, weights)
    with workspace.registered():
        load_tool("report").main([str(tmp_path / name), "--output", str(tmp_path / "page.html")])
    assert reason in capsys.readouterr().err
    page = assert_sound((tmp_path / "page.html").read_text())
    assert not page.sources and reason in page.text and page.column("tiny_night", 1)["run"]
    load_tool("report").main([str(tmp_path / name), "--output", str(tmp_path / "a/page.html"), "--examples", "0"])
    assert not assert_sound((tmp_path / "a/page.html").read_text()).sources
    assert capsys.readouterr().err == ""


def test_output_is_checked_before_examples_are_predicted(runs: list[Path], capsys: Output) -> None:
    output = ["--output", "/proc/none/page.html"]
    explains(line_of_mistake(capsys, load_tool("report").main, *runs, *output), "/proc/none", remedy="folder")


@pytest.fixture
def checker(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """dev/browser_check.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "dev"))
    return importlib.import_module("browser_check")


def test_browser_check(checker: ModuleType, page_file: Path, tmp_path: Path, capsys: Output) -> None:
    bank, bad, cut = (tmp_path / f"{name}.html" for name in ("bank", "bad", "cut"))
    bank.write_text(render_bank(BankView("bank", make_bank(24))))
    bad.write_text("<script>missing()</script><div style='width:2000px'>x</div><img src='http://localhost:9/a.png'>")
    table = "<table style='width:2000px'><tr><td>first</td><td>source</td></tr></table>"
    cut.write_text("".join(f"<div style='overflow-x:{kind}'>{kind} {table}</div>" for kind in ("auto", "hidden")))
    assert checker.main([str(tmp_path / "none.html")]) == 1
    assert "none.html" in capsys.readouterr().err
    status = checker.main([*map(str, (page_file, bank, bad, cut)), "--expect", "source"])
    printed = capsys.readouterr()
    if checker.find_browser() is None:
        assert status == 3 and "apt-get install chromium" in printed.err
        return
    lines = printed.out.splitlines()
    assert status == 1 and not [line for line in lines if line.startswith((str(page_file), str(bank)))]
    for problem in ("ReferenceError", "requests http://localhost:9/a.png", "pixels wider", "broken images", "'source'"):
        assert any(line.startswith(str(bad)) and problem in line for line in lines)
    found = [line for line in lines if line.startswith(str(cut))]
    assert len(found) == len(checker.VIEWS) and "cuts off columns" in found[0], "a table is whole if it can be scrolled"
