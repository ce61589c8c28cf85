"""Seeds for independent random streams, derived from the user's seed and additional keys."""

import numpy as np


def derive_seed(*keys: int) -> int:
    """Mix non-negative integers, e.g. the user's seed, a constant and an iteration, into a seed in [0, 2**63).

    Equal keys give equal seeds; different keys give independent seeds.
    """
    # NumPy pads short sequences with zeros. The leading length distinguishes (1,) from (1, 0).
    return int(np.random.SeedSequence((len(keys), *keys)).generate_state(1, np.uint64)[0] >> np.uint64(1))
