import logging

import numpy as np
import pytest

from data_factory import make_dataset, registered, write_label
from error_matching import expect_error
from famix.data import verify_datasets
from famix.utils.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    with registered(make_dataset(tmp_path)):
        yield tmp_path


def test_verify_logs_one_line(folder, caplog):
    with caplog.at_level(logging.INFO, logger="famix"):
        verify_datasets(["tiny_train", "tiny_val", "tiny_train"])
    (record,) = [record for record in caplog.records if record.name == "famix.data.check"]
    assert record.message.startswith("Checked 12 image and label pairs of tiny_train, tiny_val in ")


def test_verify_reads_every_header(folder):
    write_label(folder / "labels/val/a/4.png", np.zeros((32, 24), dtype=np.uint8))
    with expect_error(DatasetError, str(folder / "labels/val/a/4.png"), "32 x 24", "skip"):
        verify_datasets(["tiny_train", "tiny_val"], samples=0)
    (folder / "images/train/a/1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"images/train/a/1\.png cannot be read"):
        verify_datasets(["tiny_train"], samples=0)


@pytest.mark.parametrize("index", [0, 5])
def test_verify_decodes_first_and_last_pair(folder, index):
    write_label(folder / f"labels/val/a/{index}.png", np.full((24, 32), 77, dtype=np.uint8))
    verify_datasets(["tiny_val"], samples=0)
    with expect_error(DatasetError, str(folder / f"labels/val/a/{index}.png"), 77):
        verify_datasets(["tiny_train", "tiny_val"], samples=2)
