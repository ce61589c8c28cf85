"""Every command line of every document works on miniature data."""

import json
import math
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, build_model
from PIL import Image

from command_lines import Command, find_blocks, find_commands
from command_workspace import CONFIG, Miniature
from config_factory import quick_options
from data_factory import forgotten_datasets, write_label
from error_matching import error_line, explains
from famix import PatchStyleMixin
from famix.engine import argument_parser, load_config
from famix_minitown.runs import demo
from run_factory import ROOT, parser_of
from test_documents import run_job

COMMANDS = find_commands()

# Appended to documented commands that would take minutes or large images; the later of two values counts.
QUICKER = {
    "datasets/minitown.py --out": ("--count", "1", "--size", "64", "96", "--overwrite"),
    "benchmarks/mining_direction.py": ("--steps", "1", "--patches", "8", "--metric", "source"),
    "tools/export.py": ("--runs", "1", "--sizes", "64x96"),
    "SAMPLER_TRAIN RareClassSampler": ("DATALOADER.RARE_CLASS.MIN_PIXELS", "1"),  # the images are small
    "tools/make_random_clip.py": ("--width", "4", "--layers", "1", "1", "1", "1"),
}
# Words that are removed from commands to save time -> the test that runs the same script with them.
LEFT_OUT = {
    "onnx": "tests/inference/test_export.py::test_onnx_is_the_network",
    "torch_export": "tests/inference/test_export.py::test_torch_export_is_compared_as_it_was_written",
}
# Words of a command that would download a model -> the file to use instead.
STANDS_FOR = {"RN50": "clip.pt", "minitown": "clip.pt"}
# Scripts whose command line is only parsed and planned here -> the test that runs them in miniature.
PLANNED = {
    "projects/FAMix/tools/minitown_demo.py": "tests/minitown/test_demo.py::test_demo_from_end_to_end",
    "benchmarks/minitown.py": "tests/minitown/test_demo.py::test_report_of_the_benchmark",
    "benchmarks/panoptic.py": "tests/test_panoptic_benchmark.py::test_report_has_mean_spread_and_the_paired_gain",
    "projects/FAMix/tools/train_mini_clip.py": "tests/minitown/test_clip_training.py::test_command_writes_a_clip_that_loads",
}
# Examples of docs/EXTENDING.md.
EXTENSIONS = {
    "dataset.yaml": "tests/examples/test_dataset.py::test_example_is_checked_trained_and_scored",
    "style_strategy.py": "tests/test_end_to_end.py::test_registered_strategy_trains",
    "protocol.py": "tests/evaluation/test_protocols.py::test_a_part_from_outside_scores_a_dataset",
    "clip_family.py": "tests/examples/test_models.py::test_family_is_mined_trained_and_loaded",
    "head.py": "tests/examples/test_models.py::test_head_and_meta_architecture_train_with_styles",
    "meta_architecture.py": "tests/examples/test_models.py::test_head_and_meta_architecture_train_with_styles",
}
# Console command -> script with the same command line.
SCRIPTS = {
    "famix-train": "projects/FAMix/train_net.py",
    "famix-check": "datasets/check.py",
    "famix-report": "projects/FAMix/tools/report.py",
    "famix-compare": "projects/FAMix/tools/compare_runs.py",
    "famix-bank": "projects/FAMix/tools/inspect_bank.py",
    "famix-import": "projects/FAMix/tools/import_released.py",
}
# Run by a test of its own.
ELSEWHERE = {
    "projects/FAMix/examples/onnx_runtime_example.py": "tests/inference/test_export.py::"
    "test_example_needs_the_onnx_file_alone",
    "projects/FAMix/examples/tutorial.py": "tests/examples/test_tutorial.py::test_tutorial_ends_with_a_table",
    **{f"projects/FAMix/examples/extending/{name}": test for name, test in EXTENSIONS.items()},
}
# Target of make -> the part of CI that calls it; all other targets are scripts, see PLANNED.
IN_CI = ("setup", "check", "test", "lint", "docs", "package")
# First lines of Python examples -> the test that runs them.
EXAMPLES = {
    "import numpy as np": "tests/test_documents.py::test_picture_style_example_runs",
    "import torch": "tests/test_documents.py::test_bank_example_runs",
    "from detectron2.modeling import META_ARCH_REGISTRY, SemanticSegmentor": "tests/test_documents.py::"
    "test_mixin_example_makes_a_model_whose_training_is_styled",
    "import sys": "tests/test_commands.py::test_example_of_own_script",
    "import famix": "tests/test_commands.py::test_example_of_predictor",
    "from detectron2.config import configurable": "tests/test_commands.py::test_example_of_meta_architecture",
    "from PIL import Image": "tests/test_commands.py::test_example_of_own_label_ids",
    "from pathlib import Path": "tests/data/test_detectron2_tools.py::test_readme_converts_raw_ids",
    "from detectron2.evaluation import inference_on_dataset": "tests/evaluation/test_protocols.py::"
    "test_the_python_example",
}
NO_NEW_RUN = {"--resume", "--overwrite", "--eval-only", "--mine-styles-only", "--help"}
# Blocks that are neither commands nor Python.
PICTURES = {
    "@InProceedings{fahes2024simple,",
    "_BASE_: famix://Base-FAMix.yaml",
    "$DETECTRON2_DATASETS/",
    "/data/fields/",
}


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Miniature]:
    with pytest.MonkeyPatch.context() as patch:
        yield Miniature(tmp_path_factory.mktemp("user"), patch)


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_command(command: Command, miniature: Miniature, tmp_path: Path, capfd: Any) -> None:
    miniature.provide(command.text)
    program, *arguments = miniature.words(command.text)
    if program.startswith("tools/"):  # from the project's folder
        program, arguments = "python", [f"projects/FAMix/{program}", *arguments]
    if program in RUNNERS:
        RUNNERS[program](miniature, tmp_path, arguments, command)
        return
    assert re.fullmatch(r"[A-Z][A-Z0-9_]*=\S+", program) and not arguments, f"no test runs {command.text}"
    assert (miniature.folder / program.partition("=")[2]).exists()


def run_python(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    script, *rest = arguments
    assert (ROOT / script).is_file(), f"{script} does not exist"
    if any(word in ELSEWHERE for word in arguments):
        return
    if script in PLANNED and rest != ["--help"]:
        check_plan(script, rest)
        return
    rest = [STANDS_FOR.get(word, word) for word in rest if word not in LEFT_OUT]
    if script.endswith("train_net.py") and not NO_NEW_RUN & set(rest):
        rest = ["--overwrite", *rest]  # commands of a page are independent
    for start, more in QUICKER.items():
        rest += more if start in " ".join(arguments) else ()
    miniature.launches.clear()
    assert miniature.run(script, *rest) == 0
    if script.endswith("train_net.py"):
        check_launch(miniature, rest)
    for name in re.findall(r"--(?:output|html|out|sheet) ([^\s.]+)", " ".join(rest)):
        assert list(miniature.folder.glob(f"{name}*"))


def check_launch(miniature: Miniature, arguments: list[str]) -> None:
    args = argument_parser().parse_args(arguments)
    (launch,) = miniature.launches
    assert launch["num_gpus"] == args.num_gpus
    assert (launch["num_machines"], launch["machine_rank"]) == (args.num_machines, args.machine_rank)
    assert launch["dist_url"].startswith("tcp://") == (args.num_machines > 1)
    output = miniature.folder / load_config(args.config_file, args.opts).OUTPUT_DIR
    assert (output / ("style_bank.safetensors" if args.mine_styles_only else "results.json")).is_file()


def check_plan(script: str, arguments: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / script).parent))
        parsed, names = parser_of(ROOT / script).parse_args(arguments), runpy.run_path(str(ROOT / script))
        if script.endswith("minitown_demo.py"):
            assert all(run.load_config() for run in demo.plan(parsed, script).runs)
        elif "Benchmark" in names:
            benchmark = names["Benchmark"](parsed)
            assert all(benchmark.experiment(run, 1).load_config() for run in benchmark.methods)


def run_installed(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    """Run a console command as its script in the clone, on the miniature's configs; see also tests/test_package.py."""
    name, *rest = miniature.words(command.text)
    words = [word.replace("famix://", "projects/FAMix/configs/") for word in rest]
    run_python(miniature, tmp_path, [SCRIPTS[name], *words], command)


def run_app(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    """Serve the page, open its address and stop it. The page itself is tested in tests/app."""
    opened = []

    def open_once(page: Any) -> None:
        with urlopen(page.local_url) as answer:
            opened.append(answer.status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradio.Blocks.block_thread", open_once)
        assert miniature.run("projects/FAMix/famix_cli/app.py", *arguments) == 0
    assert opened == [200]


def run_make(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    (target,) = arguments
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+|)", makefile, flags=re.MULTILINE)
    assert recipe is not None, f"no target {target}"
    if target in IN_CI:
        return  # tests/test_setup.py::test_ci_runs_the_check_that_contributors_run
    scripts = re.findall(r"/python (\S+\.py)", recipe[1])
    assert scripts and all((ROOT / script).is_file() and script in PLANNED for script in scripts)


def run_export(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    (assignment,) = arguments
    assert assignment == "DETECTRON2_DATASETS=/path/to/datasets"  # which the other commands run with


def run_sbatch(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    script = arguments.index("docs/famix.sbatch")
    assert all(re.fullmatch(r"--[a-z-]+=\S+", word) for word in arguments[:script])
    subprocess.run(["bash", "-n", str(ROOT / "docs/famix.sbatch")], check=True)
    status, calls = run_job(tmp_path, 0, *arguments[script + 1 :])
    assert status == 0
    (call,) = (call for call in calls if call.startswith("python projects/FAMix/train_net.py "))
    args = argument_parser().parse_args(call.split()[2:])
    cfg = load_config(str(miniature.folder / args.config_file), args.opts)
    assert args.resume and args.num_gpus == 4 and args.num_machines == 2 and "$" not in cfg.OUTPUT_DIR
    assert cfg.OUTPUT_DIR in call


Runner = Callable[[Miniature, Path, list[str], Command], None]


def run_launcher(miniature: Miniature, tmp_path: Path, arguments: list[str], command: Command) -> None:
    run_python(miniature, tmp_path, arguments[arguments.index("projects/FAMix/train_net.py") :], command)


RUNNERS: dict[str, Runner] = {
    **dict.fromkeys(SCRIPTS, run_installed),
    **dict.fromkeys(("famix-app", ".venv/bin/famix-app"), run_app),
    "python": run_python,
    ".venv/bin/python": run_python,
    "make": run_make,
    "export": run_export,
    "sbatch": run_sbatch,
    "torchrun": run_launcher,
    "srun": run_launcher,
}


def find_example(first_line: str) -> str:
    return next(block.text for block in find_blocks() if block.lines[0] == first_line)


def test_example_of_own_script(miniature: Miniature, tmp_path: Path) -> None:
    script = find_example("import sys").replace("projects/FAMix", str(ROOT / "projects/FAMix"))
    (tmp_path / "my_script.py").write_text(script)
    (tmp_path / "my_models.py").write_text("")
    arguments = ["--config-file", CONFIG, "--mine-styles-only", "OUTPUT_DIR", "output/own_script"]
    assert miniature.run(str(tmp_path / "my_script.py"), *arguments) == 0
    assert (miniature.folder / "output/own_script/style_bank.safetensors").is_file()


def test_example_of_predictor(miniature: Miniature) -> None:
    miniature.provide("output/GTA5_RN50 output/demo/")
    for example in (block.text for block in find_blocks() if block.lines[0] == "import famix"):
        names: dict[str, Any] = {}
        with forgotten_datasets():
            exec(example, names)
        assert names["predictor"]("street.jpg").labels.shape == (72, 112)


def test_example_of_own_label_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_ids = np.array([[0, 1], [2, 0]], np.uint8)
    write_label(Path("seen/0001_labels.png"), train_ids)
    exec(find_example("from PIL import Image"), {})
    np.testing.assert_array_equal(np.asarray(Image.open("seen/0001_ids.png")), train_ids + 1)


def test_example_of_meta_architecture(miniature: Miniature) -> None:
    options = ["MODEL.STYLE.STRATEGY", "noise", "MODEL.CLIP.WEIGHTS", str(miniature.folder / "clip.pt")]
    config = ROOT / "projects/FAMix/configs/minitown/famix_panoptic_fpn.yaml"
    cfg = load_config(str(config), [*options, "MODEL.META_ARCHITECTURE", "FAMixMaskRCNN"])
    try:
        exec(find_example("from detectron2.config import configurable"), {})
        model = build_model(cfg)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("FAMixMaskRCNN", None)
    assert isinstance(model, PatchStyleMixin) and isinstance(model, GeneralizedRCNN)


FIELDS = (
    "DATASETS.FILES", "['fields.yaml']", "DATASETS.TRAIN", "['fields_2024']", "DATASETS.TEST", "['fields_2025']",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3",
)  # fmt: skip


@pytest.mark.parametrize("case", ["memory is short", "there is no internet access"])
def test_rows_of_the_guide(case: str, miniature: Miniature) -> None:
    (row,) = re.findall(rf"^\| {case} \| (.*) \|$", (ROOT / "docs/START.md").read_text(), flags=re.MULTILINE)
    settings = shlex.split(" ".join(re.findall(r"`([^`]+)`", row)))
    config = ("--config-file", "projects/FAMix/configs/Base-FAMix.yaml", "--overwrite")
    assert (
        miniature.run("projects/FAMix/train_net.py", *config, *FIELDS, *settings, "OUTPUT_DIR", f"output/{case[:5]}")
        == 0
    )


def test_example_of_query_head_on_own_data(miniature: Miniature, capfd: pytest.CaptureFixture[str]) -> None:
    (block,) = (block for block in find_blocks() if "META_ARCHITECTURE: FAMixMaskFormer" in block.text)
    Path("queries.yaml").write_text(block.text)
    quick = ("INPUT.CROP.SIZE", "[64, 64]", *quick_options(miniature.folder))
    assert miniature.run("projects/FAMix/train_net.py", "--config-file", "queries.yaml", "--overwrite", *quick) == 0
    assert "diverges" not in capfd.readouterr().out
    losses = [json.loads(line) for line in Path("output/fields_queries/metrics.json").read_text().splitlines()]
    assert any(math.isfinite(line.get("loss_mask", math.nan)) for line in losses)


def test_town_config_of_the_query_head_on_other_classes(
    miniature: Miniature, capfd: pytest.CaptureFixture[str]
) -> None:
    config = ("--config-file", str(ROOT / "projects/FAMix/configs/minitown/famix_maskformer.yaml"))
    quick = ("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "1", "STYLE_MINING.IMS_PER_BATCH", "2", "INPUT.CROP.SIZE")
    words = (*config, *FIELDS, *quick, "[64, 64]", "STYLE_MINING.MAX_BATCHES", "1", "OUTPUT_DIR", "output/town_queries")
    assert miniature.run("projects/FAMix/train_net.py", *words) == 2
    explains(error_line(capfd), "MODEL.CLIP.WEIGHTS", "minitown", "MODEL.MASK_FORMER.CLASSIFIER")
    assert miniature.run("projects/FAMix/train_net.py", *words, "MODEL.MASK_FORMER.CLASSIFIER", "learned") == 0


def test_all_blocks_are_covered() -> None:
    assert len(COMMANDS) > 50
    others = [block for block in find_blocks() if not block.is_commands and block.language != "yaml"]
    assert {block.lines[0] for block in others} == PICTURES | EXAMPLES.keys()


@pytest.mark.parametrize("name", [*PLANNED.values(), *LEFT_OUT.values(), *ELSEWHERE.values(), *EXAMPLES.values()])
def test_tests_elsewhere_exist(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"\ndef {function}(" in (ROOT / file).read_text()


def test_broken_commands_fail(miniature: Miniature, tmp_path: Path) -> None:
    for text in (
        f"python projects/FAMix/train_net.py --config-file {CONFIG} --eval-only MODEL.WEIGHTS gone.pth",
        "make cake",
    ):
        command = Command("README.md", 1, text)
        program, *arguments = miniature.words(text)
        with pytest.raises(AssertionError):
            RUNNERS[program](miniature, tmp_path, arguments, command)
