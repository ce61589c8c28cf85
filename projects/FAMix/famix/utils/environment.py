"""What a result was computed on."""

import platform
from pathlib import Path

__all__ = ["processor_name"]


def processor_name() -> str:
    """Model of the processor, as far as the system knows it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
