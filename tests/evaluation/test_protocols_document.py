"""docs/PROTOCOLS.md describes every part of a protocol with its cost."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from famix.evaluation.protocols import inference as inference_module
from famix.evaluation.protocols.parts import registered_parts
from famix.evaluation.protocols.protocol import parse_protocol
from model_factory import make_batch
from toy_segmentors import PerPixel

DOCUMENT = Path(__file__).parents[2] / "docs/PROTOCOLS.md"
TEXT = DOCUMENT.read_text()
CITYSCAPES = (1024, 2048)


def rows(heading: str) -> list[list[str]]:
    """Cells of the table below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_has_every_part_in_order():
    assert [cells[0].strip("`") for cells in rows("Parts")] == [part for part in registered_parts() if "<" not in part]
    assert all(f"`{part}`" in TEXT for part in registered_parts())


@pytest.mark.parametrize(("part", "images"), [(cells[0].strip("`"), cells[3]) for cells in rows("Parts")])
def test_costs(part, images):
    if images:
        assert parse_protocol(part).forwards(CITYSCAPES) == int(images)
    else:
        assert part in ("logits", "roadpadding")


@pytest.mark.parametrize("cells", rows("Parts"), ids=lambda cells: cells[0])
def test_whether_ground_truth_is_left_alone(cells):
    part, scored = cells[0].strip("`"), cells[4]
    if part not in ("logits", "roadpadding"):
        assert (parse_protocol(part).truth == parse_protocol("native").truth) == (scored in ("", "unchanged"))


def test_published_protocols_are_normalised_names():
    names = [name for cells in rows("The protocol of a published number") for name in re.findall(r"`(\S+?)`", cells[2])]
    assert len(names) > 12
    for name in names:
        if name != "roadpadding":
            assert parse_protocol(name).name == name


def test_the_python_example(monkeypatch):
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    got: list[Any] = []
    names = {"model": PerPixel().eval(), "loader": [make_batch((600, 520), labels=False)], "evaluator": None}
    real = inference_module.ProtocolInference.forward

    def forward(self: inference_module.ProtocolInference, inputs: list[dict[str, Any]]) -> Any:
        got.extend(real(self, inputs))
        return got

    monkeypatch.setattr(inference_module.ProtocolInference, "forward", forward)
    exec(example, names)
    assert names["protocol"].forwards(CITYSCAPES) == 36 and "# 36" in example
    assert got[0]["sem_seg"].shape == (4, 600, 520)
    torch.testing.assert_close(got[0]["sem_seg"].sum(0), torch.ones(600, 520))
