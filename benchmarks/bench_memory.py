"""Peak memory: each kind of work in a process of its own, ours and the plain version of it.

    python benchmarks/bench_memory.py training|mining|evaluation ours|plain [--device cuda] [--quick]

prints how many MiB the work added to those that the process had before, with all networks made: of a GPU what tensors
held, of a CPU the process's share of the machine's memory.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import torch
from bench_mining import encoder
from bench_plain import PlainSteps, plain_layers
from bench_setting import SGD, SIZES, Setting, random_batch
from bench_training import TrainingStep
from bench_turns import Row

from famix.style import optimize_styles

__all__ = ["memory_rows"]

MINED = 4  # times the styles of a timed step, about a batch of the recipe: weights weigh less then
WORK = {
    "training": "a training step",
    "mining": f"mining steps of {MINED} times as many styles",
    "evaluation": "the evaluation of an image",
}
OURS, PLAIN = "ours", "plain"


def memory_rows(setting: Setting) -> Iterator[Row]:
    """Peak memory of every kind of work: the least of several processes, as allocators differ from one to the next."""
    for kind, name in WORK.items():
        ours, plain = (
            min(_measure_in_process(setting, kind, version) for _ in range(setting.sizes.rounds))
            for version in (OURS, PLAIN)
        )
        yield Row(
            f"peak memory of {name}", ours, "the plain version's", plain, unit="MiB",
            target=f"peak memory of {name} over the plain version's", at_most=1.0,
        )  # fmt: skip


def _measure_in_process(setting: Setting, kind: str, version: str) -> float:
    arguments = [kind, version, "--device", setting.device, "--seed", str(setting.seed)]
    quick = ["--quick"] if setting.sizes.crop == SIZES["quick"].crop else []
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, *quick]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def added_mib(setting: Setting, work: Callable[[], object]) -> float:
    """The most that some work adds to what the process holds."""
    if setting.device.startswith("cuda"):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) / 2**10


def _status_kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def training(setting: Setting, version: str) -> Callable[[], object]:
    """A step without styles."""
    step = TrainingStep(setting)
    batch = random_batch(setting.sizes.images, setting.sizes.crop, setting.generator())
    if version == PLAIN:
        return lambda: step.unfolded(batch, loss=True)
    return lambda: step(step.model, batch)


def mining(setting: Setting, version: str) -> Callable[[], object]:
    """Two steps."""
    count = MINED * setting.sizes.styles
    patches, texts = setting.patches(count), setting.texts(count)
    if version == PLAIN:
        setting.clip  # noqa: B018, made before anything is measured

        def plain() -> None:
            run = PlainSteps(setting.clip, patches, texts, **SGD)
            for _ in range(2):
                run.step()

        return plain
    encode = encoder(setting)
    return lambda: optimize_styles(patches, texts, encode, steps=2, **SGD)


def evaluation(setting: Setting, version: str) -> Callable[[], object]:
    """The classes of a whole image."""
    step = TrainingStep(setting)
    height, width = setting.sizes.evaluated
    image = torch.randint(0, 256, (3, height, width), generator=setting.generator(), dtype=torch.uint8)
    inputs = [{"image": image, "height": height, "width": width}]
    model = (step.detectron2 if version == PLAIN else step.model).eval()

    @torch.no_grad()
    def predict() -> None:
        with plain_layers() if version == PLAIN else nullcontext():
            model(inputs)[0]["sem_seg"].max(dim=0)

    return predict


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=WORK)
    parser.add_argument("version", choices=(OURS, PLAIN))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and inputs (default: 0)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    args = parser.parse_args()
    sizes = SIZES["quick" if args.quick else args.device.split(":")[0]]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(sizes, args.device, args.seed, Path(folder))
        work = {"training": training, "mining": mining, "evaluation": evaluation}[args.kind]
        print(f"{added_mib(setting, work(setting, args.version)):.1f}")


if __name__ == "__main__":
    main()
