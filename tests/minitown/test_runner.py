"""Experiments are skipped, continued, locked and stopped; a script replaces train_net.py."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from error_matching import expect_error
from famix.io import atomic as files
from famix_minitown.runs import runner
from famix_minitown.runs.experiment import CONFIGS, Experiment, read_occurring, read_record, read_scores, write_record
from famix_minitown.runs.runner import ExperimentError, ProgressLine, run_experiments
from town_factory import SCRIPT_HEAD

RESULTS = {
    "minitown_clear_val": {"sem_seg": {"mIoU": 50.0, "ACC-road": 90.0, "ACC-sky": 80.0, "ACC-train": None}},
    "minitown_fog_val": {"sem_seg": {"mIoU": 30.0, "ACC-road": 50.0, "ACC-sky": None, "ACC-train": None}},
}
WRITE_PID = "(output / 'new').write_text(str(os.getpid()))\n(output / 'new').rename(output / 'pid')\n"
IGNORE_INTERRUPT = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
ANEW = "moved a run with different settings"

Use = Callable[[str], None]
Make = Callable[..., Experiment]


@pytest.fixture
def use_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Replace train_net.py by code, which finds its folder in `output`, and all arguments in sys.argv."""

    def use(code: str) -> None:
        script = tmp_path / "train_net.py"
        script.write_text(f"{SCRIPT_HEAD}{code}\n(output / 'results.json').write_text({json.dumps(RESULTS)!r})\n")
        monkeypatch.setattr(runner, "TRAIN", (str(script),))

    return use


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Make experiments without any CLIP."""

    def make(*options: str, name: str = "run", seed: int = 1) -> Experiment:
        settings = ("MODEL.CLIP.WEIGHTS", "", *options)
        return Experiment(name, CONFIGS / "baseline.yaml", tmp_path / "runs" / name, settings, seed)

    return make


class Meanwhile(ProgressLine):
    """Acts once, as soon as files exist."""

    def __init__(self, files: list[Path], action: Callable[[], object]) -> None:
        super().__init__(io.StringIO())
        self.files, self.action, self.done = files, action, False

    def show(self, line: str) -> None:
        if not self.done and all(file.exists() for file in self.files):
            self.done = True
            self.action()


def run(*experiments: Experiment, jobs: int = 2) -> str:
    stream = io.StringIO()
    run_experiments(experiments, jobs=jobs, progress=ProgressLine(stream, interval=0.0))
    return stream.getvalue()


def interrupt() -> None:
    raise KeyboardInterrupt


def run_until_started(*experiments: Experiment) -> None:
    """Interrupt the run as soon as all processes have written their id."""
    with pytest.raises(KeyboardInterrupt):
        run_experiments(experiments, progress=Meanwhile([one.output / "pid" for one in experiments], interrupt))


def has_ended(*experiments: Experiment) -> bool:
    """Return whether the processes of the script are gone; end them if not."""
    gone = []
    for experiment in experiments:
        with suppress(ProcessLookupError):
            os.kill(int((experiment.output / "pid").read_text()), signal.SIGKILL)
            continue
        gone.append(experiment)
    return len(gone) == len(experiments)


def test_finished_experiment_is_kept(use_script: Use, make: Make) -> None:
    use_script("print(os.environ['OMP_NUM_THREADS'], *sys.argv[1:])")
    assert "run: finished after" in run(make())
    assert "run: already finished" in run(make())
    (line,) = (make().output / "console.log").read_text().splitlines()
    assert line.startswith("1 --config-file") and " --resume MODEL.CLIP.WEIGHTS " in line
    assert line.endswith("SEED 1 STYLE_MINING.SEED 1")
    assert read_scores(make().output) == {"clear": 50.0, "fog": 30.0}
    assert read_occurring(make().output) == "1 to 2 of 3 classes occur"
    record = read_record(make().output)
    assert record["machine"] and "machine" not in record["settings"]
    write_record(make().output, {key: record[key] for key in record if key != "machine"})
    assert "already finished" in run(make()), "the machine counts"


@pytest.mark.parametrize("change", [{"seed": 2}, {"options": ("SOLVER.MAX_ITER", "7")}])
def test_other_settings_start_anew(use_script: Use, make: Make, change: dict) -> None:
    use_script("print('trained')")
    run(make())
    output = make().output
    for number in (1, 2):  # nothing of before is lost
        (output / "model_final.pth").write_text(str(number))
        said = run(make(*change.get("options", ()), seed=change.get("seed", 1)) if number == 1 else make())
        kept = output.with_name(f"run.before{number}")
        assert f"run: {ANEW} to {kept}; starting from scratch" in said
        assert (kept / "model_final.pth").read_text() == str(number) and (kept / "results.json").exists()
        assert not (output / "model_final.pth").exists()
        assert (output / "console.log").read_text() == "trained\n"


def test_settings_of_an_earlier_version_fit(use_script: Use, make: Make) -> None:
    """Keys that the package has gained count with their defaults, and keys without effect do not count."""
    use_script("print('trained')")
    run(make())
    record = read_record(make().output)
    config = record["settings"]["config"]
    assert "INPUT.RELEASED_PADDING" not in config
    for change, kept in (({"INPUT.MIN_SIZE_TEST": 7}, True), ({"SOLVER.MAX_ITER": 7}, False)):
        write_record(make().output, {**record, "settings": {**record["settings"], "config": {**config, **change}}})
        assert ("already finished" in run(make())) == kept
    assert ANEW in run(make("INPUT.RELEASED_PADDING", "True"))


@pytest.mark.parametrize("config", ["a: [", [1], None, {"SOLVER.MAX_ITER": 7}])
def test_damaged_settings_fit_nothing(use_script: Use, make: Make, config: object) -> None:
    use_script("")
    run(make())
    record = read_record(make().output)
    write_record(make().output, {**record, "settings": {**record["settings"], "config": config}})
    assert ANEW in run(make())


def test_training_is_a_module_of_the_package() -> None:
    shown = subprocess.run([sys.executable, *runner.TRAIN, "--help"], capture_output=True, text=True, check=True)
    assert "--mine-styles-only" in shown.stdout


def test_unusable_folders(use_script: Use, make: Make) -> None:
    use_script("")
    output = make().output
    output.mkdir(parents=True)
    (output / "thesis.tex").touch()
    with expect_error(ExperimentError, str(output), remedy="Choose"):
        run(make())
    (output / "thesis.tex").rename(output / "experiment.lock")  # of a start that came no further
    assert "run: finished after" in run(make())


def test_failure_shows_the_end_of_the_log_and_stops_the_others(use_script: Use, make: Make) -> None:
    code = "if output.name == 'bad':\n    print(*range(100), 'the reason', sep='\\n')\n    sys.exit(2)\ntime.sleep(60)"
    use_script(code)
    start, stream, log = time.monotonic(), io.StringIO(), str(make(name="bad").output / "console.log")
    with expect_error(ExperimentError, key="bad", value=2, remedy=log) as failure:
        run_experiments([make(name="good"), make(name="bad")], progress=ProgressLine(stream, interval=0.0))
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


def test_progress_is_read_from_the_log(use_script: Use, make: Make) -> None:
    use_script(
        "for line in ('Mining: batch 3/62, 20 styles, cosine loss 0.9 -> 0.8, 1.00 s/batch, ETA 0:00:59',\n"
        "    'eta: 0:01:10  iter: 219  total_loss: 1.5', 'scoring minitown_fog_val: 50 batches'):\n"
        "    print(line)\n    time.sleep(0.5)"
    )
    shown = run(make(), make(name="other"), jobs=1)
    assert "run: mining 3/62, 0:00:59 left | 1 more waiting" in shown
    assert re.search(r"run: training 220/\d+, 0:01:10 left", shown)
    assert "other: scoring 1/6" in shown


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
        with expect_error(ExperimentError, str(make(name=name).output), remedy="Wait"):
            run(make(*options, name=name))
        (tmp_path / "go").touch()

    meanwhile = Meanwhile([make(name="runs").output / "pid"], second)
    run_experiments([make(name="runs"), make(name="waits")], jobs=1, progress=meanwhile)
    assert meanwhile.done
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["runs", "waits"], "nothing was set aside"
    assert ANEW in run(make("SOLVER.MAX_ITER", "8", name=name)), "the lock is given back"


def test_finished_experiment_needs_no_lock(use_script: Use, make: Make) -> None:
    use_script("time.sleep(1)")
    said: list[str] = []
    first, second = make(name="first"), make(name="second")
    meanwhile = Meanwhile([second.output / "console.log"], lambda: said.append(run(first)))
    run_experiments([first, second], jobs=1, progress=meanwhile)
    assert said == ["first: already finished, skipped\n"]


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


def test_folder_that_another_process_renames(use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    use_script("")
    output, lock = make().output, files.fcntl.flock

    def rename(descriptor: int, operation: int) -> None:
        output.rename(output.with_name("aside"))
        lock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", rename)
    with pytest.raises(ExperimentError, match="another process"):
        run(make())


@pytest.mark.parametrize("why", ["no fcntl", "no locks of the file system"])
def test_systems_without_locks(use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    use_script("")
    if why == "no fcntl":
        monkeypatch.setattr(files, "_HAS_LOCKS", False)
        monkeypatch.delattr(files, "fcntl")
    else:
        monkeypatch.setattr(files.fcntl, "flock", lambda *arguments: (_ for _ in ()).throw(OSError(37, "no locks")))
    assert "run: finished after" in run(make())


def test_interruption_ends_the_processes(use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are asked to stop at once, and killed after a while."""
    monkeypatch.setattr(runner, "_SECONDS_TO_STOP", 2.0)
    asked = "lambda *a: (output / 'asked').write_text(str(time.monotonic()))"
    use_script(f"import signal\nsignal.signal(signal.SIGINT, {asked})\n{WRITE_PID}time.sleep(60)")
    experiments = [make(name="a"), make(name="b")]
    run_until_started(*experiments)
    moments = [float((experiment.output / "asked").read_text()) for experiment in experiments]
    assert abs(moments[0] - moments[1]) < 1.5, "the second must not wait for the first"
    assert has_ended(*experiments) and all(experiment.seconds() > 0 for experiment in experiments)


def test_second_interruption_leaves_nothing_alive(use_script: Use, make: Make) -> None:
    use_script(
        "import signal\n"
        "def once_more(*arguments):\n"
        "    if output.name == 'a':\n        os.kill(os.getppid(), signal.SIGINT)\n"
        f"signal.signal(signal.SIGINT, once_more)\n{WRITE_PID}time.sleep(60)"
    )
    experiments, start = [make(name="a"), make(name="b")], time.monotonic()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest's environment may ignore it
    try:
        run_until_started(*experiments)
    finally:
        signal.signal(signal.SIGINT, before)
    assert has_ended(*experiments)
    assert time.monotonic() - start < 12, "it must not wait for the limit"


def test_experiment_that_finishes_during_the_stop_is_finished(use_script: Use, make: Make) -> None:
    use_script(f"{IGNORE_INTERRUPT}{WRITE_PID}time.sleep(1)")
    run_until_started(make())
    assert make().seconds() > 0
    assert "already finished" in run(make())


def test_end_is_recorded_when_another_fails_at_once(
    use_script: Use, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_POLL_SECONDS", 2.0)
    use_script(
        f"{IGNORE_INTERRUPT}while output.name == 'bad':\n"
        "    if (output.parent / 'good/results.json').exists(): sys.exit(3)\n    time.sleep(0.05)"
    )
    with pytest.raises(ExperimentError, match="bad ended with exit status 3"):
        run(make(name="bad"), make(name="good"))
    assert "good: already finished" in run(make(name="good"))
