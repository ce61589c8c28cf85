"""benchmarks/towers.py: the settings for GPUs follow from the counted memory."""

from types import ModuleType

import pytest

from run_factory import load_benchmark

GIB_OF_WEIGHTS = 2**30 / 4e6  # millions of parameters


@pytest.fixture(scope="module")
def towers() -> ModuleType:
    return load_benchmark("towers")


def counted(task: str, image: float) -> dict[str, float]:
    """One GiB of weights, all of which are trained, and half the activations in bfloat16."""
    sizes = {"parameters": GIB_OF_WEIGHTS, "trained": GIB_OF_WEIGHTS, "float32/once": 0, "bfloat16/once": 1}
    return {f"{task}/{key}": x for key, x in {**sizes, "float32/image": image, "bfloat16/image": image / 2}.items()}


def test_estimate_adds_weights_gradients_moments_and_activations(towers: ModuleType) -> None:
    values = counted("full", 2)
    assert towers.estimate(values, "full", "float32", 3) == pytest.approx(1.5 + 4 + 1.15 * 6 + 3 * 0.5)
    assert towers.estimate(values, "full", "bfloat16", 3) == pytest.approx(1.5 + 4 + 1.15 * (1 + 3) + 3 * 0.25)


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        (80, "float32"),
        (30, "bfloat16"),
        (15, "bfloat16, checkpointing"),
        (11, "bfloat16, checkpointing, ACCUMULATE 2"),
        (6, "does not fit"),
    ],
)
def test_setting_is_the_first_that_fits(towers: ModuleType, gpu: int, expected: str) -> None:
    values = {**counted("full", 4), **counted("full+checkpointing", 1)}
    assert towers.gpu_setting(values, "full", images=4, side=768, gpu=gpu) == expected
