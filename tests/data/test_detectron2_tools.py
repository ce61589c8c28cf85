"""Detectron2's own tools read datasets of train ids, and explain why they cannot read other datasets."""

import copy
import pickle
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultPredictor
from detectron2.evaluation import SemSegEvaluator
from detectron2.modeling import build_model
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from data_factory import registered, write_definition, write_image, write_label, write_palette_label
from error_matching import expect_error
from famix import Predictor
from famix.data import get_dataset_dicts, label_file_of
from famix.engine import load_config
from famix.evaluation import build_evaluator
from famix.utils.errors import DatasetError
from panoptic_factory import SIZE as PANOPTIC_SIZE
from panoptic_factory import make_panoptic
from run_factory import CONFIG, ROOT, Workspace

SIZE = (40, 64)
TRAIN_IDS = {0: "road", 8: "vegetation", 13: "car", 255: "ignore"}
RAW = {0: "ignore", 1: "road", 2: "vegetation", 3: "car"}


def make(folder: Path, label_ids: object, values: list[int], write: Any = write_label, **changes: object) -> Path:
    """A dataset of three images of vertical bands, one for each value."""
    (folder / "labels/train").mkdir(parents=True, exist_ok=True)
    for index in range(3):
        ids = np.repeat(np.roll(values, index), SIZE[1] // len(values))[None].repeat(SIZE[0], 0).astype(np.uint8)
        write_image(folder / f"images/train/{index}.png", np.stack([ids * 9] * 3, axis=2))
        write(folder / f"labels/train/{index}.png", ids)
    return write_definition(folder, label_ids=label_ids, splits={"train": {}}, **changes)


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[list[dict[str, Any]]]:
    with registered(make(tmp_path, RAW, list(RAW))):
        yield DatasetCatalog.get("tiny_train")


def detectron2_config(architecture: str = "SemanticSegmentor") -> CfgNode:
    cfg = load_config("")
    cfg.merge_from_file(str(CONFIG))
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.STYLE.STRATEGY = "none"
    cfg.INPUT.CROP.SIZE = (32, 48)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("tiny_train",)
    return cfg


def score_ground_truth(evaluator: Any) -> float:
    evaluator.reset()
    reader = MetadataCatalog.get("tiny_train").label_reader
    for record in get_dataset_dicts(["tiny_train"]):
        labels = torch.from_numpy(reader.read(label_file_of(record)).astype(np.int64))
        scores = torch.nn.functional.one_hot(labels.clamp(max=18), 19).permute(2, 0, 1)
        evaluator.process([record], [{"sem_seg": scores.float()}])
    return float(evaluator.evaluate()["sem_seg"]["mIoU"])


class Drawing(Visualizer):
    """Notes which classes of a record are drawn."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.classes: set[int] = set()
        super().__init__(np.zeros((*SIZE, 3), np.uint8), MetadataCatalog.get("tiny_train"))
        self.draw_dataset_dict(record)

    def draw_sem_seg(self, sem_seg: Any, **options: Any) -> Any:
        self.classes |= {int(label) for label in np.unique(sem_seg) if label < len(self.metadata.stuff_classes)}
        return super().draw_sem_seg(sem_seg, **options)


def write_one_palette(path: Path, ids: np.ndarray) -> None:
    (write_palette_label if path.name == "1.png" else write_label)(path, ids)


@pytest.mark.parametrize(
    ("label_ids", "values", "write", "changes", "expected"),
    [
        ("identity", [0, 18, 255], write_label, {}, True),
        (TRAIN_IDS, [0, 8, 255], write_label, {}, True),
        ({0: "road", 1: "sidewalk", 7: "ignore"}, [0, 1, 7], write_label, {"ignore_label": 255}, False),
        ("cityscapes", [7, 8, 0], write_label, {}, False),
        (TRAIN_IDS, [0, 8, 77], write_label, {"other_ids": "ignore"}, False),
        ("identity", [0, 18, 255], write_one_palette, {}, False),  # DatasetMapper would read the palette's grays
        ("identity", [0, 18, 255], lambda path, ids: write_label(path, ids.astype(np.uint16)), {}, False),
        ("identity", [0, 1, 1], lambda path, ids: Image.fromarray(ids > 0).save(path), {}, False),  # read as 0 and 255
    ],
    ids=["identity", "listed", "other ignore value", "label ids", "other ids", "palette", "16 bits", "1 bit"],
)
def test_sem_seg_file_name_needs_train_ids(
    tmp_path: Path, label_ids: object, values: list[int], write: Any, changes: dict[str, object], expected: bool
) -> None:
    with registered(make(tmp_path, label_ids, values, write, **changes)):
        for index, record in enumerate(DatasetCatalog.get("tiny_train")):
            assert record["label_file_name"] == str(tmp_path / f"labels/train/{index}.png")
            assert ("sem_seg_file_name" in record) is expected
            assert record.get("sem_seg_file_name") == (record["label_file_name"] if expected else None)


@pytest.mark.parametrize("architecture", ["SemanticSegmentor", "FAMixSemanticSegmentor"])
def test_detectron2_trains_on_and_draws_train_ids(tmp_path: Path, architecture: str) -> None:
    cfg = detectron2_config(architecture)
    cfg.MODEL.CLIP.WEIGHTS = str(Workspace(tmp_path / "space").clip)
    with registered(make(tmp_path, TRAIN_IDS, list(TRAIN_IDS))):
        batch = next(iter(build_detection_train_loader(cfg)))  # its default mapper; groups by height and width
        assert {tuple(sample["image"].shape[1:]) for sample in batch} == {(32, 48)}, "crops of the images' own scale"
        assert set(torch.stack([sample["sem_seg"] for sample in batch]).unique().tolist()) <= set(TRAIN_IDS)
        assert torch.isfinite(build_model(cfg)(batch)["loss_sem_seg"])
        assert Drawing(DatasetCatalog.get("tiny_train")[0]).classes == {0, 8, 13}


def test_tools_explain_raw_ids(raw: list[dict[str, Any]]) -> None:
    cfg = detectron2_config()
    copies = [copy.deepcopy(raw[0]), pickle.loads(pickle.dumps(raw[0])), *get_dataset_dicts(["tiny_train"])[:1]]
    for use in (
        *(partial(copied.__getitem__, "sem_seg_file_name") for copied in copies),
        lambda: SemSegEvaluator("tiny_train", distributed=False),
        lambda: Drawing(raw[0]),
        lambda: DatasetMapper(cfg, is_train=True)(raw[0]),
    ):
        with expect_error(DatasetError, "tiny_train", raw[0]["label_file_name"], "label_file_name"):
            use()
    with expect_error(DatasetError, "tiny_train", remedy="label_file_name"):  # of any image: the loader shuffles
        next(iter(build_detection_train_loader(cfg)))
    assert copies == [raw[0]] * 3
    with pytest.raises(KeyError, match="file_nam"):
        raw[0]["file_nam"]


def test_detectron2_loads_images_of_raw_datasets(raw: list[dict[str, Any]]) -> None:
    assert (raw[0]["height"], raw[0]["width"]) == SIZE
    loader = build_detection_test_loader(detectron2_config(), "tiny_train")
    for (sample,), record in zip(loader, raw, strict=True):
        assert sample["file_name"] == record["file_name"]
        assert tuple(sample["image"].shape[1:]) == (sample.get("height"), sample.get("width")) == SIZE
        assert "sem_seg" not in sample


@pytest.mark.usefixtures("raw")
@pytest.mark.parametrize("evaluator", ["streaming", "detectron2"])
def test_evaluators_of_famix_read_raw_ids(tmp_path: Path, evaluator: str) -> None:
    cfg = detectron2_config()
    cfg.TEST.EVALUATOR = evaluator
    before = set(DatasetCatalog)
    assert score_ground_truth(build_evaluator(cfg, "tiny_train", str(tmp_path / "out"))) == 100
    assert set(DatasetCatalog) == before


def test_readme_converts_raw_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "datasets/README.md").read_text(), flags=re.DOTALL)
    file = make(tmp_path, RAW, list(RAW))
    code = code.replace("fields.yaml", str(file)).replace("fields_2024", "tiny_train")
    monkeypatch.chdir(tmp_path)
    with registered():
        exec(code, {})
    changes = {"labels": "train_ids/2024/{key}.png", "splits": {"train": {}}}
    with registered(write_definition(tmp_path, label_ids="identity", **changes)):
        # NumPy 2 refuses Detectron2's own function.
        options: Any = {"sem_seg_loading_fn": lambda path, dtype: np.array(Image.open(path), dtype=dtype)}
        assert score_ground_truth(SemSegEvaluator("tiny_train", distributed=False, **options)) == 100


def test_visualizer_draws_panoptic_records(tmp_path: Path) -> None:
    with registered(make_panoptic(tmp_path, {"train": 1})):
        (record,) = DatasetCatalog.get("tiny_train_panoptic")
        assert "sem_seg_file_name" not in record
        figure = Visualizer(np.zeros((*PANOPTIC_SIZE, 3), np.uint8), MetadataCatalog.get("tiny_train_panoptic"))
        drawn = figure.draw_dataset_dict(record).get_image()
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > len(record["segments_info"])
        with expect_error(DatasetError, "tiny_train_panoptic", record["label_file_name"], "label_file_name"):
            SemSegEvaluator("tiny_train_panoptic", distributed=False)


def test_default_predictor_keeps_the_size_of_images(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.run("run", "SOLVER.MAX_ITER", "2", "MODEL.STYLE.STRATEGY", "noise")
    image = np.random.default_rng(0).integers(0, 256, (70, 101, 3), dtype=np.uint8)
    with workspace.registered():
        cfg = load_config(str(tmp_path / "run/config.yaml"))
        cfg.MODEL.WEIGHTS = str(tmp_path / "run/model_final.pth")
        scores = DefaultPredictor(cfg)(np.ascontiguousarray(image[:, :, ::-1]))["sem_seg"]
        expected = Predictor.from_checkpoint(tmp_path / "run/model_final.pth", device="cpu")(image)
    assert tuple(scores.shape[1:]) == (70, 101)
    np.testing.assert_allclose(scores.numpy(), expected.scores, rtol=1e-4, atol=1e-5)
