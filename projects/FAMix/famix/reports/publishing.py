"""Files of a published network: checkpoint, training config, scores, hash and model card."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import famix
from famix.inference.hub import CHECKPOINT_FILE, FACTS_FILE, FORMAT_VERSION
from famix.inference.loading import LOCAL_SETTINGS, LoadedModel, strip_checkpoint
from famix.io import file_sha256
from famix.reports.report import Report
from famix.reports.results_file import RESULTS_FILE
from famix.reports.runs import CONFIG_FILE, Run
from famix.reports.tables import format_row, format_scores, text_table

CARD_FILE = "README.md"

_TASK = "image-segmentation"  # of the hub
_METRICS = {"mIoU": "mean_iou", "PQ": "panoptic_quality"}  # score -> metric of the hub


@dataclass(frozen=True)
class Publication:
    """A network to publish."""

    name: str  # OWNER/NAME
    run: Run  # scored run
    loaded: LoadedModel  # its scored weights
    license: str = ""  # identifier such as "cc-by-nc-4.0"; empty if not stated


def write_publication(publication: Publication, folder: Path) -> None:
    """Write all files of a published network to a folder.

    `model.pth` is a stripped checkpoint, `config.yaml` the training config without local paths, `results.json` the scores,
    `famix.json` the hash and class names, and `README.md` the model card.

    Raises:
        OSError, WeightsError: a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run, loaded = publication.run, publication.loaded
    strip_checkpoint(loaded, folder / CHECKPOINT_FILE)
    facts = {
        "format_version": FORMAT_VERSION,
        "famix_version": famix.__version__,
        "sha256": file_sha256(folder / CHECKPOINT_FILE),
        "architecture": loaded.cfg.MODEL.META_ARCHITECTURE,
        "classes": list(loaded.classes.names),
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, indent=2) + "\n")
    settings = yaml.safe_dump(nested(without_local_paths(run.settings)), sort_keys=False)
    (folder / CONFIG_FILE).write_text(settings)
    shutil.copyfile(run.folder / RESULTS_FILE, folder / RESULTS_FILE)
    (folder / CARD_FILE).write_text(model_card(publication, facts["sha256"]))


def without_local_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without the values that only make sense on this machine. Absolute paths become file names."""

    def shorten(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [shorten(entry) for entry in value]
        return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value

    return {key: LOCAL_SETTINGS.get(key, shorten(value)) for key, value in settings.items()}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping from "SECTION.KEY" to value as nested sections."""
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        *path, name = key.split(".")
        section = sections
        for part in path:
            section = section.setdefault(part, {})
        section[name] = value
    return sections


def model_card(publication: Publication, sha256: str) -> str:
    """Format the model card in Markdown, with the metadata that the hub reads.

    Args:
        publication: network to describe.
        sha256: hash of the published checkpoint.
    """
    report, name = publication.run.report, publication.name
    classes = publication.loaded.classes.names
    facts = {
        "checkpoint": f"{CHECKPOINT_FILE}, SHA-256 {sha256}",
        "classes": ", ".join(classes),
        **{key: value for key, value in report.run.facts().items() if key != "sha256"},
        "scored file": f"SHA-256 {report.run.weights.sha256}",
    }
    return "\n\n".join([
        f"---\n{yaml.safe_dump(card_metadata(publication), sort_keys=False)}---",
        f"# {name}",
        f"Segmentation network with {len(classes)} classes ({publication.loaded.cfg.MODEL.META_ARCHITECTURE}), trained with "
        f"FAMix for Detectron2 on {', '.join(report.run.trained_on)} alone: every other dataset below is an unseen domain.",
        f'    import famix\n\n    predictor = famix.Predictor.from_pretrained("{name}")\n'
        '    predictor("street.jpg").overlay("street.jpg")',
        f"On the command line: `famix-demo --weights hf://{name} --input street.jpg --output predicted`.",
        f"## Scores\n\n{' and '.join(report.headlines)} in percent. The mean leaves out the source.",
        format_row(report),
        format_scores(report),
        "## Facts",
        text_table(["", ""], [list(fact) for fact in facts.items()], 2, "pipe"),
        f"`{CONFIG_FILE}` contains all settings of the training run, and `{RESULTS_FILE}` all scores.",
    ]) + "\n"  # fmt: skip


def card_metadata(publication: Publication) -> dict[str, Any]:
    """Return the metadata of a model card, in the format of https://huggingface.co/docs/hub/model-cards."""
    metadata: dict[str, Any] = {
        "library_name": "famix",
        "pipeline_tag": _TASK,
        "tags": ["semantic-segmentation", "domain-generalization", "detectron2"],
        "model-index": [{"name": publication.name.split("/")[-1], "results": scored_results(publication.run.report)}],
    }
    return {"license": publication.license, **metadata} if publication.license else metadata


def scored_results(report: Report) -> list[dict[str, Any]]:
    """Return the scores on each dataset as entries of a model index. Missing scores are left out."""
    results = []
    for name in report.datasets:
        scores = {metric: report.score(name, metric) for metric in _METRICS if metric in report.headlines}
        metrics = [
            {"type": _METRICS[metric], "name": metric, "value": round(score, 2)}
            for metric, score in scores.items()
            if score == score  # not NaN
        ]
        if metrics:
            results.append({"task": {"type": _TASK}, "dataset": {"type": name, "name": name}, "metrics": metrics})
    return results
