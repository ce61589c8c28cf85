import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and lose much to them where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def visible_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was set up before, in another test, keeps the package's messages from pytest."""
    monkeypatch.setattr(logging.getLogger("famix"), "propagate", True)
