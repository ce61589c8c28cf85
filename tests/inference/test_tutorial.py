"""The tutorial runs from top to bottom, on few and small images."""

import re
import runpy

import numpy as np
import pytest
from PIL import Image

from run_factory import ROOT

TUTORIAL = ROOT / "projects/FAMix/examples/tutorial.py"


def test_tutorial_ends_with_a_table(tmp_path, monkeypatch, capsys):
    source = TUTORIAL.read_text().replace("__file__", repr(str(TUTORIAL)))
    for name, value in {"SIZE": "(64, 128)", "IMAGES": "4", "ITERATIONS": "2"}.items():
        source, replaced = re.subn(rf"^{name} = [^#\n]+", f"{name} = {value}", source, flags=re.MULTILINE)
        assert replaced == 1, name
    (tmp_path / "tutorial.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(tmp_path / "tutorial.py"))
    output, out = tmp_path / "output/tutorial", capsys.readouterr().out
    table = (output / "table.md").read_text()
    datasets = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert datasets == ["street_day_val", "street_night", "street_fog"]
    assert table in out and out.rstrip().endswith("('road', 'building', 'vegetation', 'sky', 'car')")
    assert np.sum([row[1:] for row in names["shares"]], axis=1) == pytest.approx(100)
    assert Image.open(output / "overlay.png").size == (128, 64)
    assert (output / "street.pth").stat().st_size < (output / "run/model_final.pth").stat().st_size / 2
