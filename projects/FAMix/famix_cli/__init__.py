"""Command lines of FAMix: `famix-train` is `famix_cli.train:main`, and so on.

These modules parse the arguments. They are outside the package `famix` and import the programs in `programs/` afterwards,
so --help and usage errors need not wait for PyTorch.
"""

import argparse
import importlib
import logging
import sys
import warnings

USER_ERROR = 2  # exit status

# Detectron2 and fvcore call functions that newer versions of torch deprecate.
_DEPRECATED = (
    ".*torch.jit.script.* is deprecated",
    ".*broadcast_buffers.* is deprecated",
    "torch.meshgrid: in an upcoming release",
)


def execute(program: str, arguments: argparse.Namespace) -> int | None:
    """Import a program and call its function `execute`.

    Args:
        program: name of a module, e.g. "famix_cli.programs.report".
        arguments: parsed command line.

    Returns:
        the exit status, as for `sys.exit`.
    """
    for message in _DEPRECATED:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # "No CUDA runtime is found", on every CPU
    try:
        module = importlib.import_module(program)
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    status: int | None = module.execute(arguments)
    return status


def whole_number(text: str, lowest: int = 0, highest: int | None = None) -> int:
    """Parse an integer argument in [lowest, highest], or of at least `lowest` if `highest` is None.

    Raises:
        argparse.ArgumentTypeError: the text is not an integer in this range.
    """
    allowed = f"of at least {lowest}" if highest is None else f"in [{lowest}, {highest}]"
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < lowest or (highest is not None and number > highest):
        raise argparse.ArgumentTypeError(f"must be an integer {allowed}, got {text!r}")
    return number
