"""The demo from end to end on a few small scenes, its errors and stops, and its report."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clip_factory import save_tiny_clip
from data_factory import registered
from famix.data import CITYSCAPES_CLASSES
from famix_cli.town import main, make_parser
from famix_minitown.rendering.conditions import CONDITIONS
from famix_minitown.runs import demo, runner
from famix_minitown.runs.experiment import condition_of, development_mean, read_occurring, read_scores, unseen_mean
from famix_minitown.runs.report import FigureRow, Results, draw_figure, write_page
from famix_minitown.runs.study import one_line_errors
from reports.pages import assert_sound
from robustness.faults import ForkedTrainNet, start_fork, status_of, wait_for
from run_factory import ROOT, load_benchmark
from town_factory import SCRIPT_HEAD, write_town

Output = pytest.CaptureFixture[str]


def test_demo_from_end_to_end(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": ForkedTrainNet}))
    splits = {"train": ("clear", [0, 1]), **{f"{name}_val": (name, [50_000]) for name in CONDITIONS}}
    definition, clip = write_town(tmp_path / "data", "smalltown", splits), save_tiny_clip(tmp_path / "clip.pt")
    output, targets = tmp_path / "demo", [f"smalltown_{name}_val" for name in CONDITIONS]
    arguments = [
        "--output", str(output), "--quick", "2", "--clip", str(clip), "--",
        "DATASETS.FILES", f"['{definition}']", "DATASETS.TRAIN", "['smalltown_train']", "DATASETS.TEST", str(targets),
        "INPUT.CROP.SIZE", "[64, 64]", "INPUT.SCALE_RANGE", "[1.0, 1.0]", "SOLVER.IMS_PER_BATCH", "2",
        "STYLE_MINING.IMS_PER_BATCH", "2", "STYLE_MINING.STEPS", "1", "STYLE_MINING.TEMPLATES", "['a {}']",
        "DATALOADER.NUM_WORKERS", "0", "MODEL.CLIP.TRAINABLE", "['layer4']",
    ]  # fmt: skip
    runs = {
        "baseline": "baseline", "+ jitter": "jitter",
        "+ FAMix": "famix", "+ FAMix + jitter": "famix_default",
    }  # fmt: skip
    with registered():
        main(arguments)
        printed = capsys.readouterr().out
        logs = {name: (output / name / "console.log").stat().st_mtime_ns for name in runs.values()}
        main(arguments)  # again
    again = capsys.readouterr()

    assert [line[:3] for line in printed.splitlines() if re.match(r"\d/4 ", line)] == ["1/4", "2/4", "3/4", "4/4"]
    scores = {title: read_scores(output / name) for title, name in runs.items()}
    means = {title: unseen_mean(score) for title, score in scores.items()}
    for title, score in scores.items():
        assert list(score) == list(CONDITIONS)
        cells = [f"{value:.1f}" for value in (*score.values(), means[title])]
        gains = [f"{means[title] - means[name]:+.1f}" for name in ("baseline", "+ jitter") if name != title]
        assert re.search("^" + " +".join(map(re.escape, [title, *cells, *gains])) + " *$", printed, flags=re.MULTILINE)
    words, html = read_occurring(output / "baseline"), (output / "story.html").read_text()
    assert re.fullmatch(r"\d+( to \d+)? of 19 classes occur", words) and printed.count(words) == 1 and words in html
    assert str(output / "story.png") in printed and str(output / "story.html") in printed
    assert all((output / name / "style_bank.safetensors").exists() == ("famix" in name) for name in runs.values())
    with Image.open(output / "story.png") as picture:
        assert 1500 < picture.width < 1700
    page = assert_sound(html)
    assert [link[:22] for link in page.addresses] == ["data:image/png;base64,"], "the page must stand on its own"
    assert "http" not in html.replace(page.addresses[0], "")
    assert {*CONDITIONS, "vs. baseline", "vs. jitter"} <= set(page.tables[0][0])
    assert [row[0] for row in page.tables[0][1:]] == list(runs)

    assert again.err.count("already finished, skipped") == 4
    assert printed.split("3/4")[1].split("4/4")[0] == again.out.split("3/4")[1].split("4/4")[0]
    assert logs == {name: (output / name / "console.log").stat().st_mtime_ns for name in logs}


@pytest.mark.parametrize("prompts", ["strict", "weather", "web"])
def test_networks_differ_by_their_additions(prompts: str) -> None:
    runs = demo.plan(make_parser().parse_args(["--prompts", prompts]), "").runs
    baseline, jitter, famix, both = (run.settings()["config"] for run in runs)

    def differing(one: dict[str, object], other: dict[str, object]) -> set[str]:
        return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}

    jittered = {"INPUT.COLOR_JITTER", "INPUT.COLOR_JITTER_PROBABILITY"}
    styled, share = {"MODEL.STYLE.STRATEGY", "STYLE_MINING.STYLES"}, {"MODEL.STYLE.PROBABILITY"}
    assert differing(baseline, jitter) == jittered and differing(baseline, famix) == styled
    assert differing(famix, both) == jittered | share and differing(jitter, both) == styled | share


def test_errors_end_with_one_line(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_line(status: int, *arguments: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == status
        return capsys.readouterr().err.splitlines()[-1]

    def interrupt(demo: object) -> None:
        raise KeyboardInterrupt

    line = last_line(1, "--output", str(tmp_path), "--", "SOLVER.MAX_ITRE", "3")
    assert line.startswith("error: ") and "SOLVER.MAX_ITER" in line
    monkeypatch.setattr(demo, "show", interrupt)
    assert "run the same command again to resume" in last_line(130)
    monkeypatch.setattr(demo, "show", lambda demo: pytest.fail("it has begun"))
    for option, value, least in (("--quick", "0", 1), ("--quick", "-3", 1), ("--quick", "x", 1), ("--seed", "-1", 0)):
        message = f"argument {option}: must be an integer of at least {least}, got '{value}'"
        assert message in last_line(2, option, value)
    parser = load_benchmark("parts/common").study_parser("", "output/something", "something")
    assert parser.parse_args(["--jobs", "3"]).jobs == 3
    for jobs in ("0", "-1", "two"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--jobs", jobs])
        assert f"argument --jobs: must be an integer of at least 1, got '{jobs}'" in capsys.readouterr().err


def test_closed_terminal_ends_the_runs(tmp_path: Path) -> None:
    script, output = tmp_path / "train_net.py", tmp_path / "runs"
    script.write_text(
        f"{SCRIPT_HEAD}(output / 'new').write_text(str(os.getpid()))\n"
        "(output / 'new').rename(output / 'pid')\ntime.sleep(100)\n"
    )
    options = ["--configs", "baseline", "--seeds", "1", "2", "--output", str(output), "--", "MODEL.CLIP.WEIGHTS", ""]

    def run_benchmark() -> None:
        runner.TRAIN = (str(script),)
        sys.path.append(str(ROOT / "benchmarks"))
        sys.argv[1:] = options
        runpy.run_path(str(ROOT / "benchmarks/minitown.py"), run_name="__main__")

    pids, log = [output / f"baseline/seed{seed}/pid" for seed in (1, 2)], tmp_path / "log"
    process = start_fork(run_benchmark, log)
    wait_for(lambda: all(pid.exists() for pid in pids), log)
    for _ in range(2):  # the system sends one, the shell another
        os.kill(process, signal.SIGHUP)
    assert status_of(process) == 129, log.read_text()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_nohup_is_respected() -> None:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with one_line_errors():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert callable(signal.getsignal(signal.SIGTERM))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_names_and_means() -> None:
    names = ("minitown_night_val", "smalltown_clear_val", "minitown_haze_dev", "minitown_fog_val_panoptic", "other")
    assert [condition_of(name) for name in names] == ["night", "clear", "haze", "fog", "other"]
    everything = {"clear": 90.0, "fog": 20.0, "night": 40.0, "haze": 50.0, "drizzle": 70.0}
    assert unseen_mean(everything) == 30.0 and development_mean(everything) == 60.0
    assert np.isnan(unseen_mean({"clear": 90.0, "haze": 50.0})) and np.isnan(development_mean({"fog": 20.0}))


def test_report_of_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    script = tmp_path / "train_net.py"
    monkeypatch.setattr(runner, "TRAIN", (str(script),))
    script.write_text(
        SCRIPT_HEAD + "seed = int(sys.argv[sys.argv.index('SEED') + 1])\n"
        "fog = 20 + seed + {'baseline': 0, 'famix': 2 + 2 * seed}[output.parent.name]\n"
        "scores = {'clear': {'mIoU': 50.0, 'IoU-road': 80.0 + seed}, 'fog': {'mIoU': fog, 'IoU-road': 1.0}}\n"
        "results = {f'minitown_{name}_val': {'sem_seg': score} for name, score in scores.items()}\n"
        "(output / 'results.json').write_text(json.dumps(results))\n"
    )
    report = tmp_path / "new/report.md"
    arguments = ["--configs", "baseline", "famix", "--seeds", "1", "2", "--output", str(tmp_path / "runs")]
    options = ["--report", str(report), "--", "MODEL.CLIP.WEIGHTS", ""]
    monkeypatch.setattr(sys, "argv", ["minitown.py", *arguments, *options])
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / "benchmarks/minitown.py"), run_name="__main__")
    text = report.read_text()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    cells = [cell.strip() for cell in rows["famix"].split("|")[1:-1]]  # the last table that has it: gains 4 and 6
    assert cells == ["famix", "+5.0 ± 1.4", "0.1257", ""]  # t = 5 / (sqrt(2) / sqrt(2)), one degree of freedom
    assert "| baseline | 50.0 ± 0.0 | 21.5 ± 0.7 | 21.5 ± 0.7 |" in re.sub(r" +", " ", text)
    assert re.search(r"\| road +\| 81.5 +\|", text)
    assert capsys.readouterr().out.strip() == text.strip()


def test_figure_and_page_mark_the_winner(tmp_path: Path) -> None:
    rng, shape = np.random.default_rng(0), (96, 192)
    rows = [
        FigureRow(
            condition,
            rng.integers(0, 256, (*shape, 3), dtype=np.uint8),
            rng.choice(np.array([0, 1, 2, 10, 255], np.uint8), shape),
            (np.zeros(shape, np.uint8), np.full(shape, 13, np.uint8)),
            (12.3, 45.6),
        )
        for condition in CONDITIONS
    ]
    figure = tmp_path / "new/story.png"
    draw_figure(rows, ("baseline", "FAMix"), figure)
    with Image.open(figure) as image:
        assert image.mode == "RGB" and image.getpixel((2, 2)) == (255, 255, 255)
        colors = {color for _, color in image.getcolors(1 << 24)}
    assert {CITYSCAPES_CLASSES[index].color for index in (0, 1, 2, 10, 13)} <= colors
    assert figure.stat().st_size < 1_500_000, "images of noise are the largest"

    scores = [{"clear": 70.0, "fog": 30.0}, {"clear": 69.0, "fog": 40.0}, {"clear": 70.0, "fog": 43.0}]
    results = Results(("baseline", "+ jitter", "both"), scores, ("baseline", "+ jitter"), {"a<b": "x & y"})
    write_page(results, figure, tmp_path / "story.html")
    page = (tmp_path / "story.html").read_text()
    assert "+3.0 points over jitter" in page
    assert assert_sound(page).tables[0][1:] == [
        ["baseline", "70.0 ★", "30.0", "30.0", "", "-10.0"],
        ["+ jitter", "69.0", "40.0", "40.0", "+10.0", ""],
        ["both", "70.0 ★", "43.0 ★", "43.0 ★", "+13.0", "+3.0"],
    ], "the best of a column, in all rows that read the same"
    assert "<dt>a&lt;b</dt><dd>x &amp; y</dd>" in page and len(page) > figure.stat().st_size
