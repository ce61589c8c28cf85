"""Seeds of independent random streams, derived from the user's seed and further keys."""

import numpy as np


def derive_seed(*keys: int) -> int:
    """Mix integers into one seed.

    Args:
        keys: non-negative integers, e.g. the user's seed, a constant for the stream, and an iteration.

    Returns:
        An integer in [0, 2**63): equal for equal keys, independent for others.
    """
    # NumPy pads short sequences with zeros; their length in front keeps (1,) and (1, 0) apart.
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))
