"""A run carries its classes and the definition of its data: usable anywhere, and never under other names."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from data_factory import forgotten_datasets, write_definition
from error_matching import expect_error, explains, line_of_mistake
from famix.data.class_table import ClassTable
from famix.engine import argument_parser, load_config
from famix.inference import Predictor
from famix.inference.loading import load_model
from famix.utils.errors import ClassesError, ConfigError, WeightsError
from inference.inference_factory import make_image
from run_factory import SPLITS, Workspace, load_tool, train_net

NAMES = ("road", "sky", "car")
COLORS = ([128, 64, 128], [70, 130, 180], [0, 0, 142])
OPTIONS = ("MODEL.STYLE.STRATEGY", "none", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3", "SOLVER.MAX_ITER", "2")
SWAPPED = ("road", "car", "sky")


def define(folder: Path, names: tuple[str, ...] = NAMES, **changes: object) -> Path:
    classes = [{"name": name, "color": color} for name, color in zip(names, COLORS, strict=True)]
    ids = {0: names[0], 1: names[1], 2: names[2], 9: "ignore"}
    splits = {split: {} for split in SPLITS}
    return write_definition(folder, **{"classes": classes, "label_ids": ids, "splits": splits, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A finished run "own" on a dataset of three classes, started with a relative path in DATASETS.FILES."""
    workspace = Workspace(tmp_path_factory.mktemp("workspace"))
    workspace.definition = Path("data/definition.yaml")
    define(workspace.folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        workspace.run("own", *OPTIONS, "SOLVER.CHECKPOINT_PERIOD", "1", "MODEL_SELECTION.EMA_DECAY", "0.9")
    return workspace


@pytest.fixture
def workspace(trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    """The same, to be spoilt; current folder as in the training."""
    copy = Workspace.__new__(Workspace)
    copy.folder, copy.definition = tmp_path / "copy", trained.definition
    shutil.copytree(trained.folder, copy.folder)
    copy.clip = copy.folder / "clip.pt"
    define(copy.folder / "data")
    monkeypatch.chdir(copy.folder)
    with forgotten_datasets():
        yield copy


def resume(workspace: Workspace, *options: str) -> None:
    run = workspace.folder / "own"
    (run / "model_final.pth").unlink(missing_ok=True)
    (run / "last_checkpoint").write_text("model_0000000.pth")
    decay = ("MODEL_SELECTION.EMA_DECAY", "0.9")
    workspace.run("own", *OPTIONS, *decay, *options, flags=("--resume",))


@pytest.mark.parametrize("weights", ["", "model_final.pth", "model_0000000.pth", "model_ema.pth"])
def test_a_moved_run_predicts_without_the_definition(
    weights: str, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(workspace.folder / "own", tmp_path / "moved")
    shutil.rmtree(workspace.folder)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    prediction = Predictor.from_checkpoint(tmp_path / "moved" / weights, device="cpu")(make_image())
    assert prediction.class_names == NAMES
    assert prediction.labels.max() < 3


def test_a_lone_checkpoint_predicts(workspace: Workspace, tmp_path: Path) -> None:
    shutil.move(workspace.folder / "own/model_final.pth", tmp_path / "mailed.pth")
    shutil.rmtree(workspace.folder / "own")
    (workspace.folder / workspace.definition).unlink()
    loaded = load_model(tmp_path / "mailed.pth", device="cpu")
    assert loaded.classes.names == NAMES
    assert loaded.classes.colors[2] == tuple(COLORS[2])
    assert loaded.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3


def test_the_config_of_a_run_scores_it_without_the_definition(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(workspace.folder / "own", tmp_path / "moved")
    workspace.definition.unlink()
    monkeypatch.chdir(tmp_path)
    config, weights = str(tmp_path / "moved/config.yaml"), str(tmp_path / "moved/model_final.pth")
    options = ["--config-file", config, "--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", "scores"]
    results = train_net().run(argument_parser().parse_args(options))
    assert set(results["tiny_val"]["sem_seg"]) >= {f"IoU-{name}" for name in NAMES}
    other = load_config(config, ["DATASETS.FILES", "['other.yaml']"])
    assert other.DATASETS.FILES == ["other.yaml"]


def test_copies_of_files_of_one_name_stay_apart(workspace: Workspace) -> None:
    other = define(workspace.folder / "more", name="more")
    files = f"['{workspace.definition}', '{other}']"
    workspace.run("two", *OPTIONS, "DATASETS.FILES", files, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "('tiny_val',)")
    copies = workspace.folder / "two/datasets"
    assert (copies / "definition.yaml").read_bytes() == workspace.definition.read_bytes()
    assert (copies / "definition_2.yaml").read_bytes() == other.read_bytes()


def as_predictor(workspace: Workspace) -> None:
    Predictor.from_checkpoint(workspace.folder / "own", device="cpu")


def as_lone_checkpoint(workspace: Workspace) -> None:
    shutil.move(workspace.folder / "own/model_final.pth", "mailed.pth")
    Predictor.from_checkpoint("mailed.pth", device="cpu")


def as_scores(workspace: Workspace) -> None:
    weights = str(workspace.folder / "own/model_final.pth")
    workspace.run("scores", *OPTIONS, "MODEL.WEIGHTS", weights, flags=("--eval-only",))


def as_training(workspace: Workspace) -> None:
    resume(workspace)


@pytest.mark.parametrize("use", [as_predictor, as_lone_checkpoint, as_scores, as_training])
def test_swapped_classes_are_an_error_that_names_both(use: Callable[[Workspace], None], workspace: Workspace) -> None:
    define(workspace.folder / "data", SWAPPED)
    config = (workspace.folder / "own/config.yaml").read_bytes()
    with expect_error(
        ClassesError, "tiny_train" if use is not as_scores else "tiny_val", "sky", "DATASETS.FILES"
    ) as got:
        use(workspace)
    assert "'car'" in str(got.value)
    assert (workspace.folder / "own/config.yaml").read_bytes() == config


def test_a_renamed_class_is_noticed_after_the_old_ones_were_registered(workspace: Workspace) -> None:
    as_predictor(workspace)
    define(workspace.folder / "data", ("road", "sky", "truck"))
    with expect_error(ClassesError, "tiny_train", "truck", "DATASETS.FILES") as got:
        as_predictor(workspace)
    assert "'car'" in str(got.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../demo", "--weights own --input data/images/val/0.png --output out.png"),
        ("export", "own --format stripped"),
        ("report", "own --output report.html"),
    ],
)
def test_commands_end_with_one_line(
    name: str, words: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    define(workspace.folder / "data", SWAPPED)
    line = line_of_mistake(capsys, load_tool(name).main, *words.split())
    explains(line, "tiny_train", "sky", "DATASETS.FILES")
    explains(line, "tiny_train", "car")
    assert not (workspace.folder / "out.png").exists() and not (workspace.folder / "report.html").exists()


def test_a_stripped_checkpoint_is_not_scored_under_other_names(workspace: Workspace) -> None:
    run = workspace.folder / "own"
    with forgotten_datasets():
        assert load_tool("export").main([str(run), "--format", "stripped"]) == 0
    stripped = str(run / "model_final_stripped.pth")
    with forgotten_datasets():
        workspace.run("scores", *OPTIONS, "MODEL.WEIGHTS", stripped, flags=("--eval-only",))
    define(workspace.folder / "data", SWAPPED)
    with expect_error(ClassesError, "tiny_val", "car", "DATASETS.FILES"):
        workspace.run("scores", *OPTIONS, "MODEL.WEIGHTS", stripped, flags=("--eval-only",))
    assert load_model(stripped, device="cpu").classes.names == NAMES


def test_a_damaged_table_is_one_error(workspace: Workspace) -> None:
    path = workspace.folder / "own/model_final.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "classes": {"names": 3}}, path)
    with expect_error(WeightsError, "classes"):
        as_predictor(workspace)


def test_other_labels_are_an_error_that_names_both(workspace: Workspace) -> None:
    define(workspace.folder / "data", label_ids={0: "road", 1: "sky", 2: "ignore", 9: "ignore"})
    with expect_error(ConfigError, "layouts.0.encoding.label_ids.2", 255, "DATASETS.FILES") as got:
        resume(workspace)
    assert "must be 2" in str(got.value)


def test_what_does_not_concern_the_training_may_change(workspace: Workspace) -> None:
    entries = yaml.safe_load(workspace.definition.read_text())
    shutil.copytree("data", "moved")
    for entry in entries["classes"]:
        entry["color"] = [1, 2, 3]
    entries |= {"root": str(workspace.folder / "moved"), "splits": {**entries["splits"], "more": {"folder": "night"}}}
    workspace.definition.write_text(yaml.safe_dump(entries))
    resume(workspace, "DATASETS.TEST", "('tiny_more',)")
    assert workspace.checkpoint("own")["iteration"] == 1
    assert (workspace.folder / "own/datasets/definition.yaml").read_bytes() == workspace.definition.read_bytes()


def test_label_ids_follow_the_names_of_the_classes() -> None:
    colors = ((0, 0, 0), (1, 1, 1))
    assert ClassTable(("sky", "road"), colors).cityscapes_label_ids().tolist() == [23, 7]
    with expect_error(ConfigError, "--view cityscapes-ids", "lane", "--view labels"):
        ClassTable(("road", "lane"), colors).cityscapes_label_ids()
