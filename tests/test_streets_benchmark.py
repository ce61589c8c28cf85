"""benchmarks/streets.py: its datasets, rendered images, targets, choice and report, on miniatures of both datasets."""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_factory import registered, write_image, write_label
from error_matching import expect_error, explains
from famix.data import get_dataset_dicts, get_label_readers, label_file_of
from famix.utils.errors import ConfigError, FAMixError
from famix_minitown.rendering.looks import LOOKS, STRICT_LOOKS
from famix_minitown.runs import runner
from report_factory import tables
from run_factory import check_records, load_benchmark, load_tool
from town_factory import SCRIPT_HEAD

SIZE = (56, 80)
CAMVID, IDD = ("train_day", "val_day", "val_dusk"), ("train", "val")
CAMVID_IDS, IDD_IDS = range(12), (*range(7), 255)
# CamVid's ids of sky, building, pole, road, pavement, tree, sign, fence, car, pedestrian, bicyclist and unlabeled
CAMVID_CLASSES = [6, 5, 4, 0, 1, 5, 4, 4, 3, 2, 255, 255]


def write_dataset(root: Path, folders: tuple[str, ...], ids: range | tuple[int, ...]) -> Path:
    """Write 5 images to the first folder and 2 to the others, with stripes of all ids."""
    rng = np.random.default_rng(0)
    stripes = np.array(ids, np.uint8)[np.arange(SIZE[1]) * len(ids) // SIZE[1]]
    for folder in folders:
        for index in range(5 if folder == folders[0] else 2):
            pixels = np.repeat(rng.integers(0, 256, (7, 10, 3), np.uint8), 8, axis=0).repeat(8, axis=1)
            write_image(root / f"images/{folder}/{index}_{folder[:2]}.jpg", pixels)
            write_label(root / f"labels/{folder}/{index}_{folder[:2]}.png", np.tile(stripes, (SIZE[0], 1)))
    return root


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Arguments with the folders of both datasets."""
    root = tmp_path_factory.mktemp("given")
    camvid, idd = write_dataset(root / "camvid", CAMVID, CAMVID_IDS), write_dataset(root / "idd", IDD, IDD_IDS)
    return ["--camvid", str(camvid), "--idd-lite", str(idd)]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_benchmark("streets")


Make = Callable[..., Any]


@pytest.fixture
def make(script: ModuleType, given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Make a benchmark whose fixed method is "features_quarter"."""
    monkeypatch.setattr(script.street_methods, "CHOSEN", "features_quarter")
    monkeypatch.setenv("DETECTRON2_DATASETS", "replaced by the benchmark")

    def benchmark(*arguments: str, source: str = "camvid") -> Any:
        common = ["--source", source, "--output", str(tmp_path / "runs"), "--jobs", "1", *given]
        return script.Benchmark(script.parse_arguments([*common, *arguments]))

    with registered():
        yield benchmark


@pytest.fixture
def no_clip(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[argparse.Namespace]:
    """Copy the town's CLIP instead of training one, and collect the arguments of the training."""
    plans, parser = [], load_tool("train_mini_clip").make_parser()

    def run(command: list[str], check: bool) -> argparse.Namespace:
        plans.append(parser.parse_args(command[2:]))
        plans[-1].output.parent.mkdir(parents=True)
        plans[-1].output.write_bytes(Path(plans[-1].initial).read_bytes())
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(script.subprocess, "run", run)
    return plans


def pixels_of(split: str) -> list[np.ndarray]:
    return [np.asarray(Image.open(record["file_name"])) for record in get_dataset_dicts([split])]


def test_effects_from_end_to_end(make: Make, no_clip: list[argparse.Namespace]) -> None:
    """The only test that trains a network."""
    tiny = ["--", "INPUT.CROP.SIZE", "[64, 64]", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"]
    benchmark = make("--quick", "1", "--methods", "effects", "--seeds", "3", *tiny)
    benchmark.run()
    (record,) = benchmark.records["effects"].values()
    assert list(record.scores) == ["camvid", "idd", "dusk"] and record.seed == 3
    assert record.settings["config"]["DATASETS.TRAIN"] == ["street_camvid_train", "street_camvid_effects"]
    assert "DATASETS.FILES" not in record.settings["config"] and record.settings["definitions"]
    report = benchmark.report("the command")
    checkpoint = benchmark.output / "effects/seed3/model_final.pth"
    files = {row[0]: row[1:] for row in list(tables(report))[-1]}
    (plan,) = no_clip
    assert (plan.dataset, plan.steps, plan.workers) == ("street_camvid_train", 1, 1) and len(plan.definition) == 2
    assert len(files[f"`{checkpoint}`"][1].strip("`")) == 64 and f"`{benchmark.clip}`" in files


def test_classes_are_shared(make: Make, no_clip: list[argparse.Namespace]) -> None:
    make("--methods", "none").prepare()
    names = ("street_camvid_train", "street_camvid_day", "street_camvid_dusk", "street_idd_train", "street_idd_val")
    readers = get_label_readers(names)
    for name in names:
        labels = readers[name].read(label_file_of(get_dataset_dicts([name])[0]))
        ids, expected = (CAMVID_IDS, CAMVID_CLASSES) if "camvid" in name else (IDD_IDS, [*range(7), 255])
        places = np.arange(SIZE[1]) * len(ids) // SIZE[1]
        assert labels[0].tolist() == np.array(expected)[places].tolist(), name
    days = {Path(record["file_name"]).parent.name for record in get_dataset_dicts(["street_camvid_day"])}
    assert days == {"train_day", "val_day"} and len(get_dataset_dicts(["street_camvid_day"])) == 7


def test_targets_are_not_those_of_the_source(make: Make, script: ModuleType) -> None:
    for source, other, target in (("camvid", "street_idd", "val"), ("idd_lite", "street_camvid", "day")):
        benchmark = make(source=source)
        own = script.SOURCES[source].name
        assert script.targets_of(source) == (f"{other}_{target}", "street_camvid_dusk")
        for name in ("none", "effects_control", "features_quarter"):
            datasets = benchmark.experiment(name, 1).load_config().DATASETS
            assert all(train.startswith(f"{own}_") for train in datasets.TRAIN)
            assert list(datasets.TEST) == [f"{own}_val", f"{other}_{target}", "street_camvid_dusk"]
        choosing = make("--stage", "choose", source=source).experiment("control", 1).load_config().DATASETS
        assert (f"{own}_fit",) == choosing.TRAIN and (f"{own}_held", f"{own}_unseen") == choosing.TEST


def test_effects_change_images_by_their_seeds(make: Make, no_clip: list[argparse.Namespace], tmp_path: Path) -> None:
    def render(folder: str) -> list[np.ndarray]:
        benchmark = make("--methods", "effects", "--quick", "2", "--output", str(tmp_path / folder))
        benchmark.prepare()  # 2 x 8 / 2 samples of 5 images
        with registered():
            return pixels_of("street_camvid_effects")

    first = render("first")
    assert len(first) == 10 and all(np.array_equal(*pair) for pair in zip(first, render("second"), strict=True))
    source = pixels_of("street_camvid_train")
    changed = [not np.array_equal(image, source[place % 5]) for place, image in enumerate(first)]
    assert sum(changed) >= 8, "a few images get no look"
    assert not all(np.array_equal(*pair) for pair in zip(first[:5], first[5:], strict=True))
    reader = get_label_readers(["street_camvid_effects"])["street_camvid_effects"]
    label = reader.read(label_file_of(get_dataset_dicts(["street_camvid_effects"])[7]))
    assert set(np.unique(label).tolist()) == set(CAMVID_CLASSES)


def test_choosing_reads_the_source_alone(make: Make, no_clip: list[argparse.Namespace]) -> None:
    benchmark = make("--stage", "choose")
    benchmark.given["idd_lite"] = None
    benchmark.prepare()
    fit, held = ({r["file_name"] for r in get_dataset_dicts([f"street_camvid_{split}"])} for split in ("fit", "held"))
    train = {record["file_name"] for record in get_dataset_dicts(["street_camvid_train"])}
    assert not fit & held and fit | held == train and len(held) == 1
    assert len(pixels_of("street_camvid_unseen")) == 2
    assert benchmark.seeds == [1]


def test_unseen_looks_are_named_by_no_word(make: Make) -> None:
    unnamed = load_benchmark("studies/street_data").unnamed_looks
    assert set(unnamed(["a Foggy", "oil painted"])) == LOOKS.keys() - {"fog", "oil"}
    benchmark = make("--stage", "choose")
    words = benchmark.experiment("features_control", 1).load_config().STYLE_MINING.STYLES
    assert set(unnamed(words)) == LOOKS.keys() - set(STRICT_LOOKS)
    with expect_error(ConfigError, key="candidates", remedy="Remove"):
        unnamed([look.phrases[0] for look in LOOKS.values()])


def test_control_is_on_or_off(make: Make) -> None:
    benchmark = make()
    for name in benchmark.methods:
        options = benchmark.experiment(name, 1).load_config().INPUT
        has_control = name.endswith("control")
        assert (any(options.COLOR_JITTER) or bool(options.AUTO_AUGMENT.NAME)) == has_control, name
    names = ["none", "effects", "noise", "features", "features_quarter"]
    assert sorted(benchmark.methods) == sorted([*names, "control", *(f"{name}_control" for name in names[1:])])
    counts = {name: sum(run[0] == name for run in benchmark.pairs()) for name in benchmark.methods}
    assert {name for name, count in counts.items() if count == 5} == {
        "none",
        "control",
        "effects",
        "features_quarter_control",
    }
    assert set(counts.values()) == {3, 5}


def test_targets_wait_for_the_method(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script.street_methods, "CHOSEN", "")
    for words, tokens in (
        (["--stage", "score"], ("CHOSEN", "--stage choose")),
        (["--stage", "choose", "--methods", "control", "zebra"], ("--methods", "zebra", "features_control")),
    ):
        with pytest.raises(SystemExit) as end:
            script.parse_arguments(["--source", "camvid", *words])
        assert end.value.code == 2
        explains(capsys.readouterr().err.splitlines()[-1], *tokens)


def test_wrong_folders_are_named(make: Make, given: list[str], tmp_path: Path) -> None:
    for folder in (None, tmp_path / "missing", Path(given[3])):
        benchmark = make("--methods", "none", "--records", str(tmp_path / "records"))
        benchmark.given["camvid"] = folder
        with expect_error(ConfigError, key="--camvid", value=folder or "nothing", remedy="Pass"):
            benchmark.run()
    benchmark.given["camvid"] = Path(given[1])
    load_benchmark("studies/street_data").link_dataset("camvid", Path(given[1]), benchmark.data)
    other = write_dataset(tmp_path / "other", CAMVID, CAMVID_IDS)
    benchmark.given["camvid"] = other
    with expect_error(ConfigError, key="--camvid", value=other, remedy="--output"):
        benchmark.run()


def test_records_replace_runs_and_data(
    make: Make, no_clip: list[argparse.Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded runs need neither datasets nor a CLIP; the report has gains and all seeds."""
    levels = {"none": 20, "control": 25, "features_quarter_control": 28}
    train_net = tmp_path / "train_net.py"
    train_net.write_text(
        f"{SCRIPT_HEAD}names = eval(sys.argv[sys.argv.index('DATASETS.TEST') + 1])\n"
        f"score = {levels}[output.parent.name] + int(sys.argv[sys.argv.index('SEED') + 1]) ** 2\n"
        "results = {name: {'sem_seg': {'mIoU': score, 'IoU-road': 80.0}} for name in names}\n"
        "(output / 'results.json').write_text(json.dumps(results))\n"
    )
    monkeypatch.setattr(runner, "TRAIN", (str(train_net),))
    places = ("--seeds", "1", "2", "--records", str(tmp_path / "records"), "--methods", *levels)
    made = make(*places)
    made.run()
    again = make("--recorded", *places, "--output", str(tmp_path / "elsewhere"), "--camvid", "gone")
    again.run()
    assert again.records == made.records and not (tmp_path / "elsewhere").exists()
    scores, gains, seeds = ({row[0]: row[1:] for row in table} for table in tables(again.report("the command")))
    assert scores["control"] == ["27.5 ± 2.1", "27.5 ± 2.1", "27.5 ± 2.1", "2"]
    assert gains["method"] == ["idd", "p", "dusk", "p", "camvid", "p", "seeds"] and "control" not in gains
    assert gains["features_quarter_control"] == [*["+3.0 ± 0.0", "-"] * 3, "2"]
    assert seeds["none"] == ["2", "24.0", "24.0", "24.0"], "the last of its rows"
    clip = made.clip.read_bytes()
    made.clip.write_bytes(clip[:-4] + b"\0\0\0\0")
    with expect_error(FAMixError, key=str(made.clip), remedy="--rerun"):
        make(*places, "--seeds", "1", "3").run()


@pytest.mark.parametrize(
    "words",
    ["camvid", "idd_lite", "camvid --stage choose", "idd_lite --stage choose", "camvid --from-scratch"],
)
def test_committed_records_have_the_settings_of_today(script: ModuleType, words: str) -> None:
    """After a change of a config or a default that affects the results, run the benchmark again."""
    benchmark = script.Benchmark(script.parse_arguments(["--source", *words.split()]))
    check_records(benchmark)


def test_fixed_method_is_the_committed_choice(script: ModuleType) -> None:
    """It has the largest mean gain over both sources among the candidates that cost at most 1 point on each."""
    report = load_benchmark("studies/street_report")
    gains: dict[str, list[float]] = {}
    for source in script.SOURCES:
        benchmark = script.Benchmark(script.parse_arguments(["--source", source, "--stage", "choose", "--recorded"]))
        benchmark.run()
        scores = report.scores_of(benchmark.records)
        for name in scores.keys() - {"control"}:
            (held,), (unseen,) = (report.paired_gains(scores, name, "control", on) for on in ("held", "unseen"))
            gains.setdefault(name, []).append(unseen if held >= -1 else float("-inf"))
    assert max(gains, key=lambda name: sum(gains[name])) == f"{script.street_methods.CHOSEN}_control"


def test_choice_is_the_largest_gain_that_costs_little() -> None:
    choose = load_benchmark("studies/street_report").choose
    scores = {
        "control": {1: {"held": 50.0, "unseen": 30.0}},
        "one_control": {1: {"held": 49.0, "unseen": 33.0}},
        "two_control": {1: {"held": 48.9, "unseen": 40.0}},
        "three_control": {1: {"held": 55.0, "unseen": 32.0}},
    }
    assert choose(scores) == "one"
    assert choose({"control": scores["control"]}) is None


def test_scratch_has_its_own_clip_and_records(make: Make, script: ModuleType) -> None:
    usual, scratch = make(), make("--from-scratch")
    assert "--initial" in usual.clip_plan and "--initial" not in scratch.clip_plan
    assert usual.clip.name == "clip_800.safetensors" and scratch.clip.name == "clip_3000.safetensors"
    assert usual.folder.name == "streets_camvid" and scratch.folder.name == "streets_camvid_scratch"
    assert make("--stage", "choose").folder.name == "streets_camvid_choose"
    assert len({usual.output, scratch.output}) == 2
