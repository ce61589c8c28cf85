"""Seeds of independent random streams, derived from the user's seed and further keys."""

import numpy as np


def derive_seed(*keys: int) -> int:
    """Mix non-negative integers, e.g. the user's seed, a constant and an iteration, into a seed in [0, 2**63).

    Seeds are equal for equal keys, and independent for different ones.
    """
    # NumPy pads short sequences with zeros; their length in front keeps (1,) and (1, 0) apart.
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))
