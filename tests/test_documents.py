"""Documents name existing files, headings, config keys, options and error classes; their tables and examples are right."""

import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.modeling import META_ARCH_REGISTRY
from safetensors import safe_open

import famix
from clip_factory import save_tiny_clip
from command_lines import DOCUMENTS
from famix import PatchStyleMixin, StyleBank
from famix.config import flat_settings
from famix.engine import load_config
from famix.mining import bank_metadata
from famix.mining.measured import DESCRIBES_MEASURING
from famix.reports.tables import format_p, format_spread
from famix.utils import errors
from famix_minitown.runs.study import RunRecord
from run_factory import CONFIG, ROOT, load_benchmark, load_tool

DOCS = ROOT / "docs"
TEXTS = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks/results").glob("*.md"))]
README, PROJECT_README = ROOT / "README.md", ROOT / "projects/FAMix/README.md"
FOLDERS = [ROOT / name for name in ("projects", "benchmarks", "datasets", "docs", "dev")]
KINDS = ("*.py", "*.yaml", "*.md", "*.sbatch")
KEY = re.compile(
    r"\b(?:MODEL|SOLVER|STYLE_MINING|DATASETS|INPUT|TEST|DATALOADER|MODEL_SELECTION)\.[A-Z][A-Z0-9_.]*[A-Z0-9]"
)
OPTIONS_OF_OTHERS = {"--no-deps"}  # pip's


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Anchors that GitHub gives the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())):
        if "://" not in target:
            file = path.parent / target if target else path
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_files_of_the_project_that_any_text_names_exist() -> None:
    name = re.compile(
        r"(?<!--output )(?<![\w$./{}-])((?:\.\./)*(?:projects/FAMix|benchmarks|docs|datasets|tests|configs|tools|examples|famix|dev)/"
        r"[\w./-]*\.(?:py|md|yaml|png|sbatch|sh))\b"
    )
    missing = []
    files = {*TEXTS, *(file for folder in FOLDERS for kind in KINDS for file in folder.rglob(kind))}
    for path in files - {ROOT / "dev/mutations.md"}:  # a record of another commit
        for found in name.findall(path.read_text()):
            places = (ROOT, ROOT / "projects/FAMix", ROOT / "docs", path.parent)
            if not any((place / found).exists() for place in places) and "CONFIG" not in found:
                missing.append(f"{path.relative_to(ROOT)}: {found}")
    assert not missing


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_config_keys_exist(path: Path) -> None:
    text = path.read_text()
    known = set(flat_settings(load_config("")))
    named = set(KEY.findall(text))
    nodes = {key.rsplit(".", depth)[0] for key in known for depth in range(1, key.count(".") + 1)}
    assert named <= known | nodes


def test_troubleshooting_names_existing_errors_and_options() -> None:
    text = (DOCS / "TROUBLESHOOTING.md").read_text()
    named = set(re.findall(r"`(\w+Error)`", text))
    assert named and named <= set(errors.__all__)
    sources = [*(ROOT / "projects/FAMix").rglob("*.py"), *(ROOT / "datasets").glob("*.py")]
    known = set(re.findall(r'"(--[a-z-]+)"', "".join(file.read_text() for file in sources)))
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert options and options <= known | OPTIONS_OF_OTHERS


def test_the_keys_of_a_bank_are_those_that_mining_writes(tmp_path: Path) -> None:
    text = PROJECT_README.read_text().partition("## Style bank")[2].partition("## Released files")[0]
    rows = re.findall(r"^\| (.*) \| (all|mined|mined or measured|measured with .*) \|$", text, flags=re.MULTILINE)
    named = {key: banks for keys, banks in rows for key in re.findall(r"`(\w+)`", keys)}
    bank = StyleBank(bank_metadata(load_config(str(CONFIG)), "0" * 64, ["road", "sky"]))
    bank.save(tmp_path / "bank.safetensors")
    with safe_open(tmp_path / "bank.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert {key for key, banks in named.items() if not banks.startswith("measured")} == metadata.keys()
    measured = {key for key, banks in named.items() if banks != "mined"} - {"format_version", "checksum"}
    assert measured == {*DESCRIBES_MEASURING, "measured"}
    assert f"format version {metadata['format_version']}" in text


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z]+)", "\n".join(path.read_text() for path in TEXTS), flags=re.M))
    assert {"setup", "test", "lint"} <= named <= targets


def test_bank_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_blocks(PROJECT_README)[0], names)
    assert names["restyled"].shape == names["features"].shape
    assert not torch.equal(names["restyled"], names["features"])
    assert len(StyleBank.load("bank.safetensors")) == 19


def test_picture_style_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bank = StyleBank({"stage": "image"})
    bank.add(torch.zeros(1, dtype=torch.int64), torch.full((1, 3), 100.0), torch.full((1, 3), 5.0))
    bank.save("output/pictures/style_bank.safetensors")
    names: dict[str, Any] = {}
    exec(python_blocks(PROJECT_README)[2], names)
    assert names["restyled"].shape == names["image"].shape and names["inputs"].image.shape == (480, 640, 3)
    names["styles"].probability = 1.0
    assert names["styles"](names["image"]).float().std() < 6


def test_mixin_example_makes_a_model_whose_training_is_styled(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(python_blocks(PROJECT_README)[1], names)
    name = names["StyledSegmentor"].__name__
    try:
        options = ["MODEL.META_ARCHITECTURE", name, "MODEL.STYLE.STRATEGY", "noise"]
        clip = save_tiny_clip(tmp_path / "clip.pt")
        cfg = load_config(str(CONFIG), [*options, "MODEL.CLIP.WEIGHTS", str(clip)])
        model = META_ARCH_REGISTRY.get(name)(cfg)
    finally:
        META_ARCH_REGISTRY._obj_map.pop(name)
    assert isinstance(model, PatchStyleMixin)
    batch = [
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8), "sem_seg": torch.randint(0, 19, (64, 96))}
    ] * 2
    model.train()
    model.restyler.reseed(0)
    torch.manual_seed(0)
    styled = model(batch)["loss_sem_seg"]
    model.use_restyler(None)
    torch.manual_seed(0)
    assert not torch.equal(styled, model(batch)["loss_sem_seg"])


def read_table(heading: str) -> dict[str, list[str]]:
    """Rows of a table of the README by their first cell."""
    table = README.read_text().split(f"| {heading} |")[1].split("\n\n")[0]
    return {label: cells for label, *cells in (re.split(r" *\| *", line)[1:-1] for line in table.splitlines()[2:])}


def test_tables_of_five_seeds_show_the_committed_runs() -> None:
    report = load_benchmark("studies/town_report")
    control, more = report.CHOSEN, "jitter08half"
    unrelated, diverse, weather, random = (
        f"famix{words}_{control}" for words in ("", "_diverse", "_weather", "_random")
    )
    rows = {
        "baseline": "baseline",
        "+ jitter": control,
        "+ more jitter": more,
        "+ FAMix (unrelated words)": "famix",
        "+ FAMix (weather words)": "famix_weather",
        "+ FAMix (unrelated words) + jitter": unrelated,
        "+ FAMix (diverse words) + jitter": diverse,
        "+ FAMix (weather words) + jitter": weather,
    }
    comparisons = {
        "FAMix (weather words) + jitter vs. jitter": (weather, control),
        "FAMix (diverse words) + jitter vs. jitter": (diverse, control),
        "FAMix (unrelated words) + jitter vs. jitter": (unrelated, control),
        "FAMix (random words) + jitter vs. jitter": (random, control),
        "MixStyle + jitter vs. jitter": (f"mixstyle_{control}", control),
        "more jitter vs. jitter": (more, control),
        "FAMix (diverse words) + jitter vs. more jitter": (diverse, more),
        "FAMix (diverse words) vs. random words, both + jitter": (diverse, random),
        "random noise of the same strength + jitter vs. jitter": (f"noise_{control}", control),
        "FAMix (weather words) vs. noise, both + jitter": (weather, f"noise_{control}"),
        "FAMix (unrelated words) vs. noise, both + jitter": (unrelated, f"noise_{control}"),
    }
    methods = {*rows.values(), *(name for pair in comparisons.values() for name in pair)}
    runs = {
        name: {s: RunRecord.load(ROOT / "benchmarks/results/runs/minitown", name, s) for s in range(1, 6)}
        for name in methods
    }
    scores = report.scores_of(runs)

    shown = read_table("mIoU in %, five seeds")
    assert shown.keys() == rows.keys()
    for label, method in rows.items():
        means = [format_spread([s[column] for s in scores[method].values()]) for column in ("clear", report.UNSEEN)]
        gain = format_spread(report.paired_gains(scores, method, control), "+")
        assert shown[label] == [*means, "" if method in ("baseline", control) else gain], label

    shown = read_table("gain in points, five seeds, paired")
    assert shown.keys() == comparisons.keys()
    for label, pair in comparisons.items():
        unseen, clear = (report.paired_gains(scores, *pair, column) for column in (report.UNSEEN, "clear"))
        assert shown[label][:3] == [format_spread(unseen, "+"), format_p(unseen), format_spread(clear, "+")], label


def test_table_of_real_streets_shows_the_committed_runs() -> None:
    report, folder = load_benchmark("studies/street_report"), ROOT / "benchmarks/results/runs"
    rows = {
        "CamVid (153 images, Cambridge by day) to IDD-lite (India)": ("camvid", "idd"),
        "CamVid to dusk": ("camvid", "dusk"),
        "held-out images of CamVid by day": ("camvid", "camvid"),
        "IDD-lite (1,403 images) to CamVid by day": ("idd_lite", "day"),
        "IDD-lite to CamVid at dusk": ("idd_lite", "dusk"),
        "held-out images of IDD-lite": ("idd_lite", "idd"),
    }
    shown = read_table("real streets, mIoU in %, five seeds")
    assert shown.keys() == rows.keys()
    columns = {"none": 5, "control": 5, "features_control": 5, "effects_control": 3}  # -> seeds
    for label, (source, target) in rows.items():
        runs = {
            name: {seed: RunRecord.load(folder / f"streets_{source}", name, seed) for seed in range(1, count + 1)}
            for name, count in columns.items()
        }
        scores = report.scores_of(runs)
        means = [format_spread([run[target] for run in scores[name].values()]) for name in columns]
        gains = report.paired_gains(scores, "features_control", "control", target)
        expected = [*means[:3], format_spread(gains, "+"), format_p(gains), means[3]]
        assert [cell.strip("*") for cell in shown[label]] == expected, label


def test_the_reference_of_keys_is_up_to_date() -> None:
    tool = load_tool("config_reference")
    assert (DOCS / "CONFIG.md").read_text() == tool.write_reference(), "run projects/FAMix/tools/config_reference.py"


def test_comments_are_found_wherever_a_node_is_named() -> None:
    source = (
        "def add(cfg):\n    one = cfg.A.ONE = CN()\n    one.KEY = 1  # first\n    two = cfg.B\n"
        "    two.C.KEY = [1]  # second\n    other.KEY = 2  # not ours\n    cfg.D = 3\n"
        "    cfg.E = (\n        4  # fifth\n    )\n"
    )
    assert load_tool("config_reference").read_comments(source) == {
        "A.ONE.KEY": "first", "B.C.KEY": "second", "D": "", "E": "fifth"
    }  # fmt: skip


def test_a_stale_reference_has_a_status_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tool, file = load_tool("config_reference"), tmp_path / "CONFIG.md"
    tool.main(["--output", str(file)])
    tool.main(["--output", str(file), "--check"])
    file.write_text(file.read_text() + "\n")
    with pytest.raises(SystemExit) as exit_info:
        tool.main(["--output", str(file), "--check"])
    assert exit_info.value.code == 1
    assert "not up to date" in capsys.readouterr().err


def run_job(folder: Path, status: int, *arguments: str) -> tuple[int, list[str]]:
    """Run the SLURM script where SLURM and Python are scripts that write down how they were called.

    Args:
        folder: of these scripts.
        status: that the training ends with.
        arguments: of the script.

    Returns:
        Its exit status, and the calls.
    """
    calls = folder / "calls"
    scripts = {
        "srun": 'SLURM_NODEID=1 "$@"',
        "scontrol": f'echo "scontrol $*" >>{calls}; echo node1; echo node2',
        "python": f'printf "%s\\n" "python $*" >>{calls}; exit {status}',
    }
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    job = {"SLURM_GPUS_ON_NODE": "4", "SLURM_NNODES": "2", "SLURM_JOB_ID": "50007", "SLURM_JOB_NODELIST": "node[1-2]"}
    environment = {**os.environ, **job, "SLURM_ARRAY_TASK_ID": "3", "PYTHON": str(folder / "python")}
    environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(["bash", str(DOCS / "famix.sbatch"), *arguments], env=environment, check=False, timeout=60)
    return done.returncode, calls.read_text().splitlines()


def test_a_stopped_job_goes_back_into_the_queue(tmp_path: Path) -> None:
    status, calls = run_job(
        tmp_path, 143, "a.yaml", "SEED", "$SLURM_ARRAY_TASK_ID", "OUTPUT_DIR", "out put/$SLURM_ARRAY_TASK_ID"
    )
    assert status == 143
    assert calls[-1] == "scontrol requeue 50007"
    expected = (
        "python projects/FAMix/train_net.py --config-file a.yaml --resume --num-gpus 4 --num-machines 2 --machine-rank 1 "
        "--dist-url tcp://node1:30007 SEED 3 OUTPUT_DIR out put/3"
    )
    assert calls[-2] == expected


@pytest.mark.parametrize("status", [0, 2])
def test_a_job_that_is_done_or_has_a_mistake_is_not_repeated(tmp_path: Path, status: int) -> None:
    ended, calls = run_job(tmp_path, status, "a.yaml")
    assert ended == status
    assert not [call for call in calls if "requeue" in call]


def test_citation_is_complete_and_that_of_the_readme() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2024
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme and paper["url"] in readme
    names = [author["family-names"] for author in paper["authors"]]
    assert names == ["Fahes", "Vu", "Bursuc", "Pérez", "Charette"]
    assert citation["version"] == famix.__version__
    assert f"## {famix.__version__.partition('.dev')[0]}" in (ROOT / "CHANGELOG.md").read_text()
