"""Where the project's scripts and configs lie, and scripts as modules."""

import importlib.util
from pathlib import Path
from types import ModuleType

__all__ = ["PROJECT", "load_script"]

PROJECT = Path(__file__).parent.parent / "projects/FAMix"


def load_script(path: str) -> ModuleType:
    """Import a script that is no part of the package, e.g. "demo.py" or "tools/export.py" below PROJECT."""
    spec = importlib.util.spec_from_file_location(f"famix_{Path(path).stem}", PROJECT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
