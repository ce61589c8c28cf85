import pytest
import torch

from error_matching import expect_error
from famix.mining import PromptTable
from famix.utils.errors import ConfigError

NAMES = ("road", "sky", "car")
STYLES = ("Foggy style", "Pop Art style")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def table():
    return PromptTable(NAMES, STYLES)


def test_prompts_are_numbered_class_by_class_and_the_photo_comes_last(table):
    assert table.prompts == [
        "Foggy style road",
        "Pop Art style road",
        "Foggy style sky",
        "Pop Art style sky",
        "Foggy style car",
        "Pop Art style car",
        "photo",
    ]
    assert table.texts(torch.tensor([6, 3])) == ["photo", "Pop Art style sky"]
    assert table.texts(torch.tensor([], dtype=torch.int64)) == []


def test_styles_are_drawn_uniformly_and_by_every_class_for_itself():
    table = PromptTable(NAMES, [f"style {i}" for i in range(4)])
    generator = seeded()
    draws = torch.stack([table.draw(torch.arange(3), generator) for _ in range(1000)])
    for class_id in range(3):
        ids, counts = draws[:, class_id].unique(return_counts=True)
        assert ids.tolist() == list(range(4 * class_id, 4 * class_id + 4))
        assert ((counts - 250.0) ** 2 / 250).sum() < 16.3  # the 0.999 quantile for 3 degrees of freedom
    assert (draws[:, 0] % 4 != draws[:, 1] % 4).any()


def test_a_draw_depends_on_the_generator_and_not_on_the_other_classes(table):
    everything = torch.tensor([0, 1, 2, 255])
    for seed in range(10):
        expected = table.draw(everything, seeded(seed))
        for some in ([0, 2], [1, 255], [2], [255], []):
            ids = torch.tensor(some, dtype=torch.int64)
            assert torch.equal(table.draw(ids, seeded(seed)), expected[torch.isin(everything, ids)])
    assert len({tuple(table.draw(everything, seeded(seed)).tolist()) for seed in range(30)}) == 8


@pytest.mark.parametrize("class_ids", [[0, 3], [254, 255]])
def test_classes_without_a_name_are_refused(table, class_ids):
    with expect_error(ConfigError, "label ids", class_ids, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE"):
        table.draw(torch.tensor(class_ids), seeded())


@pytest.mark.parametrize("styles", [[], "Foggy style", [""], ["Foggy style", 3]])
def test_styles_must_be_texts(styles):
    with expect_error(ConfigError, "STYLE_MINING.STYLES"):
        PromptTable(NAMES, styles)
