"""The line that stands above every benchmark's table."""

import platform
from datetime import date
from pathlib import Path

import torch

__all__ = ["describe_machine"]


def describe_machine(device: str = "cpu") -> str:
    """Date, processor or GPU, threads, memory and versions."""
    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return (
        f"{date.today()}, {hardware}, {torch.get_num_threads()} threads, {_memory_gib()} GiB, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> str:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal"):
            return str(round(int(line.split()[1]) / 2**20))
    return "?"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.is_file() else []
