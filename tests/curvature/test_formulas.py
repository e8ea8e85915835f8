"""Formulas of PyTorch's operations: its values and gradients for every option, second derivatives by differences."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from lossmap.curvature.formulas import ByFormula, cdist, pdist, segment_reduce
from lossmap.curvature.loss_formulas import ctc_loss, multi_margin_loss, multilabel_margin_loss

REDUCTIONS = ("none", "mean", "sum")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def agree(ours, theirs, x):
    """Equal values and gradients of a fixed mixture of the results; and a Hessian that is the gradient's derivative."""
    x = x.clone().requires_grad_(True)
    results = [f(x) for f in (ours, theirs)]
    torch.testing.assert_close(results[0], results[1])
    mix = draw(*results[0].shape, seed=9)
    gradients = [torch.autograd.grad((r * mix).sum(), x)[0] for r in results]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)

    def gradient(at):
        at = at.detach().requires_grad_(True)
        return torch.autograd.grad((theirs(at) * mix).sum(), at)[0]

    v = draw(*x.shape, seed=8)
    along = torch.autograd.grad((ours(x) * mix).sum(), x, create_graph=True)[0]
    product = torch.zeros_like(x)
    if along.requires_grad:
        product = torch.autograd.grad((along * v).sum(), x)[0]
    twin = (gradient(x + 1e-6 * v) - gradient(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(product, twin, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multi_margin(reduction):
    y, weight = torch.tensor([2, 0, 1, 3, 3]), draw(4, seed=1).abs()
    for p, w, margin in itertools.product((1, 2), (None, weight), (1.0, 0.4)):
        agree(lambda x, a=(y, p, margin, w): multi_margin_loss(x, *a, reduction=reduction),
              lambda x, a=(y, p, margin, w): F.multi_margin_loss(x, *a, reduction=reduction), draw(5, 4))  # fmt: skip
    one = torch.tensor(2)
    agree(lambda x: multi_margin_loss(x, one, reduction=reduction),
          lambda x: F.multi_margin_loss(x, one, reduction=reduction), draw(4))  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_multilabel_margin(reduction):
    y = torch.tensor([[3, 0, -1, 1], [-1, 0, 1, 2], [2, -1, 2, -1], [0, 1, 2, 3]])
    agree(lambda x: multilabel_margin_loss(x, y, reduction=reduction),
          lambda x: F.multilabel_margin_loss(x, y, reduction=reduction), draw(4, 4))  # fmt: skip
    agree(lambda x: multilabel_margin_loss(x, y[0], reduction=reduction),
          lambda x: F.multilabel_margin_loss(x, y[0], reduction=reduction), draw(4))  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("flat", [False, True])
def test_ctc(reduction, flat):
    counts, steps = torch.tensor([3, 0, 2, 1]), torch.tensor([7, 5, 6, 1])
    labels = torch.tensor([[1, 1, 3], [2, 2, 2], [3, 1, 1], [4, 1, 1]])
    given = torch.cat([row[:n] for row, n in zip(labels, counts, strict=True)]) if flat else labels
    agree(lambda x: ctc_loss(x.log_softmax(-1), given, steps, counts, 0, reduction),
          lambda x: F.ctc_loss(x.log_softmax(-1), given, steps, counts, 0, reduction), draw(7, 4, 5))  # fmt: skip
    blank = given.masked_fill(given == 4, 0)
    agree(lambda x: ctc_loss(x.log_softmax(-1), blank, steps.tolist(), counts.tolist(), 4, reduction),
          lambda x: F.ctc_loss(x.log_softmax(-1), blank, steps.tolist(), counts.tolist(), 4, reduction),
          draw(7, 4, 5))  # fmt: skip


def test_ctc_of_one_sequence_and_of_impossible_ones():
    agree(lambda x: ctc_loss(x.log_softmax(-1), torch.tensor([1, 2]), torch.tensor(6), torch.tensor(2)),
          lambda x: F.ctc_loss(x.log_softmax(-1), torch.tensor([1, 2]), torch.tensor(6), torch.tensor(2)),
          draw(6, 4))  # fmt: skip
    # three labels, two of them alike, in three steps: there is no room for the blank between them
    args = (torch.tensor([[1, 1, 2], [1, 3, 2]]), torch.tensor([3, 3]), torch.tensor([3, 3]))
    agree(lambda x: ctc_loss(x.log_softmax(-1), *args, zero_infinity=True),
          lambda x: F.ctc_loss(x.log_softmax(-1), *args, zero_infinity=True), draw(3, 2, 4))  # fmt: skip
    assert ctc_loss(draw(3, 2, 4).log_softmax(-1), *args, reduction="none").isinf().tolist() == [True, False]


@pytest.mark.parametrize("p", [0.0, 1.0, 1.5, 2.0, 3.0, float("inf")])
def test_distances(p):
    x, y = draw(2, 5, 3), draw(2, 4, 3, seed=1)
    agree(lambda x: cdist(x, y, p), lambda x: torch.cdist(x, y, p), x)
    agree(lambda y: cdist(x, y, p), lambda y: torch.cdist(x, y, p), y)
    agree(lambda x: pdist(x, p), lambda x: torch.pdist(x, p), draw(5, 3, seed=2))


def test_distances_do_not_cancel_and_have_derivatives_at_0():
    x = torch.tensor([[1000.0, 1.0], [1000.0, 1.0 + 2**-10]], requires_grad=True)
    assert float(cdist(x, x)[0, 1].detach()) == 2**-10
    for p in (1.0, 1.5, 2.0, 3.0):
        gradient = torch.autograd.grad(cdist(x, x.detach(), p).sum(), x, create_graph=True)[0]
        assert bool(torch.autograd.grad(gradient.sum(), x)[0].isfinite().all())


@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "prod"])
@pytest.mark.parametrize("initial", [None, 0.5])
def test_segments(reduce, initial):
    lengths = torch.tensor([[2, 1, 3], [1, 5, 0]])[:, : 3 if initial is not None or reduce in ("sum", "prod") else 2]
    lengths = torch.cat([lengths, 6 - lengths.sum(1, keepdim=True)], 1)[:, : lengths.shape[1]]
    unsafe = {"unsafe": True} if int(lengths.sum(1).min()) < 6 else {}
    x = draw(2, 6, 3)
    agree(lambda x: segment_reduce(x, reduce, lengths=lengths, axis=1, initial=initial),
          lambda x: torch.segment_reduce(x, reduce, lengths=lengths, axis=1, initial=initial, **unsafe), x)  # fmt: skip
    offsets = torch.tensor([0, 2, 3, 6])
    agree(lambda x: segment_reduce(x, reduce, offsets=offsets, initial=initial),
          lambda x: torch.segment_reduce(x, reduce, offsets=offsets, initial=initial), x[0])  # fmt: skip


def test_modules_and_functions_meet_them():
    x, y = draw(5, 4).requires_grad_(True), torch.tensor([2, 0, 1, 3, 3])
    losses = {
        "multi margin": lambda: torch.nn.MultiMarginLoss(p=2)(x, y),
        "multilabel margin": lambda: torch.nn.MultiLabelMarginLoss()(x[:4], y[:4].expand(4, 4)) * x.square().sum(),
        "ctc": lambda: torch.nn.CTCLoss()(x.log_softmax(-1), torch.tensor([1, 2]), torch.tensor(5), torch.tensor(2)),
        "cdist": lambda: torch.cdist(x, x + 1).sum(),
        "pdist": lambda: F.pdist(x).sum(),
        "segments": lambda: torch.segment_reduce(x, "mean", lengths=torch.tensor([2, 3])).square().sum(),
    }
    for name, loss in losses.items():
        with ByFormula():
            gradient = torch.autograd.grad(loss(), x, create_graph=True)[0]
            second = torch.autograd.grad(gradient.sum(), x)[0]
        assert bool(second.isfinite().all()), name
