"""What the operator ``hals_sweep`` computes, in plain PyTorch: a sweep of hierarchical alternating
least squares over one factor W [m, k] >= 0 of a matrix X ~ W H, the other one fixed.

With the numerator N = X H^T [m, k] and the Gram matrix G = H H^T [k, k], of

    1/2 |X - W H|^2 + l1 |W|_1,    W >= 0

each component t in turn takes what is best while the others stand, as they have become:

    w_t <- max(0, w_t + (n_t - l1 - sum_s g_ts w_s) / g_tt)

(an l2 penalty is one on the diagonal of G). Numbers of a component do not meet in the loss, so that
each is exact and no sweep raises it. A component with g_tt <= 0 stays.

Cichocki and Phan 2009, "Fast Local Algorithms for Large Scale Nonnegative Matrix and Tensor
Factorizations"; coordinate descent in the words of Hsieh and Dhillon 2011, "Fast Coordinate Descent
Methods with Variable Selection for Non-negative Matrix Factorization".
"""

from __future__ import annotations

import torch
from torch import Tensor


def hals_sweep(factor: Tensor, numerator: Tensor, gram: Tensor, l1: float = 0.0) -> Tensor:
    """Changes W ``factor`` [m, k] in place, for N ``numerator`` [m, k] and G ``gram`` [k, k].

    Returns the sum of |change of w_t| g_tt over all numbers, float64: how much the gradient, where
    it may go, was in the way.
    """
    moved = torch.zeros((), dtype=torch.float64, device=factor.device)
    for t, scale in enumerate(gram.diagonal().tolist()):
        if scale <= 0:
            continue
        old = factor[:, t].clone()
        slope = numerator[:, t] - l1 - factor @ gram[t]
        factor[:, t] = (old + slope / scale).clamp_min(0)
        moved += (factor[:, t] - old).abs().sum(dtype=torch.float64) * scale
    return moved
