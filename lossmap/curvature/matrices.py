"""The curvature matrices of a problem as operators, at the model's present parameters: `hessian`, `gauss_newton`,
`empirical_fisher`, `monte_carlo_fisher`.

    H = hessian(problem)        H @ v, H.size, H.to_scipy()

Symbols: n the entries of theta, N samples; entries in the loss's unit per squared unit of theta. Price of a product: a
few passes over the data (benchmarks/hvp.py). Definitions and sources: `operators`.
"""

from __future__ import annotations

from dataclasses import replace

from lossmap.curvature.build import build_operator
from lossmap.curvature.gradient import refuse_without_loss
from lossmap.curvature.linearized_operator import LinearizedOperator
from lossmap.curvature.operators import CurvatureOperator
from lossmap.data.drawn_loss import Draws
from lossmap.data.problem import Problem
from lossmap.keywords import checked_keywords


@checked_keywords
def hessian(
    problem: Problem, *, parameters: str = "weights", backend: str = "double-backward", memory: int | None = None
) -> CurvatureOperator | LinearizedOperator:
    """The Hessian of the mean loss over all samples, (n, n), as an operator: met only through products.

    Args:
        problem: model, loss and data. The model is read in evaluation mode, and left as it was.
        parameters: which n entries theta has: `weights` (tensors of dimension > 1, as in the paper), `all`, or
            a regular expression that is searched in the names of the parameters.
        backend: how products are made: `double-backward` (no preparation), `linearized` or `retained-graph` (several
            times cheaper per product, after a preparation), or `auto`: the cheapest, by a probe of some seconds.
        memory: bytes that the last two may keep between products; by default a third of what is free.

    Returns:
        An operator with `@` for a tensor (n,) or a block (n, b), `size`, `dtype`, `device`, and `to_scipy()`, a
        `scipy.sparse.linalg.LinearOperator` for NumPy vectors. It can be pickled where model and loss can.

    Raises:
        ValueError: for weights in less than float32, for a loss that cannot be differentiated twice in good faith (the
            operation is named), for parameters that match nothing, and for an unknown backend.
        FloatingPointError: where the mean loss is NaN or infinite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, torch.zeros(2, 1)))
        >>> (lossmap.hessian(problem) @ torch.ones(2)).tolist()
        [1.0, 4.0]

    """
    return _matrix(problem, "hessian", parameters, backend, memory)


@checked_keywords
def gauss_newton(
    problem: Problem, *, parameters: str = "weights", backend: str = "double-backward", memory: int | None = None
) -> CurvatureOperator | LinearizedOperator:
    """The Gauss-Newton matrix of the mean loss, (n, n), as an operator: 1/N sum_i J_i^T (d2 loss_i / df2) J_i.

    It has no negative eigenvalue where the loss is convex in the model's outputs, as cross entropy and MSE are.

    Args:
        problem: model, loss and data, from `Problem.supervised`: outputs and loss must be two steps.
        parameters: as of `hessian`.
        backend: as of `hessian`, without `retained-graph`.
        memory: as of `hessian`.

    Returns:
        An operator as that of `hessian`.

    Raises:
        ValueError: as `hessian`, and for a problem of `Problem.custom`, which does not keep outputs and loss apart.
        FloatingPointError: where the mean loss is NaN or infinite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, torch.zeros(2, 1)))
        >>> lossmap.gauss_newton(problem).to_scipy().shape
        (2, 2)

    """
    return _matrix(problem, "gauss-newton", parameters, backend, memory)


@checked_keywords
def empirical_fisher(
    problem: Problem, *, parameters: str = "weights", backend: str = "double-backward", memory: int | None = None
) -> CurvatureOperator | LinearizedOperator:
    """The empirical Fisher matrix, (n, n), as an operator: 1/N sum_i g_i g_i^T, g_i the gradient of sample i's loss.

    Of the data's own targets. It has no negative eigenvalue, its rank is at most N, and its trace is the mean squared
    norm of the samples' gradients. Samples whose targets a mean ignores have no part in it: N counts the others. Where
    classes have weights, sample i's loss bears its own, over their mean. It is no approximation of the Hessian away
    from a well-fitted model, see Kunstner et al. (2019), arXiv:1905.12558. The Fisher matrix proper, the mean over
    targets drawn from the model, is for cross entropy and for a Gaussian's squared errors the Gauss-Newton matrix:
    `gauss_newton`; `monte_carlo_fisher` estimates it by targets that are drawn.

    Args:
        problem: model, loss and data, from `Problem.supervised`: outputs, one row for each sample, and loss must be two
            steps, and the loss a mean over samples.
        parameters: as of `hessian`.
        backend: as of `hessian`, without `retained-graph`.
        memory: as of `hessian`.

    Returns:
        An operator as that of `hessian`, in the squared unit of the loss per squared unit of theta.

    Raises:
        ValueError: as `gauss_newton`, and for a loss that couples the samples of a batch, or is a mean over something
            else, such as tokens.
        FloatingPointError: where the mean loss is NaN or infinite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.tensor([[1.0, 1.0]]))
        >>> problem = lossmap.Problem.supervised(model, "mse", (torch.eye(2), torch.zeros(2, 1)))
        >>> (lossmap.empirical_fisher(problem) @ torch.ones(2)).tolist()  # g_1 = (2, 0), g_2 = (0, 2)
        [2.0, 2.0]

    """
    return _matrix(problem, "fisher", parameters, backend, memory)


@checked_keywords
def monte_carlo_fisher(
    problem: Problem,
    *,
    draws: int = 1,
    seed: int = 0,
    parameters: str = "weights",
    backend: str = "double-backward",
    memory: int | None = None,
) -> CurvatureOperator | LinearizedOperator:
    """The Fisher matrix by targets drawn from the model's own predictions, (n, n), as an operator.

    1/(N D) sum_id g_id g_id^T, g_id the gradient of sample i's loss at its d-th draw: labels of a cross entropy are
    drawn from the softmax, those of a binary one from the sigmoid, targets of squared errors from the Gaussian of the
    variance that the loss implies. Where a sample has several targets (pixels, tokens), each enters with the root of
    its weight in the loss. So its mean over seeds is the Gauss-Newton matrix, whatever the classes weigh and whichever
    targets are ignored. See Martens (2020), arXiv:1412.1193.

    Args:
        problem: as of `empirical_fisher`, its loss a cross entropy or binary cross entropy of logits, or squared
            errors, which is checked by its second derivative; a mean over tokens is fine too.
        draws: of each sample, D. A product costs as many passes over the data.
        seed: of the draws, which do not depend on batches and ranks.
        parameters: as of `hessian`.
        backend: as of `hessian`, without `retained-graph`.
        memory: as of `hessian`.

    Returns:
        An operator as that of `hessian`, in the unit of the loss per squared unit of theta.

    Raises:
        ValueError: as `gauss_newton`, and for another loss, which is named.
        FloatingPointError: where the mean loss is NaN or infinite.

    Example:
        >>> import torch, lossmap
        >>> from lossmap.curvature.matrices import monte_carlo_fisher
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 3)
        >>> problem = lossmap.Problem.supervised(model, "crossentropy", (torch.randn(20, 4), torch.arange(20) % 3))
        >>> monte_carlo_fisher(problem, draws=10).size
        12

    """
    problem = replace(problem, draws=Draws(seed, draws))
    return _matrix(problem, "mc-fisher", parameters, backend, memory)


def _matrix(
    problem: Problem, matrix: str, parameters: str, backend: str, memory: int | None
) -> CurvatureOperator | LinearizedOperator:
    """The matrix of this name, of a loss that is a number."""
    operator = build_operator(problem, matrix, parameters, backend=backend, memory=memory)
    refuse_without_loss(operator.problem)  # as it was found to be evaluated
    return operator
