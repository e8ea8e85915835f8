"""Up to which eigenvalue of the Hessian full-batch steps of an optimizer are stable on a quadratic.

    gradient descent, momentum mu   2 (1 + mu) / rate; Nesterov's 2 (1 + mu) / ((1 + 2 mu) rate)
    Adam, AdamW                     (2 + 2 beta1) / ((1 - beta1) rate), of the preconditioned Hessian P^-1/2 H P^-1/2;
                                    38 / rate for beta1 = .9

Units: the inverse of the rate's. Price: none.
Sources: Cohen et al. (2021), arXiv:2103.00065; Cohen et al. (2022), arXiv:2207.14484, for Adam.
"""

from __future__ import annotations


def stability_limit(rate: float, momentum: float = 0.0, nesterov: bool = False) -> float:
    """The largest eigenvalue at which full-batch gradient descent on a quadratic is stable.

    2 (1 + b) / rate with heavy-ball momentum b; with Nesterov's, as `torch.optim.SGD(nesterov=True)` takes it, less:
    2 (1 + b) / ((1 + 2 b) rate). Cohen et al. (2021), arXiv:2103.00065.
    """
    limit = 2.0 * (1.0 + momentum) / rate
    if nesterov:
        limit /= 1.0 + 2.0 * momentum
    return limit


def adam_stability_limit(rate: float, beta1: float = 0.9) -> float:
    """The largest eigenvalue of the preconditioned Hessian at which steps of Adam are stable, its preconditioner fixed.

    (2 + 2 beta1) / ((1 - beta1) rate): that of heavy-ball momentum whose average takes 1 - beta1 of each gradient.
    Cohen et al. (2022), arXiv:2207.14484.
    """
    return stability_limit(rate * (1.0 - beta1), beta1)
