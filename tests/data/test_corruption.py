"""Corruptions: their strength, repeatability and registration as datasets, and the scores on them."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from error_matching import expect_error
from famix.data import FAMixDatasetMapper, get_dataset_dicts, get_label_readers, label_file_of, read_image
from famix.data.corruption import CORRUPTIONS, SEVERITIES, corrupt, expand_corruptions, parse_corruption, read_input
from famix.data.registration import domain_groups, domain_of, is_source, short_names
from famix.engine import load_config
from famix.inference import Predictor, load_model
from famix.reports import read_report
from famix.reports.run_page import render_runs
from famix.reports.runs import predict_examples, read_runs
from famix.utils.errors import DatasetError
from report_factory import tables
from run_factory import CONFIG, Workspace

SEVERE = {"DATASETS.TEST": "['tiny_val', 'tiny_val@contrast', 'tiny_night@jpeg5']"}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """Random colors with structure at several scales."""
    layers = [
        rng(size).integers(0, 256, (96 // size, 120 // size, 3)).repeat(size, 0).repeat(size, 1)
        for size in (1, 2, 4, 8, 24)
    ]
    return np.mean(layers, axis=0).astype(np.uint8)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_strength_grows_with_severity_and_draws_are_repeated(kind: str, image: np.ndarray) -> None:
    before = image.copy()
    corrupted = [corrupt(image, kind, severity, rng()) for severity in SEVERITIES]
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in corrupted)
    distances = [np.abs(one.astype(int) - image).mean() for one in corrupted]
    assert distances[0] > 0.5 and distances[4] > distances[0]
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(corrupt(image, kind, 3, rng()), corrupted[2])


@pytest.mark.parametrize("kind", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "contrast"])
@pytest.mark.parametrize("size", [(33, 50), (7, 5)])
def test_these_keep_a_uniform_image(kind: str, size: tuple[int, int]) -> None:
    gray = np.full((*size, 3), 90, np.uint8)
    for severity in SEVERITIES:
        np.testing.assert_allclose(corrupt(gray, kind, severity, rng()), gray, atol=1)


def test_noise_has_the_published_strength() -> None:
    gray = np.full((200, 300, 3), 128, np.uint8)
    for severity, scale in zip(SEVERITIES[:3], (0.08, 0.12, 0.18), strict=True):
        assert corrupt(gray, "gaussian_noise", severity, rng()).std() / 255 == pytest.approx(scale, rel=0.02)
    for severity, photons in zip(SEVERITIES[:2], (60, 25), strict=True):
        spread = corrupt(gray, "shot_noise", severity, rng()).std() / 255
        assert spread == pytest.approx((128 / 255 / photons) ** 0.5, rel=0.02)
    for severity, amount in zip(SEVERITIES, (0.03, 0.06, 0.09, 0.17, 0.27), strict=True):
        noisy = corrupt(gray, "impulse_noise", severity, rng())
        assert (noisy == 0).mean() == pytest.approx(amount / 2, abs=0.004)
        assert (noisy == 255).mean() == pytest.approx(amount / 2, abs=0.004)


def test_colors_computed_by_hand() -> None:
    image = np.array([[[100, 50, 0], [200, 150, 100]]], np.uint8)
    brighter = corrupt(image, "brightness", 2, rng())  # the largest channel rises by 0.2 * 255, hue and saturation stay
    np.testing.assert_allclose(brighter, [[[151, 75.5, 0], [251, 188.25, 125.5]]], atol=1)
    flatter = corrupt(image, "contrast", 1, rng())  # 0.4 of the distance from the mean (150, 100, 50) stays
    assert flatter.tolist() == [[[130, 80, 30], [170, 120, 70]]]
    coarse = corrupt(np.arange(48, dtype=np.uint8).reshape(4, 4, 3), "pixelate", 5, rng())  # one pixel remains
    np.testing.assert_allclose(coarse, np.full((4, 4, 3), (22.5, 23.5, 24.5)), atol=0.51)


def test_names() -> None:
    found = parse_corruption("gta5_val@fog3")
    assert found is not None and (found.base, found.kind, found.severity, found.name) == (
        "gta5_val",
        "fog",
        3,
        "gta5_val@fog3",
    )
    assert not any(map(parse_corruption, ("gta5_val", "gta5_val@fog", "gta5_val@fog6", "gta5_val@frogs1", "@fog1")))
    names = expand_corruptions(["gta5_val", "gta5_val@fog", "gta5_val@fog2", "gta5_val@jpeg4"])
    assert names == ("gta5_val", *(f"gta5_val@fog{level}" for level in SEVERITIES), "gta5_val@jpeg4")
    assert len(expand_corruptions(["a@all"])) == len(CORRUPTIONS) * 5
    assert expand_corruptions(["a@all4"]) == tuple(f"a@{kind}4" for kind in CORRUPTIONS)
    for name, remedy in (
        ("gta5_val@frog", "fog"), ("gta5_val@fog0", "gta5_val@fog3"), ("gta5_val@fog17", "gta5_val@fog3"),
        ("gta5_val@", "all"), ("a@b@fog1", "all"), ("@fog", "all"),
    ):  # fmt: skip
        with expect_error(DatasetError, name, remedy=remedy):
            expand_corruptions([name])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("corrupted"))


def test_a_corrupted_dataset_has_other_images_but_the_same_labels(workspace: Workspace) -> None:
    with workspace.registered():
        clean, noisy = get_dataset_dicts(["tiny_val"]), get_dataset_dicts(["tiny_val@shot_noise2"])
        metadata, expected = (MetadataCatalog.get(name) for name in ("tiny_val@shot_noise2", "tiny_val"))
        assert metadata.stuff_classes == expected.stuff_classes and metadata.name != expected.name
        cfg = load_config(str(CONFIG), ["DATASETS.FILES", f"['{workspace.definition}']"])
        mapper = FAMixDatasetMapper(cfg, is_train=False)
        for one, other in zip(clean, noisy, strict=True):
            assert label_file_of(one) == label_file_of(other) and other["dataset_name"] == "tiny_val@shot_noise2"
            assert (other["height"], other["width"]) == (one["height"], one["width"])
            read = read_input(other)
            assert not np.array_equal(read, read_image(one["file_name"]))
            np.testing.assert_array_equal(read, read_input(other), "the same in every epoch and process")
            np.testing.assert_array_equal(mapper(other)["image"].numpy(), read.transpose(2, 0, 1))
        renamed = {**noisy[0], "image_id": "another image"}
        assert not np.array_equal(read_input(renamed), read_input(noisy[0])), "every image has its own noise"
        with expect_error(DatasetError, "tiny_vol@fog1", remedy="DATASETS.FILES"):
            get_dataset_dicts(["tiny_vol@fog1"])
    assert "tiny_val@shot_noise2" not in DatasetCatalog


def test_domains_and_groups(workspace: Workspace) -> None:
    with workspace.registered():
        cfg = load_config(str(CONFIG), ["DATASETS.FILES", f"['{workspace.definition}']"])
        assert domain_of("tiny_val@fog3") == f"{domain_of('tiny_val')}@fog3"
        assert is_source(cfg, "tiny_val") and not is_source(cfg, "tiny_val@fog3"), "corruptions are targets"
        names = ["tiny_val", "tiny_night", "tiny_val@fog1", "tiny_val@fog2", "tiny_night@fog1"]
        assert short_names(names)["tiny_val@fog2"] == "tiny_val@fog2"
        assert domain_groups(names)["tiny_val@fog"] == ("tiny_val@fog1", "tiny_val@fog2")


def test_scores_equal_a_loop_over_corrupted_images(workspace: Workspace) -> None:
    options = [word for pair in SEVERE.items() for word in pair]
    workspace.run("run", "SOLVER.MAX_ITER", "2", *options)
    report = read_report(workspace.folder / "run/results.json")
    severities = [f"tiny_val@contrast{level}" for level in SEVERITIES]
    assert list(report.datasets) == ["tiny_val", *severities, "tiny_night@jpeg5"]
    assert list(report.row()) == ["mean of tiny_val@contrast", "tiny_night@jpeg5", "mean", "source: tiny_val"]
    (classes,) = (rows for rows in tables((workspace.folder / "run/results.md").read_text()) if rows[0][0] == "IoU")
    assert classes[0][1:] == ["tiny_val"], "no column for each of the corrupted versions"
    (rows,) = (rows for rows in tables((workspace.folder / "run/results.md").read_text()) if rows[0][1] == "corruption")
    contrast, jpeg = ([float(cell) if cell != "-" else None for cell in row[2:]] for row in rows[1:])
    scores = [report.score(name) for name in severities]
    assert contrast == pytest.approx([report.score("tiny_val"), *scores, np.mean(scores)], abs=0.051)
    assert [rows[1][:2], rows[2][:2]] == [["tiny_val", "contrast"], ["tiny_night", "jpeg"]]
    assert jpeg == [None] * 5 + [pytest.approx(report.score("tiny_night@jpeg5"), abs=0.051), None]
    with workspace.registered():
        (run,) = read_runs([workspace.folder / "run"])
        loaded = load_model(workspace.folder / "run", device="cpu")
        examples = predict_examples(run, loaded, 1)
        shown = {example.dataset: example.image for example in examples}
        assert not np.array_equal(shown["tiny_val"], shown["tiny_val@contrast1"])
        page = render_runs([run], {run.name: examples})
        assert page.count("mean over its corruptions") == 2, "a chart for each dataset"
        predictor = Predictor.from_checkpoint(workspace.folder / "run", device="cpu")
        reader, correct, labeled = get_label_readers(["tiny_val"])["tiny_val"], 0, 0
        for record in get_dataset_dicts([severities[4]]):
            truth, predicted = reader.read(label_file_of(record)), predictor(read_input(record)).labels
            correct, labeled = correct + int((truth == predicted).sum()), labeled + int((truth != 255).sum())
    assert report.score(severities[4], "pACC") == pytest.approx(100 * correct / labeled, abs=1e-6)


def test_unknown_corruptions_stop_a_run(workspace: Workspace) -> None:
    with expect_error(DatasetError, "tiny_val@rainbow", remedy="all"):
        workspace.run("other", "DATASETS.TEST", "['tiny_val@rainbow']")
    assert not Path(workspace.folder / "other").exists()
