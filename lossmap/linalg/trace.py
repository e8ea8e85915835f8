"""The trace of a symmetric matrix known by its products, with a standard error.

    hutchinson        1/s sum_i w_i^T A w_i                      s products, error falls as 1/sqrt(s)
    hutch_plus_plus   the trace over a sketched subspace, exactly, and Hutchinson for the rest
    xtrace            every probe serves the subspace of all others and is tested against it   (default)

All three are unbiased. Their spread is told as a standard error, and `interval` makes a Student t interval of it with
one degree of freedom fewer than there are terms. Those of Hutchinson and Hutch++ are independent (given the sketch),
and the error is the usual one. XTrace's share one subspace, so that their own spread is too small: 95 % intervals made
of it were seen to hold the truth in 40 to 95 % of seeds. Its error is therefore the jackknife's, from XTrace without
each probe in turn, whose square is on average at least the variance with one probe fewer (Efron and Stein 1981): too
wide rather than too narrow. `benchmarks/spectrum.py` counts how often the intervals hold the truth.

Letters: n the dimension, s probes. Price: `products`; memory two (n, s) arrays in float64 for the last two.
Sources: Hutchinson (1990), doi:10.1080/03610919008812866; Meyer, Musco, Musco and Woodruff (2021), arXiv:2010.09649;
Epperly, Tropp and Webber (2024), arXiv:2301.07825 (XTrace with normalised test vectors, section 2.4 and supplement);
Epperly and Tropp (2024), doi:10.1137/23M1558537 (the jackknife of a randomised matrix computation).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, sqrt

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from lossmap import seeding
from lossmap.linalg.krylov_space import ROUNDING, SymmetricOperator
from lossmap.report.estimates import trace_text

METHODS = ("xtrace", "hutch++", "hutchinson")


@dataclass(frozen=True)
class Trace:
    """An estimate of the trace.

    value     in the unit of the matrix
    error     its standard error; where `exact`, the allowance for rounding
    terms     how many numbers the mean and its spread rest on
    products  matrix-vector products spent
    method    as in METHODS, or `unit vectors` where all n were multiplied
    size      the dimension n
    wanted    the relative standard error asked for; inf where only products were counted
    """

    value: float
    error: float
    terms: int
    products: int
    method: str
    size: int
    wanted: float = inf

    @property
    def exact(self) -> bool:
        """Whether it is the sum of the diagonal itself."""
        return self.method == "unit vectors"

    @property
    def met(self) -> bool:
        """Whether the wanted error was reached."""
        return self.exact or self.error <= self.wanted * abs(self.value)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """From where to where the trace lies, with about this probability: value +- t error."""
        if self.exact or self.error == 0.0:
            return self.value - self.error, self.value + self.error
        if self.terms < 2:
            return -inf, inf
        width = float(student.ppf(0.5 + 0.5 * confidence, self.terms - 1)) * self.error
        return self.value - width, self.value + width

    def __repr__(self) -> str:
        return trace_text(self.value, self.error, self.interval(), self.method, self.products)


def trace(
    matrix: SymmetricOperator,
    method: str = "xtrace",
    *,
    products: int = 60,
    error: float | None = None,
    max_products: int = 1000,
    seed: int | str = 0,
) -> Trace:
    """The trace by the named method.

    products  to be spent; where error is given, to begin with
    error     the relative standard error wanted: the products are doubled until it is met or max_products are spent

    With n products or more to spend, the n unit vectors are multiplied and the answer is exact.
    Raises ValueError for an unknown method, or fewer than 6 products.
    """
    check_asked(method, products)
    estimate = {"xtrace": xtrace, "hutch++": hutch_plus_plus, "hutchinson": hutchinson}[method]
    wanted = inf if error is None else error
    sketch: Sketch | None = None
    while True:
        if products >= matrix.size:
            return by_unit_vectors(matrix, wanted, spent=0 if sketch is None else sketch.products)
        if method == "xtrace":
            sketch = Sketch(matrix, seed) if sketch is None else sketch
            found = xtrace(matrix, products, seed=seed, sketch=sketch)
        else:
            found = estimate(matrix, products, seed=seed)
        found = Trace(found.value, found.error, found.terms, found.products, method, found.size, wanted)
        if found.met or 2 * products > max_products:
            return found
        products *= 2


def check_asked(method: str, products: int) -> None:
    """Raises ValueError for an unknown method, or too few products for a standard error."""
    if method not in METHODS:
        raise ValueError(f"the trace is estimated by {', '.join(METHODS)}; got {method!r}")
    if products < 6:
        raise ValueError(f"a trace with a standard error wants 6 products or more; got {products}")


def by_unit_vectors(matrix: SymmetricOperator, wanted: float = inf, spent: int = 0) -> Trace:
    """The sum of the diagonal, by n products."""
    n = matrix.size
    diagonal = np.zeros(n)
    for i in range(n):
        unit = torch.zeros(n, dtype=matrix.dtype, device=matrix.device)
        unit[i] = 1.0
        diagonal[i] = float(_checked(matrix @ unit)[i])
    rounding = ROUNDING * float(torch.finfo(matrix.dtype).eps) * float(np.sqrt((diagonal**2).sum()))
    return Trace(float(diagonal.sum()), rounding, n, n + spent, "unit vectors", n, wanted)


def hutchinson(matrix: SymmetricOperator, products: int, *, seed: int | str = 0) -> Trace:
    """The mean of w^T A w over random signs w."""
    n = matrix.size
    terms = np.zeros(products)
    for i in range(products):
        w = seeding.signs(n, "trace probe", seed, i).to(matrix.device, matrix.dtype)
        terms[i] = float(torch.dot(w.double(), _checked(matrix @ w)))
    return _of(terms, products, "hutchinson", n)


def hutch_plus_plus(matrix: SymmetricOperator, products: int, *, seed: int | str = 0) -> Trace:
    """A third of the products finds a subspace, a third takes its trace, a third is Hutchinson outside of it."""
    n, s = matrix.size, products // 3
    sketch = _images(matrix, _signs(matrix, "trace sketch", seed, 0, s))
    q = torch.linalg.qr(sketch)[0]
    inside = float((q * _images(matrix, q)).sum())
    outside = _signs(matrix, "trace probe", seed, 0, products - 2 * s).double()
    outside = outside - q @ (q.T @ outside)
    terms = (outside * _images(matrix, outside)).sum(0).cpu().numpy()
    return _of(inside + terms, products, "hutch++", n)


class Sketch:
    """The probes of an XTrace and their products, which more probes can be added to. Not a result.

    probes   W (n, s) of length sqrt(n);   images  Y = A W
    basis    Q (n, s) orthonormal, its first columns span those of Y;   turned  Z = A Q
    """

    def __init__(self, matrix: SymmetricOperator, seed: int | str) -> None:
        self.matrix, self.seed, self.products = matrix, seed, 0
        empty = torch.empty((matrix.size, 0), dtype=torch.float64, device=matrix.device)
        self.probes, self.images, self.basis, self.turned = empty, empty, empty, empty

    def grow(self, s: int) -> None:
        """Adds probes until there are s; two products for each new one."""
        have, n = self.probes.shape[1], self.matrix.size
        if s <= have:
            return
        drawn = torch.stack([seeding.normal(n, "trace probe", self.seed, i) for i in range(have, s)], 1)
        fresh = drawn.to(self.matrix.device).double()
        fresh *= sqrt(n) / fresh.norm(dim=0)
        images = _images(self.matrix, fresh)
        rest = images
        for _ in range(2):
            rest = rest - self.basis @ (self.basis.T @ rest)
            rest, _ = torch.linalg.qr(rest)
        self.probes = torch.cat([self.probes, fresh], 1)
        self.images = torch.cat([self.images, images], 1)
        self.basis = torch.cat([self.basis, rest], 1)
        self.turned = torch.cat([self.turned, _images(self.matrix, rest)], 1)
        self.products += 2 * (s - have)


def xtrace(matrix: SymmetricOperator, products: int, *, seed: int | str = 0, sketch: Sketch | None = None) -> Trace:
    """Half of the products finds the subspace, half takes its trace; every probe is left out once.

    With Q_i the basis without probe i, the terms are tr(Q_i^T A Q_i) + c_i v_i^T A v_i, v_i = (1 - Q_i Q_i^T) w_i, and
    c_i = (n - s + 1) / ||v_i||^2. Q_i Q_i^T = Q (1 - d_i d_i^T) Q^T, where d_i are the columns of R^-T, of length one.
    Without probe k too, d_i and d_k both are taken out: XTrace of the other probes, and the jackknife, for no product.
    """
    n, s = matrix.size, products // 2
    sketch = Sketch(matrix, seed) if sketch is None else sketch
    sketch.grow(s)
    probes, images, basis, turned = sketch.probes, sketch.images, sketch.basis, sketch.turned
    h = (basis.T @ turned).cpu().numpy()
    r = (basis.T @ images).cpu().numpy()
    w = (basis.T @ probes).cpu().numpy()
    t = (turned.T @ probes).cpu().numpy()
    own = (probes * images).sum(0).cpu().numpy()
    left, strengths, right = np.linalg.svd(r)
    if strengths[0] == 0.0:
        return Trace(0.0, 0.0, s, sketch.products, "xtrace", n)
    d = left @ (right / np.maximum(strengths, np.finfo(float).eps * strengths[0])[:, None])
    d /= np.linalg.norm(d, axis=0)
    hd, hw = h @ d, h @ w
    along = (d * w).sum(0)
    inside = np.trace(h) - (d * hd).sum(0)
    value = float(_terms(n - s + 1, n, inside, own, t, w - d * along, hw - hd * along).mean())

    without = np.zeros(s)
    for k in range(s):
        others = np.arange(s) != k
        first, cosines, shares = d[:, k], d[:, k] @ d[:, others], d[:, k] @ w[:, others]
        second = d[:, others] - np.outer(first, cosines)  # with d_k an orthonormal pair
        lengths = np.maximum(np.linalg.norm(second, axis=0), np.finfo(float).tiny)
        second, turned_second = second / lengths, (hd[:, others] - np.outer(hd[:, k], cosines)) / lengths
        along = (second * w[:, others]).sum(0)
        inside = np.trace(h) - first @ hd[:, k] - (second * turned_second).sum(0)
        u = w[:, others] - np.outer(first, shares) - second * along
        hu = hw[:, others] - np.outer(hd[:, k], shares) - turned_second * along
        without[k] = _terms(n - s + 2, n, inside, own[others], t[:, others], u, hu).mean()
    error = float(np.sqrt(((without - without.mean()) ** 2).sum()))
    rounding = float(torch.finfo(matrix.dtype).eps) * float(np.abs(np.diag(h)).sum())
    return Trace(value, max(error, rounding), s, sketch.products, "xtrace", n)


def _terms(
    rest: int, n: int, inside: np.ndarray, own: np.ndarray, t: np.ndarray, u: np.ndarray, hu: np.ndarray
) -> np.ndarray:
    """XTrace's terms, (probes,): the trace inside each subspace, and w^T A w outside of it, scaled up to all of it.

    rest    dimensions outside of each subspace
    inside  (probes,) the trace inside
    own     (probes,) w^T A w;  t, u, hu  (s, probes) in the basis Q: A w, the part of w in the subspace, and A of that
    """
    outside = own - 2.0 * (u * t).sum(0) + (u * hu).sum(0)
    lengths = n - (u**2).sum(0)
    result: np.ndarray = inside + rest / np.maximum(lengths, np.finfo(float).tiny) * outside
    return result


def _of(terms: np.ndarray, products: int, method: str, n: int) -> Trace:
    error = float(terms.std(ddof=1) / sqrt(len(terms))) if len(terms) > 1 else inf
    return Trace(float(terms.mean()), error, len(terms), products, method, n)


def _signs(matrix: SymmetricOperator, purpose: str, seed: int | str, first: int, last: int) -> Tensor:
    columns = [seeding.signs(matrix.size, purpose, seed, i) for i in range(first, last)]
    return torch.stack(columns, 1).to(matrix.device, matrix.dtype)


def _images(matrix: SymmetricOperator, block: Tensor) -> Tensor:
    """A V for a block (n, b), in float64."""
    return torch.stack([_checked(matrix @ v.to(matrix.dtype)) for v in block.unbind(1)], 1)


def _checked(image: Tensor) -> Tensor:
    """A product in float64. Raises FloatingPointError where it is not finite."""
    double = image.double()
    if not isfinite(float(double.sum())):
        raise FloatingPointError("a product with the matrix is not finite: look at the loss here first")
    return double
