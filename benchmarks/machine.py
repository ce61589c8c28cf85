"""The line that stands above every benchmark's table."""

import platform
from datetime import date
from pathlib import Path

import torch

from famix.utils.environment import processor_name

__all__ = ["describe_machine"]


def describe_machine(device: str = "cpu") -> str:
    """Date, processor or GPU, threads, memory and versions."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else processor_name()
    return (
        f"{date.today()}, {hardware}, {torch.get_num_threads()} threads, {_memory_gib()} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _memory_gib() -> str:
    file = Path("/proc/meminfo")
    for line in file.read_text().splitlines() if file.is_file() else []:
        if line.startswith("MemTotal"):
            return str(round(int(line.split()[1]) / 2**20))
    return "?"
