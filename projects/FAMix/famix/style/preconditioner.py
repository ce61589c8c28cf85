"""Which ways a style may go: a basis in which the statistics of a source's patches vary equally in every direction.

Means and standard deviations of real images do not change one channel at a time: light, contrast and colour move many
together. Gradient steps in this basis follow such common changes and avoid others, which only a network's quirks ask
for. In terms of the statistics themselves they are steps preconditioned with the covariance.
"""

import torch
from torch import Tensor

from famix.style.patches import check_shape
from famix.utils.errors import ConfigError

__all__ = ["METRICS", "RIDGE", "source_basis"]

METRICS = ("euclidean", "source")
"""Values of STYLE_MINING.METRIC."""

RIDGE = 1.0
"""Share of an even spread that is added to the covariance, so that no direction is closed."""


def source_basis(statistics: Tensor, ridge: float = RIDGE) -> Tensor:
    """Basis of changes of the statistics that follows how they vary among patches.

    Args:
        statistics: (P, D), a row for each patch, P >= 2; with C channels usually D = 2 C means and deviations.
        ridge: added to the covariance's diagonal, in units of its mean variance, > 0.

    Returns:
        (D, D) lower triangular L with L L^T proportional to the covariance and its ridge. The sum of its squares is D,
        as that of the unit matrix, so that a step of random direction keeps its length on average.

    Raises:
        ConfigError: `statistics` has another shape or fewer than two rows.
    """
    check_shape("statistics", statistics, ("P", "D"))
    if len(statistics) < 2:
        raise ConfigError(f"statistics must have at least 2 rows, got {len(statistics)}. Measure more patches.")
    covariance = torch.cov(statistics.double().t())
    spread = covariance.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny)
    covariance = covariance / spread + ridge * torch.eye(len(covariance), dtype=torch.float64, device=statistics.device)
    basis = torch.linalg.cholesky(covariance)
    return (basis * (len(basis) ** 0.5 / torch.linalg.matrix_norm(basis))).float()
