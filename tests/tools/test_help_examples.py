"""The examples that --help shows are command lines that the program takes, and the configs that they name exist."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

from famix.engine import argument_parser
from run_factory import ROOT

PROJECT = ROOT / "projects/FAMix"
SCRIPTS = [*sorted((PROJECT / "tools").glob("*.py")), PROJECT / "demo.py", *sorted((ROOT / "datasets").glob("*.py"))]


def load(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"help_of_{script.stem}", script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples(text: str, name: str) -> list[list[str]]:
    """Words of every command line of a script in a text; a line that begins far to the right continues the one above."""
    joined = re.sub(r"\n {20,}", " ", text)
    return [shlex.split(line.split("   ")[0]) for line in re.findall(rf"{re.escape(name)} (.*)", joined)]


@pytest.mark.parametrize("script", [*SCRIPTS, PROJECT / "train_net.py"], ids=lambda script: script.name)
def test_examples_are_accepted_and_their_configs_exist(script: Path) -> None:
    parser = argument_parser() if script.name == "train_net.py" else load(script).make_parser()
    found = examples(parser.epilog or "", script.name)
    assert found or "xample" not in (parser.epilog or "")
    for words in found:
        words = ["0" if word == "0|1" else word for word in words]
        if script.name == "inspect_bank.py" and words[0] not in ("merge", "filter", "validate"):
            words.insert(0, "show")  # which the command adds itself
        parser.parse_args(words)  # exits if it does not take them
        for word in words:
            if word.endswith(".yaml"):
                assert (PROJECT / word).is_file() or (ROOT / word).is_file(), word
