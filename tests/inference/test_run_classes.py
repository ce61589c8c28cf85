"""A run carries its classes and the definition of its data: usable anywhere, and never with wrong class names."""

import shutil
from pathlib import Path

import pytest
import yaml

from data_factory import forgotten_datasets, write_definition
from error_matching import expect_error, explains, line_of_mistake
from famix.data.classes import ClassTable
from famix.engine import argument_parser, load_config
from famix.inference import Predictor
from famix.inference.loading import load_model
from famix.utils.errors import ClassesError, ConfigError
from inference.inference_factory import make_image
from run_factory import SPLITS, Workspace, load_tool, train_net

NAMES, SWAPPED = ("road", "sky", "car"), ("road", "car", "sky")
COLORS = ([128, 64, 128], [70, 130, 180], [0, 0, 142])
OPTIONS = ("MODEL.STYLE.STRATEGY", "none", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "SOLVER.MAX_ITER", "2")


def define(folder, names=NAMES, **changes):
    classes = [{"name": name, "color": color} for name, color in zip(names, COLORS, strict=True)]
    ids = {**dict(enumerate(names)), 9: "ignore"}
    splits = {split: {} for split in SPLITS}
    return write_definition(folder, **{"classes": classes, "label_ids": ids, "splits": splits, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run "own" on a dataset of three classes, started with a relative path in DATASETS.FILES."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    workspace.definition = Path("data/definition.yaml")
    define(workspace.folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        workspace.run("own", *OPTIONS, "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL_SELECTION.EMA_DECAY", "0.9")
    return workspace


@pytest.fixture
def workspace(trained, tmp_path, monkeypatch):
    """A copy for changes; the current folder is that of the training."""
    copy = Workspace.__new__(Workspace)
    copy.folder, copy.definition = tmp_path / "copy", trained.definition
    shutil.copytree(trained.folder, copy.folder)
    copy.clip = copy.folder / "clip.pt"
    define(copy.folder / "data")
    monkeypatch.chdir(copy.folder)
    with forgotten_datasets():
        yield copy


def resume(workspace, *options):
    run = workspace.folder / "own"
    (run / "model_final.pth").unlink(missing_ok=True)
    (run / "last_checkpoint").write_text("model_0000000.pth")
    workspace.run("own", *OPTIONS, "MODEL_SELECTION.EMA_DECAY", "0.9", *options, flags=("--resume",))


def score(workspace, weights="model_final.pth"):
    path = str(workspace.folder / "own" / weights)
    with forgotten_datasets():
        workspace.run("scores", *OPTIONS, "MODEL.WEIGHTS", path, flags=("--eval-only",))


def predict(workspace):
    return Predictor.from_checkpoint(workspace.folder / "own", device="cpu")


def predict_with_lone_checkpoint(workspace):
    shutil.move(workspace.folder / "own/model_final.pth", "mailed.pth")
    return Predictor.from_checkpoint("mailed.pth", device="cpu")


@pytest.mark.parametrize("weights", ["", "model_final.pth", "model_0000000.pth", "model_ema.pth"])
def test_moved_run_predicts_without_the_definition(weights, workspace, tmp_path, monkeypatch):
    shutil.move(workspace.folder / "own", tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(workspace.folder)
    prediction = Predictor.from_checkpoint(tmp_path / "moved" / weights, device="cpu")(make_image())
    assert prediction.class_names == NAMES and prediction.labels.max() < 3


def test_lone_checkpoint_predicts_without_the_definition(workspace):
    workspace.definition.unlink()
    classes = predict_with_lone_checkpoint(workspace).classes
    assert (classes.names, classes.colors[2]) == (NAMES, tuple(COLORS[2]))


def test_config_of_a_run_scores_it_without_the_definition(workspace, tmp_path, monkeypatch):
    shutil.move(workspace.folder / "own", tmp_path / "moved")
    workspace.definition.unlink()
    monkeypatch.chdir(tmp_path)
    config, weights = str(tmp_path / "moved/config.yaml"), str(tmp_path / "moved/model_final.pth")
    options = ["--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", "scores"]
    results = train_net().run(argument_parser().parse_args(options))
    assert set(results["tiny_val"]["sem_seg"]) >= {f"IoU-{name}" for name in NAMES}
    assert load_config(config, ["DATASETS.FILES", "['other.yaml']"]).DATASETS.FILES == ["other.yaml"]


def test_copies_of_definitions_of_one_file_name(workspace):
    other = define(workspace.folder / "more", name="more")
    files = f"['{workspace.definition}', '{other}']"
    workspace.run("two", *OPTIONS, "DATASETS.FILES", files, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "('tiny_val',)")
    copies = workspace.folder / "two/datasets"
    assert (copies / "definition.yaml").read_bytes() == workspace.definition.read_bytes()
    assert (copies / "definition_2.yaml").read_bytes() == other.read_bytes()


@pytest.mark.parametrize("use", [predict, predict_with_lone_checkpoint, score, resume])
def test_swapped_classes_are_refused(use, workspace):
    define(workspace.folder / "data", SWAPPED)
    config = (workspace.folder / "own/config.yaml").read_bytes()
    dataset = "tiny_val" if use is score else "tiny_train"
    with expect_error(ClassesError, dataset, "sky", "DATASETS.FILES") as got:
        use(workspace)
    assert "'car'" in str(got.value)
    assert (workspace.folder / "own/config.yaml").read_bytes() == config


def test_renamed_class_is_refused_after_the_old_ones_were_registered(workspace):
    predict(workspace)
    define(workspace.folder / "data", ("road", "sky", "truck"))
    with expect_error(ClassesError, "tiny_train", "truck", "DATASETS.FILES") as got:
        predict(workspace)
    assert "'car'" in str(got.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../demo", "--weights own --input data/images/val/0.png --output out.png"),
        ("export", "own --format stripped"),
        ("report", "own --output report.html"),
    ],
)
def test_commands_refuse_swapped_classes(name, words, workspace, capsys):
    define(workspace.folder / "data", SWAPPED)
    line = line_of_mistake(capsys, load_tool(name).main, *words.split())
    for value in ("sky", "car"):
        explains(line, "tiny_train", value, "DATASETS.FILES")
    assert not (workspace.folder / "out.png").exists() and not (workspace.folder / "report.html").exists()


def test_stripped_checkpoint_refuses_swapped_classes(workspace):
    with forgotten_datasets():
        assert load_tool("export").main([str(workspace.folder / "own"), "--format", "stripped"]) == 0
    score(workspace, "model_final_stripped.pth")
    define(workspace.folder / "data", SWAPPED)
    with expect_error(ClassesError, "tiny_val", "car", "DATASETS.FILES"):
        score(workspace, "model_final_stripped.pth")
    assert load_model("own/model_final_stripped.pth", device="cpu").classes.names == NAMES


def test_resuming_refuses_other_label_ids(workspace):
    define(workspace.folder / "data", label_ids={0: "road", 1: "sky", 2: "ignore", 9: "ignore"})
    with expect_error(ConfigError, "layouts.0.encoding.label_ids.2", 255, "DATASETS.FILES") as got:
        resume(workspace)
    assert "(was 2)" in str(got.value)


def test_resuming_accepts_other_colors_splits_and_folders(workspace):
    entries = yaml.safe_load(workspace.definition.read_text())
    shutil.copytree("data", "moved")
    for entry in entries["classes"]:
        entry["color"] = [1, 2, 3]
    entries |= {"root": str(workspace.folder / "moved"), "splits": {**entries["splits"], "more": {"folder": "night"}}}
    workspace.definition.write_text(yaml.safe_dump(entries))
    resume(workspace, "DATASETS.TEST", "('tiny_more',)")
    assert workspace.checkpoint("own")["iteration"] == 1
    assert (workspace.folder / "own/datasets/definition.yaml").read_bytes() == workspace.definition.read_bytes()


def test_cityscapes_label_ids_follow_class_names():
    colors = ((0, 0, 0), (1, 1, 1))
    assert ClassTable(("sky", "road"), colors).cityscapes_label_ids().tolist() == [23, 7]
    with expect_error(ConfigError, "--view cityscapes-ids", "lane", "--view labels"):
        ClassTable(("road", "lane"), colors).cityscapes_label_ids()
