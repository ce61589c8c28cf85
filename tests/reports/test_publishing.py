"""Networks on a model hub: files, model card, upload, download and errors, with a local server as the hub."""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants

from data_factory import forgotten_datasets
from error_matching import error_line, expect_error
from famix.inference import Predictor, load_model
from famix.inference.hub import download_checkpoint, require_hub
from famix.io import file_sha256
from famix.reports import ScoredWeights, write_report
from famix.reports.publishing import scored_results
from famix.utils.errors import ConfigError, WeightsError
from famix_cli.publish import main
from hub_server import TOKEN, Hub, served_hub
from inference.inference_factory import make_image, make_run
from report_factory import fake_report, tables
from run_factory import CONFIG

NAME = "street-lab/famix-tiny"
SCORES = {"tiny_val": 71.25, "tiny_night": 38.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scored run."""
    folder = make_run(tmp_path_factory.mktemp("published"), CONFIG)
    score(folder)
    return folder


def score(folder: Path) -> None:
    weights = ScoredWeights("last", "model_final.pth", file_sha256(folder / "model_final.pth"), 4)
    write_report(fake_report(SCORES, sources=("tiny_val",), weights=weights), folder)


def use_endpoint(endpoint: str, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Change what huggingface_hub reads from the environment on import."""
    patch.setattr(constants, "ENDPOINT", endpoint)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # upload large files by plain requests
    patch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, which huggingface_hub uses with an empty cache."""
    with served_hub() as served:
        use_endpoint(served.endpoint, tmp_path / "cache", monkeypatch)
        yield served


def publish(*arguments: object) -> int:
    """Run famix-publish in this process and return its exit status."""
    with forgotten_datasets():
        return main([str(argument) for argument in arguments]) or 0


@pytest.fixture
def published(server: Hub, run: Path) -> Hub:
    assert publish(run, NAME) == 0
    return server


def test_a_published_network_predicts_as_the_run(published: Hub, run: Path) -> None:
    image = make_image()
    with forgotten_datasets():
        expected = Predictor.from_checkpoint(run, device="cpu")(image)
        for name in (NAME, f"hf://{NAME}", f"{NAME}@main", f"{NAME}@{published.commit_id(NAME)}"):
            found = Predictor.from_pretrained(name, device="cpu")(image)
            assert torch.equal(torch.as_tensor(found.probabilities), torch.as_tensor(expected.probabilities)), name
            assert found.class_names == expected.class_names
        checkpoint = load_model(Path(f"hf://{NAME}"), device="cpu").checkpoint  # a command line makes a Path
    assert file_sha256(checkpoint) == json.loads(published.files[NAME]["famix.json"])["sha256"]
    assert published.private == {NAME: False}


def test_published_files(published: Hub, run: Path) -> None:
    files = published.files[NAME]
    assert sorted(files) == ["README.md", "config.yaml", "famix.json", "model.pth", "results.json"]
    assert files["results.json"] == (run / "results.json").read_bytes()
    facts = json.loads(files["famix.json"])
    assert facts["classes"] == list(Predictor.from_pretrained(NAME, device="cpu").classes.names)
    config = yaml.safe_load(files["config.yaml"])
    assert config["MODEL"]["CLIP"]["WEIGHTS"] == "clip.pt"  # not the folder on this machine
    assert config["DATASETS"]["FILES"] == [] and config["MODEL"]["STYLE"]["STRATEGY"] != "none"
    assert all(str(run.parent).encode() not in content for name, content in files.items()), "a local path"


def test_model_card_has_scores_hash_and_metadata(published: Hub) -> None:
    card = ModelCard(published.files[NAME]["README.md"].decode())
    assert card.data.library_name == "famix" and card.data.get("license") is None
    assert [(result.dataset_name, result.metric_type, result.metric_value) for result in card.data.eval_results] == [
        ("tiny_val", "mean_iou", 71.25), ("tiny_night", "mean_iou", 38.5),
    ]  # fmt: skip
    row, scores, facts = tables(card.text)
    assert {"38.5", "71.2"} <= {cell for line in row for cell in line}
    assert {line[0] for line in scores} >= set(SCORES)
    sha256 = json.loads(published.files[NAME]["famix.json"])["sha256"]
    assert any(sha256 in line[1] for line in facts) and f'from_pretrained("{NAME}")' in card.text


def test_license_privacy_and_a_second_version(published: Hub, run: Path) -> None:
    commit = published.commit_id(NAME)
    assert publish(run, NAME, "--license", "cc-by-nc-4.0") == 0
    assert ModelCard(published.files[NAME]["README.md"].decode()).data.license == "cc-by-nc-4.0"
    assert published.commit_id(NAME) != commit
    assert publish(run, "street-lab/hidden", "--private") == 0
    assert published.private["street-lab/hidden"]


def test_an_earlier_revision_is_loaded(published: Hub, run: Path, tmp_path: Path) -> None:
    first = published.commit_id(NAME)
    newer = make_run(tmp_path / "newer", CONFIG, "TEST.WINDOW_BATCH", "7")
    score(newer)
    assert publish(newer, NAME) == 0
    with forgotten_datasets():
        earlier, latest = (load_model(f"hf://{name}", device="cpu") for name in (f"{NAME}@{first}", NAME))
    assert earlier.cfg.TEST.WINDOW_BATCH != latest.cfg.TEST.WINDOW_BATCH == 7


def test_missing_scores_are_left_out_of_the_metadata() -> None:
    report = fake_report({"a": 1.0, "b": math.nan})
    assert [result["dataset"]["name"] for result in scored_results(report)] == ["a"]


def test_output_writes_the_files_and_uploads_nothing(server: Hub, run: Path, tmp_path: Path, capsys) -> None:
    assert publish(run, NAME, "--output", tmp_path / "files") == 0
    assert not server.requests
    with forgotten_datasets():
        assert load_model(tmp_path / "files/model.pth", device="cpu").model
    assert publish(run, NAME, "--output", tmp_path / "files") == 2  # never replaces a folder
    assert "--output" in error_line(capsys)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files"]


def test_a_copy_in_the_cache_is_enough_offline(published: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = download_checkpoint(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download_checkpoint(NAME) == path
    with expect_error(WeightsError, "street-lab/other", remedy="hf download"):
        download_checkpoint("street-lab/other")


@pytest.mark.parametrize("name", ["famix", "a/b/c", "a/b@", "", "a b/c", "hf://x"])
def test_malformed_names(name: str) -> None:
    with expect_error(ConfigError, "OWNER/NAME", name.removeprefix("hf://")):
        Predictor.from_pretrained(name)


def test_missing_networks_revisions_and_files(published: Hub) -> None:
    for name, remedy in (("street-lab/none", "hf auth login"), (f"{NAME}@v9", "revisions")):
        with expect_error(WeightsError, name.partition("@")[0], remedy=remedy):
            download_checkpoint(name)
    del published.files[NAME]["famix.json"]
    with expect_error(WeightsError, NAME, remedy="famix-publish"):
        download_checkpoint(NAME)


def test_damaged_files_are_refused(published: Hub) -> None:
    published.files[NAME]["model.pth"] = published.files[NAME]["model.pth"][:-100]
    with expect_error(WeightsError, NAME, remedy="Delete"):
        download_checkpoint(NAME)


def test_a_damaged_copy_in_the_cache_is_replaced_as_the_error_says(published: Hub) -> None:
    copy = download_checkpoint(NAME).resolve()
    content = copy.read_bytes()
    copy.write_bytes(content[:-1] + b"x")
    with expect_error(WeightsError, NAME, remedy="Delete") as error:
        download_checkpoint(NAME)
    named = Path(str(error.value).split("Delete '")[1].split("'")[0])
    named.unlink()
    assert download_checkpoint(NAME).read_bytes() == content


def test_malformed_facts_are_refused(published: Hub) -> None:
    for content in (b"{}", b"[]", b"{", b'{"sha256": 5}'):
        published.files[NAME]["famix.json"] = content
        published.commits[NAME] += 1
        with expect_error(WeightsError, "famix.json"):
            download_checkpoint(NAME)


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, run: Path, capsys) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between attempts
    use_endpoint("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    with expect_error(WeightsError, NAME, remedy="hf download"):
        download_checkpoint(NAME)
    assert publish(run, NAME) == 2
    assert "127.0.0.1:9" in error_line(capsys)


def test_upload_without_access_rights(server: Hub, run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert publish(run, NAME) == 2
    assert NAME in error_line(capsys) and not server.files


def test_unscored_and_changed_runs(run: Path, tmp_path: Path, capsys) -> None:
    assert publish(tmp_path, NAME) == 2
    assert "results.json" in error_line(capsys)
    (tmp_path / "results.json").write_bytes((run / "results.json").read_bytes())
    (tmp_path / "model_final.pth").write_bytes(b"other weights")
    assert publish(tmp_path, NAME) == 2
    assert "--eval-only" in error_line(capsys)
    assert publish(run, f"{NAME}@v1") == 2
    assert "revision" in error_line(capsys)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with expect_error(ConfigError, "huggingface_hub", remedy="famix[hub]"):
        require_hub()
