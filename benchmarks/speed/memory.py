"""Peak memory of a training step relative to that of its plain version, in processes of their own."""

import multiprocessing
from collections.abc import Iterator
from dataclasses import replace

from parts.common import measure

from speed.setting import Row, Setting
from speed.training import TrainingStep

PROCESSES = 5


def memory_rows(setting: Setting, processes: int = PROCESSES) -> Iterator[Row]:
    """Measure each version in several processes, in turns, and compare the lowest peaks."""
    peaks: dict[bool, list[float]] = {False: [], True: []}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for _ in range(processes):
            for plain, found in peaks.items():
                found.append(pool.apply(step_peak, (replace(setting), plain)))  # without cached networks
    yield Row(
        f"peak memory of a training step, GiB, least of {processes} processes", [min(peaks[False])], "plain rewriting of it",
        [min(peaks[True])], unit="", target="peak memory of a training step / plain rewriting of it", at_most=1.0,
    )  # fmt: skip


def step_peak(setting: Setting, plain: bool) -> float:
    """Return the peak memory in GiB of the second training step of this process."""
    step, batch = TrainingStep(setting), setting.random_batch(setting.sizes.images, setting.sizes.step_crop)
    run = step.with_channels_first().plain(batch) if plain else step.styled("bank", batch)
    run()
    return measure(run)["peak"]
