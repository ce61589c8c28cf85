"""What spread over seeds says of a difference."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import scipy.stats

__all__ = ["format_p", "format_spread", "paired_p"]


def format_spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and, of several values, standard deviation (n - 1), with one decimal; a dash where a value is missing.

    Args:
        values: at least one.
        sign: "+" shows that of positive means.
    """
    if any(map(math.isnan, values)):
        return "-"
    return f"{fmean(values):{sign}.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def paired_p(gains: Sequence[float]) -> float:
    """p of the two-sided paired t-test.

    Args:
        gains: differences, pair by pair.

    Returns:
        The probability of a mean so far from 0 if nothing differed; NaN where there are less than two pairs, or all
        differences are equal.
    """
    if len(gains) < 2 or any(map(math.isnan, gains)) or stdev(gains) == 0:
        return math.nan
    return float(scipy.stats.ttest_1samp(gains, 0.0).pvalue)  # of the differences: that is the paired test


def format_p(gains: Sequence[float]) -> str:
    """`paired_p` for a table; a dash where it has nothing to go by."""
    p = paired_p(gains)
    if math.isnan(p):
        return "-"
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"
