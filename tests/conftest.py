"""What every test needs.

Fixtures import what they use: the process of pytest-xdist that starts the workers loads this file first and runs no test,
and PyTorch and Detectron2 take seconds.
"""

import logging
import signal
from collections.abc import Iterator

import pytest

# Few tests that take long. pytest-xdist would start these files last, when a worker may wait for another one for minutes.
_FIRST = frozenset({
    "test_query_export.py", "test_processes.py", "test_families.py", "test_package.py", "test_export.py",
    "test_method_works.py", "test_streets_benchmark.py", "test_trackers.py", "test_command_line.py", "test_demo.py",
    "test_panoptic_end_to_end.py", "test_query_end_to_end.py", "test_large_configs.py", "test_text_designs.py",
    "test_commands.py", "test_mutate.py", "test_end_to_end.py",
})  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, for --no-loadscope-reorder in the Makefile."""
    items.sort(key=lambda item: item.path.name not in _FIRST)


@pytest.fixture(scope="session", autouse=True)
def prepared_torch() -> None:
    """Tiny tensors gain nothing from threads, and lose much to them where the machine is busy.

    If the first backward pass of a process follows a torch.export, it starts threads, and no fork can run another one.
    """
    import torch

    torch.set_num_threads(1)
    torch.ones(1, requires_grad=True).backward()


@pytest.fixture(autouse=True)
def interruptible() -> None:
    """Obey SIGINT, which shells ignore in background jobs, and programs once they report an error.

    Processes that a test starts and interrupts would inherit this and run into time limits.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a tiny CLIP."""
    from clip_factory import save_tiny_clip

    return str(save_tiny_clip(tmp_path_factory.mktemp("clip") / "clip.pt"))


@pytest.fixture(autouse=True)
def own_catalogue() -> Iterator[None]:
    """Forget the datasets that a test registers: the next one may have others of the same names."""
    from data_factory import forgotten_datasets

    with forgotten_datasets():
        yield


@pytest.fixture(autouse=True)
def fresh_loggers() -> Iterator[None]:
    """Undo what a run does to the loggers: the next test has another folder, another stdout, and may read the log."""
    from detectron2.utils.logger import setup_logger

    yield
    for name in ("detectron2", "fvcore", "famix"):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    setup_logger.cache_clear()
