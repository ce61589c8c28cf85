"""How experiments are skipped, continued, locked and stopped, with a script in the place of train_net.py."""

import io
import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from error_matching import expect_error
from famix.io import atomic as files
from famix.utils.errors import ConfigError
from famix_minitown import runner
from famix_minitown.experiment import CONFIGS, Experiment, read_occurring, read_record, read_scores, write_record
from famix_minitown.runner import ExperimentError, ProgressLine, run_experiments

RESULTS = {
    "minitown_clear_val": {"sem_seg": {"mIoU": 50.0, "ACC-road": 90.0, "ACC-sky": 80.0, "ACC-train": None}},
    "minitown_fog_val": {"sem_seg": {"mIoU": 30.0, "ACC-road": 50.0, "ACC-sky": None, "ACC-train": None}},
}
WRITE_PID = "(output / 'new').write_text(str(os.getpid()))\n(output / 'new').rename(output / 'pid')\n"

Use = Callable[[str], None]
Make = Callable[..., Experiment]


@pytest.fixture
def use_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Puts code in the place of train_net.py; it finds its folder in `output`, and all arguments in sys.argv."""

    def use(code: str) -> None:
        script = tmp_path / "train_net.py"
        head = "import sys, time, json, os\nfrom pathlib import Path\n"
        head += "output = Path(sys.argv[sys.argv.index('OUTPUT_DIR') + 1])\n"
        script.write_text(f"{head}{code}\n(output / 'results.json').write_text({json.dumps(RESULTS)!r})\n")
        monkeypatch.setattr(runner, "TRAIN_NET", script)

    return use


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes experiments without any CLIP."""

    def make(*options: str, name: str = "run", seed: int = 1) -> Experiment:
        return Experiment(
            name, CONFIGS / "baseline.yaml", tmp_path / "runs" / name, ("MODEL.CLIP.WEIGHTS", "", *options), seed
        )

    return make


def run(*experiments: Experiment, jobs: int = 2) -> str:
    stream = io.StringIO()
    run_experiments(experiments, jobs=jobs, threads=3, progress=ProgressLine(stream, interval=0.0))
    return stream.getvalue()


def test_a_finished_experiment_is_kept(use_script: Use, make: Make) -> None:
    use_script("print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:])")
    assert "run: finished after" in run(make())
    assert "run: finished before" in run(make())
    lines = (make().output / "console.log").read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("3 --config-file") and " --resume MODEL.CLIP.WEIGHTS " in lines[0]
    assert lines[0].endswith("SEED 1 STYLE_MINING.SEED 1")
    assert read_scores(make().output) == {"clear": 50.0, "fog": 30.0}
    assert read_occurring(make().output) == "1 to 2 of 3 classes occur"


@pytest.mark.parametrize("change", [{"seed": 2}, {"options": ("SOLVER.MAX_ITER", "7")}])
def test_other_settings_start_anew(use_script: Use, make: Make, change: dict) -> None:
    use_script("print('trained')")
    run(make())
    output = make().output
    for number in (1, 2):  # nothing of before is lost
        (output / "model_final.pth").write_text(str(number))
        said = run(make(*change.get("options", ()), seed=change.get("seed", 1)) if number == 1 else make())
        kept = output.with_name(f"run.before{number}")
        assert f"run: made with other settings, now in {kept}; starting from scratch" in said
        assert (kept / "model_final.pth").read_text() == str(number) and (kept / "results.json").exists()
        assert not (output / "model_final.pth").exists()
        assert (output / "console.log").read_text() == "trained\n"


def record_as_0_1_did(experiment: Experiment, change: Callable[[dict[str, Any]], None] = lambda config: None) -> None:
    """Replace the settings of an experiment's record by the text of its whole config."""
    cfg = experiment.load_config()
    cfg.OUTPUT_DIR = cfg.MODEL.CLIP.WEIGHTS = cfg.MODEL.STYLE.BANK = ""
    config = yaml.safe_load(cfg.dump())
    change(config)
    record = read_record(experiment.output)
    settings = {**record["settings"], "config": yaml.safe_dump(config)}
    write_record(experiment.output, {**record, "settings": settings})


def test_a_finished_experiment_of_an_earlier_version_is_kept(use_script: Use, make: Make) -> None:
    """It lacks keys that the package has gained meanwhile, and has others of no effect."""
    use_script("print('trained')")
    run(make())
    record_as_0_1_did(
        make(), lambda config: (config["INPUT"].pop("RELEASED_PADDING"), config["INPUT"].update(MIN_SIZE_TEST=7))
    )
    assert "finished before" in run(make())
    assert "made with other settings" in run(make("INPUT.RELEASED_PADDING", "True"))
    record_as_0_1_did(make(), lambda config: config["SOLVER"].update(MAX_ITER=7))
    assert "made with other settings" in run(make())


@pytest.mark.parametrize("config", ["a: [", "7", [1], None, "&a [*a]", "a: " + "[" * 200, {"SOLVER.MAX_ITER": 7}])
def test_damaged_settings_fit_nothing(use_script: Use, make: Make, config: object) -> None:
    use_script("")
    run(make())
    record = read_record(make().output)
    write_record(make().output, {**record, "settings": {**record["settings"], "config": config}})
    assert "made with other settings" in run(make())


def test_a_folder_of_something_else_is_left_alone(use_script: Use, make: Make) -> None:
    use_script("")
    make().output.mkdir(parents=True)
    (make().output / "thesis.tex").touch()
    with pytest.raises(ExperimentError, match="must be the folder of an experiment"):
        run(make())
    assert (make().output / "thesis.tex").exists()


def test_a_failure_shows_the_end_of_the_log_and_stops_the_others(use_script: Use, make: Make) -> None:
    use_script(
        "if output.name == 'bad':\n    print(*range(100), 'the reason', sep='\\n')\n    sys.exit(2)\ntime.sleep(60)"
    )
    start, stream = time.monotonic(), io.StringIO()
    with expect_error(
        ExperimentError, key="bad", value=2, remedy=str(make(name="bad").output / "console.log")
    ) as failure:
        progress = ProgressLine(stream, interval=0.0)
        run_experiments([make(name="good"), make(name="bad")], threads=3, progress=progress)
    assert "the reason" in str(failure.value)
    shown = stream.getvalue().splitlines()
    assert [line.strip() for line in shown[-15:]] == [*map(str, range(86, 100)), "the reason"]
    assert time.monotonic() - start < 30, "the other one must have been stopped"


def test_what_was_stopped_continues(use_script: Use, make: Make) -> None:
    use_script("print('first')\n(output / 'checkpoint').touch()\nsys.exit(1)")
    with pytest.raises(ExperimentError):
        run(make())
    use_script("print('second', (output / 'checkpoint').exists())")
    run(make())
    assert (make().output / "console.log").read_text() == "first\nsecond True\n"


def test_interruption_ends_the_processes(use_script: Use, make: Make) -> None:
    use_script(f"{WRITE_PID}time.sleep(60)")
    with pytest.raises(KeyboardInterrupt):
        run_experiments([make()], progress=Meanwhile([make().output / "pid"], interrupt))
    assert has_ended(make()) and make().seconds() > 0


def test_progress_is_read_from_the_log(use_script: Use, make: Make) -> None:
    use_script(
        "for line in ('Mining: batch 3/62, 20 styles, cosine loss 0.9 -> 0.8, 1.00 s/batch, ETA 0:00:59',\n"
        "    'eta: 0:01:10  iter: 219  total_loss: 1.5', 'Start inference on 50 batches'):\n"
        "    print(line)\n    time.sleep(0.5)"
    )
    shown = run(make(), make(name="other"), jobs=1)
    assert "run: mining 3/62, 0:00:59 left | 1 more wait" in shown
    assert re.search(r"run: training 220/\d+, 0:01:10 left", shown)
    assert "other: scoring 1/6" in shown


def test_a_clone_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "TRAIN_NET", tmp_path / "train_net.py")
    with pytest.raises(ConfigError, match="clone of the repository"):
        run_experiments([])


class Meanwhile(ProgressLine):
    """Does something once, as soon as files are there."""

    def __init__(self, files: list[Path], action: Callable[[], object]) -> None:
        super().__init__(io.StringIO())
        self.files, self.action, self.done = files, action, False

    def show(self, line: str) -> None:
        if not self.done and all(file.exists() for file in self.files):
            self.done = True
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


def has_ended(*experiments: Experiment) -> bool:
    """Whether the processes of the script are gone; it ends them if not."""
    gone = []
    for experiment in experiments:
        with suppress(ProcessLookupError):
            os.kill(int((experiment.output / "pid").read_text()), signal.SIGKILL)
            continue
        gone.append(experiment)
    return len(gone) == len(experiments)


@pytest.mark.parametrize("options", [(), ("SOLVER.MAX_ITER", "7")], ids=["same settings", "others"])
@pytest.mark.parametrize("name", ["runs", "waits"])
def test_a_folder_is_written_by_one_process_at_a_time(
    use_script: Use, make: Make, tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    use_script(
        f"{WRITE_PID}start = time.monotonic()\nwhile output.name == 'runs' and time.monotonic() < start + 10:\n"
        f"    if Path({str(tmp_path)!r}, 'go').exists(): break\n    time.sleep(0.05)"
    )

    def second() -> None:
        with pytest.raises(ExperimentError, match=f"{name} is being written by another process. Wait for it to end"):
            run(make(*options, name=name))
        (tmp_path / "go").touch()

    meanwhile = Meanwhile([make(name="runs").output / "pid"], second)
    run_experiments([make(name="runs"), make(name="waits")], jobs=1, progress=meanwhile)
    assert meanwhile.done
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["runs", "waits"], "nothing was set aside"
    assert "made with other settings" in run(make("SOLVER.MAX_ITER", "8", name=name)), "the lock is given back"


def test_what_is_finished_needs_no_lock(use_script: Use, make: Make) -> None:
    use_script("time.sleep(1)")
    said: list[str] = []
    first, second = make(name="first"), make(name="second")
    meanwhile = Meanwhile([second.output / "console.log"], lambda: said.append(run(first)))
    run_experiments([first, second], jobs=1, progress=meanwhile)
    assert said == ["first: finished before, kept\n"]


def test_an_orphan_keeps_the_lock(use_script: Use, make: Make) -> None:
    use_script(f"if os.fork():\n    os._exit(1)\nos.setsid()\n{WRITE_PID}time.sleep(60)")
    with pytest.raises(ExperimentError, match="ended with exit status 1"):
        run(make())
    while not (make().output / "pid").exists():
        time.sleep(0.05)
    use_script("")
    try:
        with pytest.raises(ExperimentError, match="another process"):
            run(make())
    finally:
        assert not has_ended(make())
    deadline = time.monotonic() + 20
    while True:  # until the system has ended it
        try:
            assert "finished after" in run(make())
            break
        except ExperimentError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_folder_that_is_set_aside_at_this_moment(
    use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_script("")
    output = make().output
    lock = files.fcntl.flock

    def other_process(descriptor: int, operation: int) -> None:
        output.rename(output.with_name("aside"))
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", other_process)
    with pytest.raises(ExperimentError, match="another process"):
        run(make())


@pytest.mark.parametrize("why", ["no fcntl", "no locks of the file system"])
def test_without_locks(use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    use_script("")
    if why == "no fcntl":
        monkeypatch.setattr(files, "_HAS_LOCKS", False)
        monkeypatch.delattr(files, "fcntl")
    else:
        monkeypatch.setattr(files.fcntl, "flock", lambda *arguments: (_ for _ in ()).throw(OSError(37, "no locks")))
    assert "run: finished after" in run(make())


def test_a_start_that_came_no_further_than_its_lock(use_script: Use, make: Make) -> None:
    use_script("")
    make().output.mkdir(parents=True)
    (make().output / "experiment.lock").touch()
    assert "run: finished after" in run(make())


def test_all_are_asked_to_stop_at_once(use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_SECONDS_TO_STOP", 2.0)
    use_script(
        "import signal\n"
        "signal.signal(signal.SIGINT, lambda *a: (output / 'asked').write_text(str(time.monotonic())))\n"
        f"{WRITE_PID}time.sleep(60)"
    )
    experiments = [make(name="a"), make(name="b")]
    meanwhile = Meanwhile([experiment.output / "pid" for experiment in experiments], interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_experiments(experiments, progress=meanwhile)
    asked = [float((experiment.output / "asked").read_text()) for experiment in experiments]
    assert abs(asked[0] - asked[1]) < 1.5, "the second must not wait for the first"
    assert has_ended(*experiments)


def test_a_second_interruption_leaves_nothing_alive(use_script: Use, make: Make) -> None:
    use_script(
        "import signal\n"
        "def once_more(*arguments):\n"
        "    if output.name == 'a':\n        os.kill(os.getppid(), signal.SIGINT)\n"
        f"signal.signal(signal.SIGINT, once_more)\n{WRITE_PID}time.sleep(60)"
    )
    experiments = [make(name="a"), make(name="b")]
    meanwhile = Meanwhile([experiment.output / "pid" for experiment in experiments], interrupt)
    start = time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests run in
    try:
        with pytest.raises(KeyboardInterrupt):
            run_experiments(experiments, progress=meanwhile)
    finally:
        signal.signal(signal.SIGINT, before)
    assert has_ended(*experiments)
    assert time.monotonic() - start < 12, "it must not wait for the limit"


def test_what_finishes_while_it_is_stopped_is_finished(use_script: Use, make: Make) -> None:
    use_script(f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{WRITE_PID}time.sleep(1)")
    with pytest.raises(KeyboardInterrupt):
        run_experiments([make()], progress=Meanwhile([make().output / "pid"], interrupt))
    assert make().seconds() > 0
    assert "finished before" in run(make())


def test_the_end_of_one_is_noted_when_another_fails_at_once(
    use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_POLL_SECONDS", 2.0)
    use_script(
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "while output.name == 'bad':\n"
        "    if (output.parent / 'good/results.json').exists(): sys.exit(3)\n    time.sleep(0.05)"
    )
    with pytest.raises(ExperimentError, match="bad ended with exit status 3"):
        run(make(name="bad"), make(name="good"))
    assert "good: finished before" in run(make(name="good"))


@pytest.mark.parametrize("numbers", [{"jobs": 0}, {"jobs": -2}, {"threads": 0}])
def test_nothing_runs_with_no_jobs_or_threads(numbers: dict[str, int]) -> None:
    ((key, value),) = numbers.items()
    with pytest.raises(ConfigError, match=f"{key} must be at least 1, got {value}"):
        run_experiments([], **numbers)


def test_the_machine_is_recorded_but_changes_nothing(use_script: Use, make: Make) -> None:
    use_script("")
    run(make())
    record = read_record(make().output)
    assert isinstance(record["machine"], str) and record["machine"]
    assert "machine" not in record["settings"]
    for other in ({**record, "machine": "another"}, {key: record[key] for key in record if key != "machine"}):
        write_record(make().output, other)
        assert "finished before" in run(make())
