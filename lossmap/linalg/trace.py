"""The trace of a symmetric operator known by its products, with a standard error.

    hutchinson        1/s sum_i w_i^T A w_i                      s products, error falls as 1/sqrt(s)
    hutch_plus_plus   the trace over a sketched subspace, exactly, and Hutchinson for the rest
    xtrace            every probe serves the subspace of all others and is tested against it   (default)

All three are unbiased. Their spread is reported as a standard error, of which `interval` makes a Student t interval.
The terms of Hutchinson and Hutch++ are independent (given the sketch), and the error is the usual one. But a term is a
quadratic form, sum_i lambda_i g_i^2: where one eigenvalue outweighs the rest it is a chi-squared number, so skewed that
a few terms below the mean have a small spread as well, and Student's t with s - 1 degrees of freedom holds the truth in
82 % of cases with four terms and in 92 % with fifty, where 95 % are stated. No quadratic form in normal numbers is more
skewed than that of one eigenvalue (skewness sqrt(8) tr A^3 / (tr A^2)^(3/2), at most sqrt(8)); therefore the degrees of
freedom are those with which t has the quantiles of that worst case (`degrees_of_freedom`).
XTrace's terms share one subspace, so that their own spread is too small: 95 % intervals made of it were seen to hold
the truth in 40 to 95 % of seeds. Its error is therefore the jackknife's, from XTrace without each probe in turn, whose
square is on average at least the variance with one probe fewer (Efron and Stein 1981): conservative, so that one degree
of freedom fewer than there are terms will do. `benchmarks/coverage.py` counts how often the intervals hold the truth.

Symbols: n the dimension, s probes. Price: `products`; memory two (n, s) arrays in float64 for the last two.
Sources: Hutchinson (1990), doi:10.1080/03610919008812866; Meyer, Musco, Musco and Woodruff (2021), arXiv:2010.09649;
Epperly, Tropp and Webber (2024), arXiv:2301.07825 (XTrace with normalised test vectors, section 2.4 and supplement);
Epperly and Tropp (2024), doi:10.1137/23M1558537 (the jackknife of a randomised matrix computation); Johnson (1978),
doi:10.1080/01621459.1978.10480051 (t of skewed terms).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor

from lossmap import seeding
from lossmap.keywords import checked_keywords
from lossmap.linalg.diagonal import Diagonal, Subspaces, diagonal_of, fitted
from lossmap.linalg.entry_sums import EntrySums, Rows, entry_sums, half_width, spread_of
from lossmap.linalg.entry_sums import degrees_of_freedom as degrees_of_freedom
from lossmap.linalg.foreign import as_operator
from lossmap.linalg.operator import (
    Rounding,
    SymmetricOperator,
    check_vectors,
    columns_of,
    error_of_columns,
    finite_product,
    refuse_out_of_range,
)
from lossmap.report.estimates import trace_text
from lossmap.values import Result

METHODS = ("xtrace", "hutch++", "hutchinson")
MIN_PRODUCTS = 6  # fewer leave no two terms for a standard error


@dataclass(frozen=True)
class Trace(Result):
    """An estimate of the trace.

    value     in the operator's unit
    error     its standard error; where `exact`, the allowance for rounding
    terms     number of terms that the mean and its spread rest on
    products  operator-vector products spent
    method    as in METHODS, or `unit vectors` where all n were multiplied
    size      the dimension n
    target    the relative standard error requested; inf where only products were
    sums      of the diagonal and of the squared entries, whole and by tensor, from the same products; None where they
              were not kept
    diagonal  entry by entry, from the same products; None where it was not requested
    """

    value: float
    error: float
    terms: int
    products: int
    method: str
    size: int
    target: float = inf
    sums: EntrySums | None = None
    diagonal: Diagonal | None = None

    @property
    def exact(self) -> bool:
        """Whether it is the sum of the diagonal itself."""
        return self.method == "unit vectors"

    @property
    def met(self) -> bool:
        """Whether the requested error was reached."""
        return self.exact or self.error <= self.target * abs(self.value)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """(low, high) between which the trace lies with about this probability: value +- t error, Student's t.

        Infinite where one term has no spread. See the module on the degrees of freedom.
        """
        if self.exact or self.error == 0.0:
            return self.value - self.error, self.value + self.error
        if self.terms < 2:
            return -inf, inf
        width = half_width(self.terms, self.method, confidence) * self.error
        return self.value - width, self.value + width

    def diagonal_arrays(self) -> dict[str, np.ndarray]:
        """What a file keeps of the diagonal; nothing where there is none."""
        return {} if self.diagonal is None else self.diagonal.stored()

    def diagonal_attributes(self) -> dict[str, float]:
        """What a report says of the diagonal; nothing where there is none."""
        return {} if self.diagonal is None else self.diagonal.attributes()

    def __repr__(self) -> str:
        return trace_text(self.value, self.error, self.interval(), self.method, self.products)


@checked_keywords
def trace(
    operator: SymmetricOperator,
    method: str = "xtrace",
    *,
    products: int = 60,
    error: float | None = None,
    max_products: int = 1000,
    seed: int | str = 0,
    sums: bool = True,
    diagonal: bool = False,
) -> Trace:
    """The trace of a symmetric operator, with its standard error.

    With n products or more to spend, the n unit vectors are multiplied and the result is exact.

    Args:
        operator: (n, n), symmetric, known by its products; also anybody's, as of `spectrum`.
        method: `xtrace`, `hutch++` or `hutchinson`.
        products: to be spent; where `error` is given, to begin with.
        error: the relative standard error requested: the products are doubled until it is met, or until twice as many
            are more than `max_products`.
        max_products: the most to be spent where `error` is given.
        seed: of the probes.
        sums: whether the sums of the diagonal and of the squared entries, whole and by tensor, are estimated from the
            same products too.
        diagonal: whether each entry of the diagonal is estimated from the same products too.

    Returns:
        A `Trace`: `value` and `error` in the operator's unit, `interval(confidence)`, the products spent, and `sums`:
        `sums.names`, `sums.diagonal` and `sums.squares`, each with its error; the first row is of the whole matrix. On
        request `diagonal`: `diagonal.values` and `diagonal.errors` (n,), `diagonal.by_tensor()`.

    Raises:
        ValueError: for an unknown method, or fewer than 6 products.
        FloatingPointError: where a product is not finite.

    Example:
        >>> import torch, lossmap
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, torch.zeros(2, 1)))
        >>> round(lossmap.trace(lossmap.hessian(problem)).value, 3)
        5.0

    """
    check_trace_request(method, products)
    operator, target = as_operator(operator, asymmetric=True), inf
    if error is not None:
        target = error
    sketch: Sketch | None = None
    while True:
        if products >= operator.size:
            spent = 0 if sketch is None else sketch.products
            return by_unit_vectors(operator, target, spent=spent, sums=sums, diagonal=diagonal)
        if method == "xtrace":
            sketch = sketch or Sketch(operator, seed)  # its products serve the next round too
            estimate = xtrace(operator, products, seed=seed, sketch=sketch, sums=False)
        elif method == "hutch++":
            estimate = hutch_plus_plus(operator, products, seed=seed, diagonal=diagonal)
        else:
            estimate = hutchinson(operator, products, seed=seed, diagonal=diagonal)
        estimate = replace(estimate, target=target)
        if estimate.met or 2 * products > max_products:
            break
        products *= 2
    if sketch is not None and sums:
        estimate = replace(estimate, sums=_sketched_sums(sketch))
    if sketch is not None and diagonal:
        estimate = replace(estimate, diagonal=_sketched_diagonal(sketch))
    return estimate if sums else replace(estimate, sums=None)


def check_trace_request(method: str, products: int) -> None:
    """Raises ValueError for an unknown method, or too few products for a standard error."""
    if method not in METHODS:
        raise ValueError(f"the trace estimator must be one of {', '.join(METHODS)}; got {method!r}")
    if products < MIN_PRODUCTS:
        raise ValueError(f"the trace's products must be >= {MIN_PRODUCTS} for a standard error; got {products}")


def by_unit_vectors(
    operator: SymmetricOperator, target: float = inf, spent: int = 0, sums: bool = True, diagonal: bool = False
) -> Trace:
    """The sum of the diagonal, by n products; `spent` were made before. The error is the allowance for rounding.

    That of products with unit vectors is shown by a few others, which are not counted (`error_of_columns`).

    Raises FloatingPointError where a product is not finite.
    """
    n = operator.size
    entries, squares = np.zeros(n), np.zeros(n)
    vectors = check_vectors(n)
    images = [np.zeros(n) for _ in vectors]
    for i, column in enumerate(columns_of(operator)):
        entries[i], squares[i] = float(column[i]), float(column.square().sum())
        for v, image in zip(vectors, images, strict=True):
            image += float(v[i]) * column.numpy()
    rounding = Rounding.of(operator)
    # A measured rounding is of one product; the n errors on the diagonal add up, by sqrt(n) where they are independent.
    of_columns = error_of_columns(operator, images)
    error = max(rounding.allowance(float(np.sqrt((entries**2).sum()))), sqrt(n) * (rounding.measured or 0.0))
    error = max(error, sqrt(n) * of_columns)
    rows = _rows_of(operator)
    zero = np.zeros(len(rows.names))
    own = entry_sums(rows, operator, rows.sums(entries), rows.sums(squares), n, "unit vectors", (zero, zero))
    estimate = Trace(float(entries.sum()), error, n, n + spent, "unit vectors", n, target, own if sums else None)
    if not diagonal:
        return estimate
    each = (entries, np.full(n, of_columns))
    return replace(estimate, diagonal=diagonal_of(operator, each, n, "unit vectors", float(squares.sum())))


def hutchinson(operator: SymmetricOperator, products: int, *, seed: int | str = 0, diagonal: bool = False) -> Trace:
    """The mean of w^T A w over random signs w (n,). Raises FloatingPointError where a product is not finite."""
    n = operator.size
    rows, terms = _rows_of(operator), np.zeros(products)
    by_tensor, squares = np.zeros((len(rows.names), products)), np.zeros((len(rows.names), products))
    mean, spread = (torch.zeros(n if diagonal else 0, dtype=torch.float64, device=operator.device) for _ in range(2))
    for i in range(products):
        w = seeding.signs(n, "trace probe", seed, i).to(operator.device, operator.dtype)
        image = finite_product(operator, w)
        if i == 0:
            refuse_out_of_range(image, sqrt(n))
        terms[i] = float(torch.dot(w.double(), image))
        own = w.double() * image
        by_tensor[:, i], squares[:, i] = _sums_of(rows, own), _sums_of(rows, image * image)
        if diagonal:  # Welford's way, which keeps no terms
            gap = own - mean
            mean += gap / (i + 1)
            spread += gap * (own - mean)
    sums = entry_sums(rows, operator, by_tensor, squares, products, "hutchinson")
    estimate = _mean_of(terms, products, "hutchinson", operator, sums)
    if not diagonal:
        return estimate
    errors = (spread / (products * max(products - 1, 1))).sqrt()
    each = (mean.cpu().numpy(), errors.cpu().numpy())
    return replace(estimate, diagonal=diagonal_of(operator, each, products, "hutchinson", float(sums.squares[0])))


def hutch_plus_plus(
    operator: SymmetricOperator, products: int, *, seed: int | str = 0, diagonal: bool = False
) -> Trace:
    """tr(Q^T A Q) + mean of w^T (1 - Q Q^T) A (1 - Q Q^T) w, Q (n, s) an orthonormal basis of A times random signs.

    A third of the products makes Q, a third takes its trace, a third is Hutchinson outside of it.
    Raises FloatingPointError where a product is not finite.
    """
    s = products // 3
    sketch = _images(operator, _signs(operator, "trace sketch", seed, s))
    refuse_out_of_range(sketch[:, 0], sqrt(operator.size))
    q = torch.linalg.qr(sketch)[0]
    q_images = _images(operator, q)
    inside = float((q * q_images).sum())
    outside = _signs(operator, "trace probe", seed, products - 2 * s).double()
    outside = outside - q @ (q.T @ outside)
    images = _images(operator, outside)
    terms = (outside * images).sum(0).cpu().numpy()
    rows = _rows_of(operator)
    within = (q * q_images).sum(1)
    by_tensor = _sums_of(rows, within)[:, None] + _sums_of(rows, outside * images)
    squares = _sums_of(rows, (q_images * q_images).sum(1))[:, None] + _sums_of(rows, images * images)
    sums = entry_sums(rows, operator, by_tensor, squares, len(terms), "hutch++")
    estimate = _mean_of(inside + terms, products, "hutch++", operator, sums)
    if not diagonal:
        return estimate
    each = fitted(within, (q * q).sum(1), outside, images)
    return replace(estimate, diagonal=diagonal_of(operator, each, len(terms), "hutch++", float(sums.squares[0])))


class Sketch:
    """The probes of an XTrace and their products, to which more probes can be added: a working state, not a result.

    probes  W (n, s) of length sqrt(n);  images  Y = A W (n, s)
    basis   Q (n, s) orthonormal, its first columns span those of Y;  basis_images  Z = A Q (n, s)
    """

    def __init__(self, operator: SymmetricOperator, seed: int | str) -> None:
        self.operator, self.seed, self.products = operator, seed, 0
        empty = torch.empty((operator.size, 0), dtype=torch.float64, device=operator.device)
        self.probes, self.images, self.basis, self.basis_images = empty, empty, empty, empty

    def grow(self, s: int) -> None:
        """Adds probes until there are s; two products for each new one."""
        size, n = self.probes.shape[1], self.operator.size
        if s <= size:
            return
        normal = torch.stack([seeding.normal(n, "trace probe", self.seed, i) for i in range(size, s)], 1)
        probes = normal.to(self.operator.device).double()
        probes *= sqrt(n) / probes.norm(dim=0)
        images = _images(self.operator, probes)
        refuse_out_of_range(images[:, 0], sqrt(n))
        basis = images
        for _ in range(2):  # twice, as the first pass leaves rounding of the size of what it takes out
            basis = basis - self.basis @ (self.basis.T @ basis)
            basis, _ = torch.linalg.qr(basis)
        self.probes = torch.cat([self.probes, probes], 1)
        self.images = torch.cat([self.images, images], 1)
        self.basis = torch.cat([self.basis, basis], 1)
        self.basis_images = torch.cat([self.basis_images, _images(self.operator, basis)], 1)
        self.products += 2 * (s - size)


def _rows_of(operator: SymmetricOperator) -> Rows:
    """The rows of an operator's tensors, where it says which these are."""
    return Rows.of(operator.size, getattr(operator, "layout", None))


def _sums_of(rows: Rows, entries: Tensor) -> np.ndarray:
    """(n, ...) -> (rows, ...), the sums over the rows of each tensor, in float64."""
    sums = [entries[s].double().sum(0) for s in rows.slices]
    result: np.ndarray = torch.stack(sums).cpu().numpy()
    return result


def xtrace(
    operator: SymmetricOperator,
    products: int,
    *,
    seed: int | str = 0,
    sketch: Sketch | None = None,
    sums: bool = True,
) -> Trace:
    """Half of the products finds the subspace, half takes its trace; every probe is left out once.

    With Q_i the basis without probe i, the terms are tr(Q_i^T A Q_i) + c_i v_i^T A v_i, v_i = (1 - Q_i Q_i^T) w_i, and
    c_i = (n - s + 1) / ||v_i||^2. Q_i Q_i^T = Q (1 - d_i d_i^T) Q^T, where d_i are the columns of R^-T, of length one
    (Epperly, Tropp and Webber 2024, supplement). sketch: probes made already with the same seed, which are used too.
    Raises FloatingPointError where a product is not finite.
    """
    n, s = operator.size, products // 2
    sketch = sketch or Sketch(operator, seed)
    sketch.grow(s)
    projections = _Projections.of(sketch)
    own = _sketched_sums(sketch) if sums else None
    if projections is None:
        return Trace(0.0, 0.0, s, sketch.products, "xtrace", n, sums=own)
    value, error = projections.estimate()
    # of the diagonal in this basis; measured, it moves each of n eigenvalues, one way or the other
    rounding = float(torch.finfo(operator.dtype).eps) * float(np.abs(np.diag(projections.h)).sum())
    measured = Rounding.of(operator)
    rounding = max(rounding, sqrt(n) * (measured.measured or 0.0))
    rounding += measured.kinks * float(np.abs(np.diag(projections.h)).sum())
    return Trace(value, max(error, rounding), s, sketch.products, "xtrace", n, sums=own)


def _sketched_sums(sketch: Sketch) -> EntrySums:
    """The sums of a sketch: XTrace of the matrices B of `entry_sums`, whose products with it are known."""
    projections, rows = _Projections.of(sketch), _rows_of(sketch.operator)
    if projections is None:
        zero = np.zeros(len(rows.names))
        return entry_sums(rows, sketch.operator, zero, zero, sketch.probes.shape[1], "xtrace", (zero, zero))
    found = []
    for own in rows.slices:
        q, z, y, w = (part[own] for part in (sketch.basis, sketch.basis_images, sketch.images, sketch.probes))
        cross = q.T @ z
        diagonal = projections.of_matrix((cross + cross.T) / 2, (q.T @ y + z.T @ w) / 2, (w * y).sum(0))
        squares = projections.of_matrix(z.T @ z, z.T @ y, (y * y).sum(0))
        found.append((*diagonal.estimate(), *squares.estimate()))
    diagonals, diagonal_errors, sums, errors = np.array(found).T
    probes = len(projections.own)
    return entry_sums(rows, sketch.operator, diagonals, sums, probes, "xtrace", (diagonal_errors, errors))


def _sketched_diagonal(sketch: Sketch) -> Diagonal:
    """The diagonal of a sketch: XTrace of each of its entries, whose products are known."""
    projections, n, s = _Projections.of(sketch), sketch.operator.size, sketch.probes.shape[1]
    if projections is None:
        return diagonal_of(sketch.operator, (np.zeros(n), np.zeros(n)), s, "xtrace", 0.0)
    left, inner = (torch.from_numpy(part).to(sketch.basis) for part in (projections.d, projections.w))
    each = Subspaces(left, inner, n).fitted(sketch.basis, sketch.basis_images, sketch.probes, sketch.images)
    squares = float(sketch.images.square().sum()) / s
    return diagonal_of(sketch.operator, each, s, "xtrace", squares)


@dataclass(frozen=True, eq=False)
class _Projections:
    """A sketch as seen from its own basis Q: all that XTrace's terms need, small matrices (s, s).

    h    Q^T A Q;  w  Q^T W;  t  (A Q)^T W = Q^T A W
    d    the directions d_i that leave probe i out, in columns;  hd, hw  H d and H w
    own  (s,) w_i^T A w_i
    """

    n: int
    h: np.ndarray
    w: np.ndarray
    t: np.ndarray
    d: np.ndarray
    own: np.ndarray
    hd: np.ndarray
    hw: np.ndarray

    @classmethod
    def of(cls, sketch: Sketch) -> _Projections | None:
        """From products with the basis; None where the operator maps all probes to zero."""
        h = (sketch.basis.T @ sketch.basis_images).cpu().numpy()
        r = (sketch.basis.T @ sketch.images).cpu().numpy()
        w = (sketch.basis.T @ sketch.probes).cpu().numpy()
        t = (sketch.basis_images.T @ sketch.probes).cpu().numpy()
        own = (sketch.probes * sketch.images).sum(0).cpu().numpy()
        left, strengths, right = np.linalg.svd(r)
        if strengths[0] == 0.0:
            return None
        # R^-T by its singular values, none taken for less than rounding: R is singular where the rank is below s.
        d = left @ (right / np.maximum(strengths, np.finfo(float).eps * strengths[0])[:, None])
        d /= np.linalg.norm(d, axis=0)
        return cls(sketch.operator.size, h, w, t, d, own, h @ d, h @ w)

    def of_matrix(self, h: Tensor, t: Tensor, own: Tensor) -> _Projections:
        """The same probes and subspaces with another symmetric matrix B: Q^T B Q, Q^T B W, and (s,) w^T B w."""
        middle = h.cpu().numpy()
        return replace(self, h=middle, t=t.cpu().numpy(), own=own.cpu().numpy(), hd=middle @ self.d, hw=middle @ self.w)

    def estimate(self) -> tuple[float, float]:
        """The mean of the terms, and its jackknife error."""
        estimates = np.array([self.terms_without(k).mean() for k in range(len(self.own))])
        return float(self.terms().mean()), float(spread_of(estimates)) * sqrt(len(estimates))

    def terms(self) -> np.ndarray:
        """XTrace's s terms."""
        d, w, hd, hw = self.d, self.w, self.hd, self.hw
        along = (d * w).sum(0)
        inside = np.trace(self.h) - (d * hd).sum(0)
        rest = self.n - len(self.own) + 1
        return _terms(rest, self.n, inside, self.own, self.t, w - d * along, hw - hd * along)

    def terms_without(self, k: int) -> np.ndarray:
        """The s - 1 terms of XTrace without probe k: d_i and d_k both are taken out, for no product."""
        others = np.arange(len(self.own)) != k
        d, w, hd, hw = self.d[:, others], self.w[:, others], self.hd[:, others], self.hw[:, others]
        first, hfirst = self.d[:, k], self.hd[:, k]
        cosines, along_first = first @ d, first @ w
        # Gram and Schmidt: with d_k an orthonormal pair, and H of it by the same combination.
        second = d - np.outer(first, cosines)
        lengths = np.maximum(np.linalg.norm(second, axis=0), np.finfo(float).tiny)
        second, hsecond = second / lengths, (hd - np.outer(hfirst, cosines)) / lengths
        along_second = (second * w).sum(0)
        inside = np.trace(self.h) - first @ hfirst - (second * hsecond).sum(0)
        u = w - np.outer(first, along_first) - second * along_second
        hu = hw - np.outer(hfirst, along_first) - hsecond * along_second
        rest = self.n - len(self.own) + 2
        return _terms(rest, self.n, inside, self.own[others], self.t[:, others], u, hu)


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


def _mean_of(terms: np.ndarray, products: int, method: str, operator: SymmetricOperator, sums: EntrySums) -> Trace:
    """The mean of independent terms, (terms,), with its standard error; infinite for one term."""
    error = inf
    if len(terms) > 1:
        # Where the terms agree, as outside of a subspace that holds all of the matrix, rounding is left.
        rounding = Rounding.of(operator).allowance(float(np.abs(terms).max()))
        error = max(float(terms.std(ddof=1) / sqrt(len(terms))), rounding)
    return Trace(float(terms.mean()), error, len(terms), products, method, operator.size, sums=sums)


def _signs(operator: SymmetricOperator, purpose: str, seed: int | str, count: int) -> Tensor:
    """(n, count) random signs, a column for each number, in the operator's precision."""
    columns = [seeding.signs(operator.size, purpose, seed, i) for i in range(count)]
    return torch.stack(columns, 1).to(operator.device, operator.dtype)


def _images(operator: SymmetricOperator, block: Tensor) -> Tensor:
    """A V for a block (n, b), in float64."""
    return torch.stack([finite_product(operator, v.to(operator.dtype)) for v in block.unbind(1)], 1)
