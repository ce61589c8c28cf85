"""Description of the machine that computes a result."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the processor model, or its architecture if the system does not report a model."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
