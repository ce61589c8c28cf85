"""The tutorial runs from top to bottom, on few and small images."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run_factory import ROOT

TUTORIAL = ROOT / "projects/FAMix/examples/tutorial.py"
MINIATURE = {"SIZE": "(64, 128)", "IMAGES": "4", "ITERATIONS": "2"}


def test_tutorial_ends_with_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = TUTORIAL.read_text().replace("__file__", repr(str(TUTORIAL)))
    for name, value in MINIATURE.items():
        source, replaced = re.subn(rf"^{name} = [^#\n]+", f"{name} = {value}", source, flags=re.MULTILINE)
        assert replaced == 1, name
    (tmp_path / "tutorial.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(tmp_path / "tutorial.py"))
    table = (tmp_path / "output/tutorial/table.md").read_text()
    assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [
        "street_day_val", "street_night", "street_fog",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert table in out
    assert out.rstrip().endswith("('road', 'building', 'vegetation', 'sky', 'car')")
    assert np.sum([row[1:] for row in names["shares"]], axis=1) == pytest.approx(100)
    assert Image.open(tmp_path / "output/tutorial/overlay.png").size == (128, 64)
    assert (tmp_path / "output/tutorial/street.pth").stat().st_size < (
        tmp_path / "output/tutorial/run/model_final.pth"
    ).stat().st_size / 2
