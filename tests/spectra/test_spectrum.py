"""The spectrum of a network against its dense Hessian, closed forms, and what a new user gets wrong."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lossmap
from lossmap.curvature.gradient import loss_and_gradient
from lossmap.data.problem import Problem
from lossmap.geometry.parameter_vector import Layout
from lossmap.landscape.curvature_directions import curved_direction
from lossmap.linalg.operator import SymmetricOperator
from lossmap.linalg.probabilistic_bounds import NO_LIMITS
from lossmap.spectra.compare import compare, l2_path
from lossmap.spectra.spectrum import spectrum, spectrum_of
from lossmap.spectra.summaries import masses_of, share_by_tensor


class Held:
    """A dense matrix met through products."""

    def __init__(self, entries):
        self.entries = entries
        self.size, self.dtype, self.device = len(entries), entries.dtype, entries.device

    def __matmul__(self, v):
        return self.entries @ v


def planted(values, seed=0):
    values = torch.as_tensor(np.asarray(values, dtype=float))
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))[0]
    return Held((q * values) @ q.T)


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype).eval()


def data(samples=40, dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, 6, generator=g, dtype=torch.float64)
    return x.to(dtype), (x @ torch.randn(6, 3, generator=g, dtype=torch.float64)).argmax(1)


def dense(model, loss, names):
    """The twin: reverse over reverse, of the loss over the named parameters, (n, n)."""
    own = dict(model.named_parameters())
    sizes = [own[k].numel() for k in names]

    def of(flat):
        parts = torch.split(flat, sizes)
        given = {k: p.view(own[k].shape) for k, p in zip(names, parts, strict=True)}
        return loss(lambda x: torch.func.functional_call(model, given, (x,)))

    return torch.func.jacrev(torch.func.grad(of))(torch.cat([own[k].detach().reshape(-1) for k in names])).detach()


@pytest.fixture
def problem():
    return Problem.supervised(net(), "crossentropy", data(), batch_size=16)


@pytest.fixture
def truth(problem):
    x, y = data()
    return dense(problem.model, lambda f: F.cross_entropy(f(x), y), ["0.weight", "2.weight"])


@pytest.mark.parametrize("dense_up_to", [300, 0], ids=["made whole", "by products"])
def test_every_number_agrees_with_the_dense_hessian(problem, truth, dense_up_to):
    s = spectrum(
        problem,
        top=4,
        bottom=2,
        tol=1e-8,
        dense=dense_up_to,
        mass_at=(1e-3,),
        density_error=0.2,
        backend="double-backward",
    )
    values = torch.linalg.eigvalsh(truth).numpy()
    assert s.size == 45 and s.samples == 40 and s.unit == "nats"
    assert s.top.values == pytest.approx(values[::-1][:4], abs=1e-7)
    assert s.bottom.values == pytest.approx(values[:2], abs=1e-7)
    assert (np.abs(s.top.values - values[::-1][:4]) <= s.top.residuals + 1e-12).all()
    assert s.trace.value == pytest.approx(values.sum(), rel=1e-9)
    t, below, above = s.masses[0]
    assert t == 1e-3
    assert below.low <= (values < -1e-3).mean() <= below.high
    assert above.low <= (values > 1e-3).mean() <= above.high
    assert s.converged and s.condition == np.inf and s.ill_conditioned
    assert s.step_limit[0] == pytest.approx(2 / values[-1])


def test_all_parameters_and_a_regular_expression_may_be_requested(problem):
    assert spectrum(problem, parameters="all", density_error=None).size == 53
    assert spectrum(problem, parameters="2\\.weight", density_error=None).size == 15


def test_gauss_newton_agrees_with_its_definition(problem):
    x, _ = data()
    model, names = problem.model, ["0.weight", "2.weight"]
    own = dict(model.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))({k: own[k] for k in names})
    j = torch.cat([jacobian[k].reshape(40, 3, -1) for k in names], 2)
    p = model(x).softmax(1)
    h = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    g = torch.einsum("noa,nop,npb->ab", j, h, j) / 40
    s = spectrum(problem, matrix="gauss-newton", top=3)
    assert s.top.values == pytest.approx(torch.linalg.eigvalsh(g).flip(0)[:3].detach().numpy(), abs=1e-10)
    assert s.smallest[0] > -1e-10
    assert "Gauss-Newton" in repr(s)


def test_softmax_regression_at_zero_has_its_closed_form():
    """H = (1/N X^T X) kron (diag(p) - p p^T) with p = 1/3 everywhere: eigenvalues lambda_i(X^T X/N)/3, twice, and 0."""
    x, y = data()
    model = nn.Linear(6, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    s = spectrum(Problem.supervised(model.eval(), "crossentropy", (x, y)), top=12, bottom=6)
    second = torch.linalg.eigvalsh(x.T @ x / 40).flip(0) / 3
    assert s.top.values == pytest.approx(second.repeat_interleave(2).numpy(), abs=1e-10)
    assert s.bottom.values == pytest.approx(np.zeros(6), abs=1e-10)
    assert s.condition == np.inf
    assert "cannot be told from zero in this precision" in s.verdict


def test_linear_regression_has_its_closed_form_and_a_finite_condition():
    x = data()[0]
    model = nn.Linear(6, 2, bias=False).double().eval()
    s = spectrum(Problem.supervised(model, "mse", (x, torch.zeros(40, 2).double())), top=2, bottom=1)
    values = torch.linalg.eigvalsh(x.T @ x).numpy() * 2 / (40 * 2)
    assert s.largest[0] == pytest.approx(values[-1])
    assert s.condition == pytest.approx(values[-1] / values[0])
    assert not s.ill_conditioned
    assert "positive definite" in s.verdict


def test_a_deep_linear_net_at_the_origin_is_indefinite_with_known_ends():
    """At W = 0 of f = W2 W1 x the Hessian of 1/2 ||f - y||^2 is -[0, S; S^T, 0] of S = mean y x^T, ends -+ its norm."""
    x, _ = data()
    y = x[:, :2] * 3.0
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Linear(1, 2, bias=False)).double().eval()
    for p in model.parameters():
        nn.init.zeros_(p)
    problem = Problem.custom(model, lambda m, b: 0.5 * ((m(b[0]) - b[1]) ** 2).sum(1).mean(), (x, y))
    s = spectrum(problem, top=1, bottom=1)
    strongest = float(torch.linalg.svdvals(y.T @ x / 40)[0])
    assert s.largest[0] == pytest.approx(strongest) and s.smallest[0] == pytest.approx(-strongest)
    assert s.gradient_norm == 0.0
    assert "indefinite" in s.verdict and "100 %" in s.verdict
    assert s.shares["top 1"]["0.weight"] == pytest.approx(0.5)


def test_an_ill_conditioned_matrix_is_flagged_and_an_uncertain_one_is_infinite():
    s = spectrum_of(planted(np.geomspace(1e-3, 10.0, 50)))
    assert s.condition == pytest.approx(1e4, rel=1e-6) and s.ill_conditioned
    assert "ill-conditioned (above 1,000)" in " ".join(repr(s).split())
    loose = spectrum_of(planted(np.geomspace(1e-7, 10.0, 400)), tol=1e-2, trace_products=0, density_error=None)
    assert loose.condition == np.inf
    assert "is not positive beyond its error" in " ".join(repr(loose).split())


def test_the_largest_by_magnitude_come_from_both_ends():
    s = spectrum_of(planted([5.0, -4.0, 3.0, 0.1, -2.0, 0.0]), top=3, bottom=3)
    values, errors = s.largest_by_magnitude(3)
    assert values == pytest.approx([5.0, -4.0, 3.0])
    assert len(errors) == 3
    assert s.values == pytest.approx([5.0, 3.0, 0.1, 0.0, -2.0, -4.0])
    with pytest.raises(ValueError, match="the 4 largest by magnitude need 4 eigenvalues at both ends; there are 3"):
        s.largest_by_magnitude(4)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([1.0, 2.0, 3.0], "positive definite"),
        ([-1.0, -2.0, -3.0], "negative definite"),
        ([0.0, 0.0, 0.0], "zero: no curvature"),
        ([-1.0, 0.0, 0.0], "negative semidefinite"),
        ([1.0, 0.0, 0.0], "positive semidefinite"),
        ([-1.0, 0.0, 2.0], "indefinite"),
    ],
)
def test_verdicts_say_the_shape_with_its_numbers(values, word):
    assert word in spectrum_of(planted(values), top=1, bottom=1).verdict


def test_a_verdict_needs_both_ends_and_a_step_limit_a_positive_one():
    s = spectrum_of(planted([1.0, 2.0, 3.0]), top=1, bottom=0)
    assert "requires both ends" in s.verdict and np.isnan(s.condition)
    down = spectrum_of(planted([-1.0, -2.0, -3.0]), top=1, bottom=1)
    assert down.step_limit[0] == np.inf and "so curvature sets no limit" in " ".join(repr(down).split())


def test_the_report_states_non_convergence_with_its_residual():
    s = spectrum_of(planted(np.linspace(-1, 1, 400)), max_products=6, trace_products=0, density_error=None)
    assert not s.converged
    assert "NOT CONVERGED after 6 products" in " ".join(repr(s).split())


def test_shares_of_an_eigenvector_add_up_to_one(problem, truth):
    s = spectrum(problem, top=2)
    vectors = torch.linalg.eigh(truth)[1]
    for i, name in ((-1, "top 1"), (-2, "top 2"), (0, "bottom 1")):
        assert s.shares[name]["0.weight"] == pytest.approx(float((vectors[:30, i] ** 2).sum()), abs=1e-6)
        assert sum(s.shares[name].values()) == pytest.approx(1.0)
    layout = Layout(("a", "b"), ((2,), (1,)))
    assert np.isnan(share_by_tensor(torch.zeros(3), layout)["a"])


def test_any_cut_into_batches_gives_the_same_and_never_an_average_of_eigenvalues(problem):
    whole = spectrum(problem.rebatched(40), dense=0, density_error=None, tol=1e-8)
    parts = spectrum(problem.rebatched(7), dense=0, density_error=None, tol=1e-8)
    assert parts.top.values == pytest.approx(whole.top.values, abs=1e-9)
    assert parts.loss == pytest.approx(whole.loss) and parts.gradient_norm == pytest.approx(whole.gradient_norm)


def test_two_ranks_of_a_team_find_what_one_finds(problem):
    """Played by one process: the other rank's share is added to every sum."""
    shares = [problem.share(i, 2) for i in range(2)]
    sums = [loss_and_gradient(s, total=lambda t: t) for s in shares]
    loss = sum(v * s.samples for (v, *_), s in zip(sums, shares, strict=True)) / 40
    assert loss == pytest.approx(loss_and_gradient(problem)[0])


def test_the_model_is_restored(problem):
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    problem.model[0].weight.requires_grad_(False)
    spectrum(problem, top=2)
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())
    assert all(p.grad is None for p in problem.model.parameters())
    assert not problem.model[0].weight.requires_grad and problem.model[2].weight.requires_grad


def test_a_loss_with_a_regulariser_inside_is_shifted_by_it():
    model, (x, y) = net(), data()
    plain = Problem.custom(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), (x, y))
    decayed = Problem.custom(
        model, lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.05 * sum((p**2).sum() for p in m.parameters()), (x, y)
    )
    a, b = spectrum(plain, top=3), spectrum(decayed, top=3)
    assert b.top.values == pytest.approx(a.top.values + 0.1)
    assert a.shifted(0.1)[:3] == pytest.approx(b.top.values)


def test_what_a_file_keeps_is_arrays_and_attributes(problem):
    arrays, attributes = spectrum(problem, top=3, density_steps=5, density_probes=2).stored()
    assert arrays["top"].shape == (3,) and arrays["share_by_tensor"].shape == (4, 2)
    assert arrays["mass_below"].shape == (2, 3)
    assert attributes["trace_low"] <= attributes["trace"] <= attributes["trace_high"]
    assert isinstance(Held(torch.eye(2)), object) and hasattr(SymmetricOperator, "size")


def test_the_report_counts_what_is_frozen_and_what_the_loss_is_a_mean_over(problem):
    few = {"top": 1, "bottom": 0, "density_error": None, "trace_products": 0}
    assert "frozen" not in repr(spectrum(problem, parameters="all", **few))
    model = copy.deepcopy(problem.model)
    first = next(model.parameters()).requires_grad_(False)
    result = spectrum(replace(problem, model=model, unit="nats per token"), parameters="trainable", **few)
    assert result.frozen == first.numel()
    assert f"frozen        {first.numel():,} parameters that require no gradient are left out" in repr(result)
    assert f"of the mean loss over {problem.samples:,} tokens" in " ".join(repr(result).split())
    assert spectrum(problem, **few).frozen == 0 and "samples" in repr(spectrum(problem, **few))


def test_spectra_stand_side_by_side_with_their_gap(problem):
    test = Problem.supervised(problem.model, "crossentropy", data(30, seed=7))
    both = compare({"train": spectrum(problem), "test": spectrum(test)})
    gap = both.gap("train", "test")
    assert gap["largest"][0] == pytest.approx(both["test"].largest[0] - both["train"].largest[0])
    text = repr(both)
    assert "test - train: loss" in text and list(both) == ["train", "test"]
    with pytest.raises(ValueError, match="there are no spectra to compare"):
        compare({})


def test_gaps_and_shifts_have_the_digits_of_their_errors(problem):
    s = replace(spectrum(problem, top=1, trace_products=0, density_error=None), loss=1.5, loss_error=0.0, trace=None)
    a, b = (
        replace(s, top=replace(s.top, values=np.array([v]), residuals=np.array([4e-6]), limits=NO_LIMITS))
        for v in (4.0, 8.2567568)
    )
    assert "largest +4.2567568 +- 8e-06" in " ".join(repr(compare({"a": a, "b": b})).split())
    assert "largest -4.2567568 +- 8e-06" in " ".join(repr(compare({"b": b, "a": a})).split())
    row = repr(l2_path(b, [0.5])).splitlines()
    assert any(line.split()[:2] == ["0.5", "8.7567568"] for line in row)


def test_an_l2_path_is_the_exact_shift_at_fixed_weights(problem):
    s = spectrum(problem, parameters="all", top=1)
    path = l2_path(s, [0.1, 0.0, 1.0])
    strong = Problem.custom(
        problem.model,
        lambda m, b: F.cross_entropy(m(b[0]), b[1]) + 0.5 * sum((p**2).sum() for p in m.parameters()),
        data(),
    )
    shifted = spectrum(strong, parameters="all", top=1)
    assert path.largest[2] == pytest.approx(shifted.largest[0], abs=1e-9)
    assert path.smallest[2] == pytest.approx(shifted.smallest[0], abs=1e-9)
    assert path.conditions[0] == np.inf and path.conditions[2] == pytest.approx(shifted.condition, rel=1e-6)
    assert path.convex_from == pytest.approx(-s.smallest[0])
    assert "exact shift" in repr(path)


def test_an_l2_path_carries_retrained_spectra_on_request(problem):
    s = spectrum(problem, top=1)
    path = l2_path(s, [0.0, 0.1], [s, s])
    assert "retrained: loss" in repr(path)
    with pytest.raises(ValueError, match="1 retrained spectra for 2 strengths"):
        l2_path(s, [0.0, 0.1], [s])
    with pytest.raises(ValueError, match="strengths of an L2 path must be >= 0"):
        l2_path(s, [-1.0])
    with pytest.raises(ValueError, match="needs both ends"):
        l2_path(spectrum(problem, bottom=0), [0.1])


def test_a_model_in_training_mode_is_read_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Tanh(), nn.Linear(6, 3)).double()
    problem = Problem.supervised(model.eval(), "crossentropy", data())
    expected = spectrum(problem).largest
    model.train()
    assert spectrum(problem).largest == expected and all(m.training for m in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_refused(dtype):
    problem = Problem.supervised(net(dtype), "crossentropy", data(dtype=dtype))
    with pytest.raises(ValueError, match=r"drown in rounding; call model.float\(\) first"):
        spectrum(problem, check=False)


def test_sums_and_weighted_means_are_those_of_one_batch():
    weights = torch.tensor([1.0, 5.0, 0.2]).double()
    for loss in (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(weight=weights)):
        known = spectrum(Problem.supervised(net(), loss, data()), top=1, trace_products=0, density_error=None)
        own = Problem.custom(net(), lambda model, batch, loss=loss: loss(model(batch[0]), batch[1]), data())
        assert spectrum(own, top=1, trace_products=0, density_error=None).largest[0] == pytest.approx(known.largest[0])


def test_more_eigenvalues_than_rows_are_refused(problem):
    with pytest.raises(ValueError, match="top 46: the matrix has 45 rows, and no more eigenvalues than that"):
        spectrum(problem, top=46)
    with pytest.raises(ValueError, match="bottom must be 0 to 100; got 101"):
        spectrum(problem, bottom=101)


def test_parameters_that_match_nothing_are_named(problem):
    with pytest.raises(ValueError, match="no parameter matches 'fc9'"):
        spectrum(problem, parameters="fc9")


def test_an_unknown_matrix_is_named(problem):
    with pytest.raises(
        ValueError,
        match="the matrix must be one of hessian, gauss-newton, fisher, mc-fisher, preconditioned; got 'kronecker'",
    ):
        spectrum(problem, matrix="kronecker")


def test_a_loss_that_is_not_finite_has_no_curvature():
    model = net()
    with torch.no_grad():
        model[2].bias[0] = float("inf")
    with pytest.raises(FloatingPointError, match="there is no curvature to read here"):
        spectrum(Problem.supervised(model, "crossentropy", data()), check=False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_where_one_batch_has_no_loss_no_way_reads_curvature(value):
    """As a mean over no label of a batch: PyTorch's gradient of it is 0, and the batch counts all the same."""

    def loss(model, batch):
        own = nn.functional.mse_loss(model(batch[0]), batch[1])
        return torch.where((batch[0] > 50).any(), own.detach() * 0 + value, own)

    model = nn.Linear(4, 2)
    batches = [(torch.randn(6, 4), torch.randn(6, 2)), (torch.full((6, 4), 99.0), torch.randn(6, 2))]
    problem = Problem.custom(model, loss, batches)
    for read in (
        spectrum,
        lossmap.layer_spectra,
        lossmap.hessian,
        lambda p: lossmap.sharpness(p, radius={}),
        lambda p: curved_direction(p, "hessian:max"),
    ):
        with pytest.raises(FloatingPointError, match="there is no curvature to read here"):
            read(problem)


def test_masses_want_a_threshold_of_zero_or_more(problem):
    s = spectrum(problem)
    with pytest.raises(ValueError, match="needs t >= 0; got -1"):
        masses_of(s.density, (-1.0,))
    assert masses_of(None, (1.0,)) == ()


def test_the_linearized_backend_finds_the_same(problem):
    a = spectrum(problem, dense=0, top=2, density_error=None, tol=1e-8, backend="double-backward")
    b = spectrum(problem, dense=0, top=2, density_error=None, tol=1e-8, backend="linearized")
    assert b.top.values == pytest.approx(a.top.values, abs=1e-9)


def test_the_report_and_the_file_say_how_an_unusual_loss_is_evaluated(problem, tmp_path):
    assert "evaluation" not in repr(spectrum(problem, top=1))
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(12, 4)

    def noisy(model, batch):
        return (model(batch + 0.1 * torch.randn_like(batch)) ** 2).mean()

    result = spectrum(lossmap.Problem.custom(net, noisy, x), top=1)
    result.save(tmp_path / "s.h5")
    for each in (result, lossmap.read(tmp_path / "s.h5")):
        assert "evaluation the loss draws at random" in " ".join(repr(each).split())


def test_a_condition_whose_smallest_eigenvalue_is_near_the_noise_floor_says_how_far_it_is_known():
    sure = spectrum_of(planted([3.0, 1e-3, -0.5, 1.0, 2.0]))
    report = " ".join(repr(sure).split())
    assert "|lambda|max / |lambda|min = 3,000" in report and "between" not in report
    floor = sure.noise_floor
    near = spectrum_of(planted([3.0, 1.5 * floor, -0.5, 1.0, 2.0]))
    ratio = near.condition_beyond_floor
    report = " ".join(repr(near).split())
    low, high = (float(x) for x in re.search(r"\|lambda\|min = ~\S+, between (\S+) and (\S+?)[;.]? ", report).groups())
    assert low == pytest.approx(ratio / (1 + near.noise_floor * ratio / 3), rel=0.06)
    assert high == pytest.approx(ratio / (1 - near.noise_floor * ratio / 3), rel=0.06) and high > 2 * low


def test_the_condition_beyond_the_noise_floor_stands_beside_an_infinite_one():
    s = spectrum_of(planted(np.r_[np.zeros(10), -0.02, np.geomspace(1e-3, 10.0, 40)]))
    assert s.condition == np.inf and s.condition_beyond_floor == pytest.approx(1e4, rel=1e-6)
    assert "|lambda|max / |lambda|min = 10,000" in " ".join(repr(s).split())
    assert np.isnan(spectrum_of(planted(np.zeros(5))).condition_beyond_floor)
    large = spectrum_of(planted(np.r_[np.zeros(10), np.geomspace(1e-3, 10.0, 400)]), trace_products=0)
    assert np.isnan(large.condition_beyond_floor) and "|lambda|min" not in repr(large)


def test_an_eigenvector_of_a_zero_eigenvalue_has_no_shares():
    layout = Layout(("a", "b"), ((3, 2), (4,)))
    zero = spectrum_of(planted(np.zeros(10)), layout=layout)
    assert all(np.isnan(list(row.values())).all() for row in zero.shares.values())
    assert "localization" not in repr(zero)
    flat = spectrum_of(planted(np.r_[np.zeros(9), 2.0]), top=2, layout=layout)
    assert sum(flat.shares["top 1"].values()) == pytest.approx(1.0)
    assert (
        np.isnan(list(flat.shares["top 2"].values())).all() and np.isnan(list(flat.shares["bottom 1"].values())).all()
    )
    assert repr(flat).count("localization") == 1


@pytest.mark.parametrize("loss", [torch.nn.NLLLoss(), torch.nn.L1Loss()])
def test_a_gauss_newton_matrix_of_a_loss_linear_in_the_outputs_is_no_statement_on_curvature(loss):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3), torch.nn.LogSoftmax(1)]
    data = (torch.randn(20, 4), torch.arange(20) % 3)
    if isinstance(loss, torch.nn.L1Loss):
        layers, data = layers[:-1], (data[0], torch.randn(20, 3))
    problem = lossmap.Problem.supervised(torch.nn.Sequential(*layers), loss, data)
    zero = lossmap.spectrum(problem, matrix="gauss-newton")
    assert zero.largest == zero.smallest == (0.0, 0.0)
    for text in (zero.verdict, repr(zero)):
        text = " ".join(text.split())
        assert "zero: the loss is linear in the model's outputs here" in text and "CrossEntropyLoss" in text
        assert "no curvature" not in text and "sets no limit" not in text
    by_layer = " ".join(repr(lossmap.layer_spectra(problem, matrix="gauss-newton")).split())
    assert "Every block is zero: the loss is linear in the model's outputs here" in by_layer
    assert "no curvature" not in by_layer and "not in this: its gradient is" in by_layer
    if isinstance(
        loss, torch.nn.NLLLoss
    ):  # the advice is right: the same loss from logits has one, and the Hessian is one
        logits = lossmap.Problem.supervised(torch.nn.Sequential(*layers[:-1]), "crossentropy", data)
        assert lossmap.spectrum(logits, matrix="gauss-newton").largest[0] > 0.01
        np.testing.assert_allclose(lossmap.spectrum(logits).values, lossmap.spectrum(problem).values, atol=1e-5)
