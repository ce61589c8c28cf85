import json
import math
from pathlib import Path

import numpy as np
import pytest

from famix.errors import DatasetError
from famix.evaluation import read_results, write_results


def test_scores_come_back_and_nan_is_null(tmp_path: Path) -> None:
    path = tmp_path / "new/results.json"
    write_results({"a": {"sem_seg": {"mIoU": np.float64(12.5), "IoU-train": float("nan")}}}, path)
    assert json.loads(path.read_text()) == {"a": {"sem_seg": {"mIoU": 12.5, "IoU-train": None}}}
    scores = read_results(path)["a"]["sem_seg"]
    assert scores["mIoU"] == 12.5 and math.isnan(scores["IoU-train"])


def test_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_results({"a": {"sem_seg": {"mIoU": 1.0}}}, path)
    with pytest.raises(TypeError):
        write_results({"a": {"sem_seg": {"mIoU": "high"}}}, path)  # type: ignore[dict-item]
    assert read_results(path) == {"a": {"sem_seg": {"mIoU": 1.0}}}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"a": 3}'])
def test_other_files_are_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=r"got no scores from .*results\.json"):
        read_results(path)
