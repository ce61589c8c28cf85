"""What every test needs."""

import logging
from collections.abc import Iterator

import pytest
from detectron2.utils.logger import setup_logger


@pytest.fixture(autouse=True)
def close_log_files() -> Iterator[None]:
    """Take off the handlers that a run put on the loggers: the next test has another folder and another stdout."""
    yield
    for name in ("detectron2", "fvcore", "famix"):
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    setup_logger.cache_clear()
