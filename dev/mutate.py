"""Mutation testing: check that the tests fail for each of the faults in dev/mutations.yaml.

    python dev/mutate.py --jobs 2 --output dev/mutations.md
    python dev/mutate.py --only mixing folding-eps

Each mutation is applied on its own to a copy of the tracked files, and its tests run there. The exit status is 1 if a
mutant survives without being accepted in the list, or if `find` or `tests` of a mutation no longer apply (STALE). When
you rewrite mutated code, keep the fault and adapt `file`, `function`, `find` and `replace`.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LIST = ROOT / "dev/mutations.yaml"
PRELOADED = ("torch", "cv2", "scipy.special", "detectron2.data", "detectron2.modeling", "detectron2.engine")
"""Modules that all test processes share because importing them takes seconds."""

EQUIVALENT, STALE, SURVIVED, TIMEOUT = "equivalent", "STALE", "SURVIVED", "timeout"


@dataclass(frozen=True)
class Mutation:
    """A fault that the tests must detect."""

    id: str
    place: str  # part of the project
    origin: str  # "hand", or "drawn: <operator>" for a mutation drawn by a tool
    file: str  # path relative to the repository's root
    function: str  # enclosing function or class; "" at module level
    find: str  # text that occurs exactly once in the file
    replace: str
    breaks: str  # one-line description of the fault
    tests: Sequence[str] = ()  # files or node ids, of which at least one test must fail
    equivalent: str = ""  # reason why the mutation cannot change the behavior; such mutations are not run
    accepted: str = ""  # reason why the mutant may survive

    def mutated(self, root: Path) -> str | None:
        """Return the text of the file with the fault, or None unless `find` occurs exactly once."""
        path = root / self.file
        text = path.read_text() if path.is_file() else ""
        return text.replace(self.find, self.replace) if text.count(self.find) == 1 else None


class _FirstFailure:
    """Pytest plugin that records the first failing test or module."""

    test = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.test = self.test or report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def _run_pytest(root: Path, tests: Sequence[str], results: Connection) -> None:
    os.setsid()  # a process group, so that a timeout also ends subprocesses of the tests
    os.chdir(root)
    package = str(root / "projects/FAMix")
    sys.path.insert(0, package)
    sys.dont_write_bytecode = True  # bytecode of a file with the same size and time stamp would hide the mutation
    os.environ |= {"PYTHONPATH": package, "PYTHONDONTWRITEBYTECODE": "1"}
    with open("mutate.log", "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    failure = _FirstFailure()
    status = pytest.ExitCode(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests], plugins=[failure]))
    results.send("" if status == pytest.ExitCode.OK else failure.test or STALE)  # STALE: no test was run


def run_tests(root: Path, tests: Sequence[str], seconds: float) -> str:
    """Run tests in a copy of the repository and return the first that fails, "" if all pass, or TIMEOUT."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_pytest, args=(root, tests, sender))
    process.start()
    sender.close()
    try:
        if not receiver.poll(seconds):
            with suppress(ProcessLookupError):  # on a busy machine, it may not have a group of its own yet
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.kill()
            return TIMEOUT
        return str(receiver.recv())
    except EOFError:
        return "crash of the test process"
    finally:
        process.join()


def _copy_tracked(root: Path, target: Path) -> Path:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / name, target / name)
    return target


def run_mutations(mutations: Sequence[Mutation], root: Path = ROOT, jobs: int = 1) -> dict[str, str]:
    """Apply each mutation on its own to a copy of the tracked files, and run its tests in `jobs` processes.

    Returns:
        Mapping from mutation id to EQUIVALENT, STALE, SURVIVED, TIMEOUT or the failing test.
    """
    outcomes = {one.id: EQUIVALENT if one.mutated(root) else STALE for one in mutations}
    runs = [one for one in mutations if outcomes[one.id] != STALE and not one.equivalent]
    with tempfile.TemporaryDirectory(prefix="famix_mutants_") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copies.put(_copy_tracked(root, Path(folder, str(number))))

        def outcome(one: Mutation) -> str:
            copy = copies.get()
            path = copy / one.file
            original = path.read_text()
            path.write_text(original.replace(one.find, one.replace))
            try:
                return run_tests(copy, one.tests, seconds=180) or SURVIVED
            finally:
                path.write_text(original)
                copies.put(copy)

        print("Running the tests without mutations", flush=True)
        first = Path(folder, "0")
        if failure := run_tests(first, sorted({test for one in runs for test in one.tests}), seconds=1800):
            sys.exit(f"The tests must pass without mutations, got {failure}:\n{(first / 'mutate.log').read_text()}")
        start = time.monotonic()
        futures = {pool.submit(outcome, one): one.id for one in runs}
        for done, future in enumerate(as_completed(futures), 1):
            outcomes[futures[future]] = future.result()
            eta = (time.monotonic() - start) / done * (len(runs) - done)
            print(f"{done}/{len(runs)}, ETA {eta:.0f} s: {futures[future]}: {future.result()}", flush=True)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="PLACE|ID", help="run only these mutations, or all mutations in these places"
    )
    parser.add_argument("--jobs", type=int, default=1, help="number of mutants tested in parallel (default: 1)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results table to this file")
    args = parser.parse_args(argv)
    listed = [Mutation(**entry) for entry in yaml.safe_load(LIST.read_text())]
    mutations = [one for one in listed if not args.only or {one.id, one.place} & set(args.only)]
    outcomes = run_mutations(mutations, jobs=args.jobs)
    counts = Counter(kind if kind in (EQUIVALENT, STALE, SURVIVED) else "killed" for kind in outcomes.values())
    lines = [", ".join(f"{count} {kind}" for kind, count in counts.items()) + ".\n"]
    lines += ["| Mutation | Place | Origin | Fault | Killed by |", "|---|---|---|---|---|"]
    for one in mutations:
        reasons = {EQUIVALENT: one.equivalent, SURVIVED: one.accepted}
        killed_by = ": ".join(filter(None, (outcomes[one.id], reasons.get(outcomes[one.id]))))
        lines.append("| " + " | ".join((one.id, one.place, one.origin, one.breaks, killed_by)) + " |")
    print(*lines, sep="\n")
    if args.output:
        head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
        machine = f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}"
        title = f"# Mutations\n\n`python dev/mutate.py` on {date.today()} at commit {head.strip()}, {machine}: "
        args.output.write_text(title + "\n".join(lines) + "\n")
    return int(any(o == STALE or (o == SURVIVED and not one.accepted) for one in mutations if (o := outcomes[one.id])))


if __name__ == "__main__":
    sys.exit(main())
