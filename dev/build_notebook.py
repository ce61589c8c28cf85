#!/usr/bin/env python
"""Make the notebook of the tutorial from its script, and run it, so that it contains its outputs. `make notebook` runs this
script, which takes a few minutes.

    dev/build_notebook.py --output projects/FAMix/examples/tutorial.ipynb

The script is the source: edit projects/FAMix/examples/tutorial.py, and run `make notebook`.
"""

import argparse
import configparser
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "projects/FAMix/examples/tutorial.py"
NOTEBOOK = SCRIPT.with_suffix(".ipynb")
COLAB = "https://colab.research.google.com"
TIMEOUT = 1800  # seconds for one cell


def make_notebook(source: str, repository_url: str = "") -> nbformat.NotebookNode:
    """Return the notebook of a script in the percent format, without outputs.

    Args:
        source: text of the script. Its docstring becomes the first cell.
        repository_url: address of a repository on GitHub; adds a link to Colab.
    """
    notebook = jupytext.reads(source, fmt="py:percent")
    first = notebook.cells[0]
    title, _, rest = first.source.strip('"').strip().partition("\n")
    text = f"# {title.rstrip('.')}\n{rest}"
    if repository_url.startswith("https://github.com/"):
        place = f"{COLAB}/github/{repository_url.removeprefix('https://github.com/')}"
        path = NOTEBOOK.relative_to(ROOT)
        text += f"\n\n[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place}/blob/main/{path})"
    notebook.cells[0] = nbformat.v4.new_markdown_cell(text)
    for number, cell in enumerate(notebook.cells, 1):
        cell.id, cell.metadata = f"cell-{number}", nbformat.NotebookNode()
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    return notebook


def run_notebook(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run all cells in a folder and keep their outputs, in which the folder is shown as "."

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises an error.
    """
    NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if "outputs" in cell:
            cell.outputs = tidy_outputs(cell.outputs, folder)


def tidy_outputs(outputs: list[nbformat.NotebookNode], folder: Path) -> list[nbformat.NotebookNode]:
    """Join the pieces of the printed text, and leave out warnings, progress bars, second formats and local paths."""
    tidied: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type != "stream":
            output.data.pop("image/jpeg", None)
            tidied.append(output)
        elif output.name == "stdout":
            text = output.text.replace(str(folder), ".").replace(f"{ROOT}/", "")
            if tidied and tidied[-1].output_type == "stream":
                tidied[-1].text += text
            else:
                tidied.append(nbformat.v4.new_output("stream", name="stdout", text=text))
    return tidied


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=NOTEBOOK, help="notebook to write; replaced")
    output = parser.parse_args(argv).output
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    notebook = make_notebook(SCRIPT.read_text(), settings["famix"]["REPOSITORY_URL"].rstrip("/"))
    with tempfile.TemporaryDirectory() as folder:
        run_notebook(notebook, Path(folder))
    output.write_text(nbformat.writes(notebook) + "\n")
    sys.stdout.write(f"wrote {output}\n")


if __name__ == "__main__":
    main()
