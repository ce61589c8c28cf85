"""The tutorial runs from top to bottom as a notebook, on few and small images, and the committed notebook is up to date."""

import re
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from PIL import Image

from run_factory import ROOT, load_script

TUTORIAL = ROOT / "projects/FAMix/examples/tutorial.py"
SMALLER = {"SIZE": "(64, 128)", "IMAGES": "4", "ITERATIONS": "2"}
builder = load_script(ROOT / "dev/build_notebook.py")


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    notebook = nbformat.read(TUTORIAL.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(notebook)
    return notebook


def printed(notebook: nbformat.NotebookNode) -> list[str]:
    """Text that each code cell prints."""
    cells = (cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    return ["".join(output.text for output in outputs if output.output_type == "stream") for outputs in cells]


def test_tutorial_ends_with_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = TUTORIAL.read_text()
    for name, value in SMALLER.items():
        source, replaced = re.subn(rf"^{name} = [^#\n]+", f"{name} = {value}", source, flags=re.MULTILINE)
        assert replaced == 1, name
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "projects/FAMix"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = builder.make_notebook(source)
    builder.run_notebook(notebook, tmp_path)
    output, texts = tmp_path / "output/tutorial", printed(notebook)
    table = (output / "table.md").read_text()
    datasets = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    assert datasets == ["street_day_val", "street_night", "street_fog"]
    assert table in texts and str(tmp_path) not in "".join(texts)
    assert texts[-1].rstrip() == "('road', 'building', 'vegetation', 'sky', 'car')"
    (shares,) = (text for text in texts if "share in %" in text)
    rows = [[float(cell) for cell in line.split("|")[2:-1]] for line in shares.splitlines()[2:]]
    assert np.sum(rows, axis=1) == pytest.approx(100, abs=0.5) and len(rows) == 8
    assert Image.open(output / "overlay.png").size == (128, 64)
    assert (output / "street.pth").stat().st_size < (output / "run/model_final.pth").stat().st_size / 2


def test_committed_notebook_is_that_of_the_script(committed: nbformat.NotebookNode) -> None:
    expected = builder.make_notebook(TUTORIAL.read_text())
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in expected.cells
    ], "run make notebook"
    script = jupytext.reads(TUTORIAL.read_text(), fmt="py:percent")
    assert [cell.source for cell in committed.cells[1:]] == [cell.source for cell in script.cells[1:]]


def test_committed_notebook_has_outputs(committed: nbformat.NotebookNode) -> None:
    cells = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds == {"stream", "execute_result"}, "no errors"
    assert sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs) == 2
    assert not re.search(r"/(home|root|tmp|Users)/", "".join(printed(committed)))


def test_colab_link_needs_a_repository_on_github() -> None:
    source = TUTORIAL.read_text()
    assert "colab" not in nbformat.writes(builder.make_notebook(source, "https://example.org/famix"))
    first = builder.make_notebook(source, "https://github.com/someone/famix").cells[0].source
    assert "/github/someone/famix/blob/main/projects/FAMix/examples/tutorial.ipynb" in first


def test_outputs_are_joined_and_cleaned(tmp_path: Path) -> None:
    def text(name: str, content: str) -> nbformat.NotebookNode:
        return nbformat.v4.new_output("stream", name=name, text=content)

    image = nbformat.v4.new_output("display_data", data={"image/png": "a", "image/jpeg": "b"})
    outputs = [text("stdout", f"{tmp_path}/a\n"), text("stderr", "warning"), text("stdout", "b\n"), image]
    joined, shown = builder.tidy_outputs(outputs, tmp_path)
    assert joined.text == "./a\nb\n" and dict(shown.data) == {"image/png": "a"}
