"""Per-sample gradients and their spectra against dense twins, and known mixtures of signal and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.curvature.per_sample_gradients import (
    GradientCovariance,
    cost_of_covariance,
    gradient_covariance,
    per_sample,
)
from lossmap.data.problem import Problem


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()


def problem(model=None, samples=11, batch=4):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 4, (samples,), generator=generator)
    return Problem.supervised(model or net(), "crossentropy", (x, y), batch_size=batch)


def dense(given):
    model, (x, y) = given.model.eval(), given.data.tensors
    rows = []
    for i in range(len(x)):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        parts = torch.autograd.grad(loss, [p for p in model.parameters() if p.dim() > 1])
        rows.append(torch.cat([p.reshape(-1) for p in parts]))
    return torch.stack(rows).numpy()


def test_per_sample_gradients_are_those_of_each_sample_alone():
    given = problem()
    found = torch.cat(list(per_sample(given))).numpy()
    np.testing.assert_allclose(found, dense(given), atol=1e-12)


def test_the_row_that_pads_counts_as_in_the_gradient_of_all_samples():
    torch.manual_seed(0)
    table = nn.Embedding(5, 3, padding_idx=0)
    nn.init.normal_(table.weight)
    words = nn.Sequential(table, nn.Flatten(), nn.Linear(6, 4)).double()
    tokens = torch.tensor([[0, 1], [2, 0], [3, 4], [0, 0]])
    given = Problem.supervised(words, "crossentropy", (tokens, torch.arange(4)), batch_size=2)
    mean = torch.cat(list(per_sample(given))).mean(0)
    table.padding_idx = None
    parameters = [p for p in words.parameters() if p.dim() > 1]
    parts = torch.autograd.grad(nn.functional.cross_entropy(words(tokens), torch.arange(4)), parameters)
    np.testing.assert_allclose(mean, torch.cat([p.reshape(-1) for p in parts]), atol=1e-12)
    assert float(parts[0][0].norm()) > 0.01


def test_the_spectrum_is_that_of_the_dense_covariance():
    given = problem(samples=11)
    rows = dense(given)
    expected = np.linalg.eigvalsh(np.cov(rows.T, bias=True))[::-1]
    found = gradient_covariance(given)
    np.testing.assert_allclose(found.spectrum, expected[:11], atol=1e-12)
    assert (found.spectrum >= 0).all()
    np.testing.assert_allclose(found.concentration(2), expected[:2].sum() / expected.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.participation, expected.sum() ** 2 / (expected**2).sum(), rtol=1e-9)
    assert found.names == ("0.weight", "4.weight") and found.size == rows.shape[1] == 27 + 48
    np.testing.assert_allclose(found.by_tensor[0], (rows[:, :27] ** 2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.rms[1], np.sqrt((rows[:, 27:] ** 2).sum(1).mean()), rtol=1e-10)


@pytest.mark.parametrize("memory", [1, 75 * 8 * 2 * 3, 1 << 30])
@pytest.mark.parametrize("batch", [1, 5, 11])
def test_neither_batches_nor_memory_change_the_gram_matrix(memory, batch):
    rows = dense(problem())
    np.testing.assert_allclose(gradient_covariance(problem(batch=batch), memory=memory).gram, rows @ rows.T, atol=1e-12)


class Moody(nn.Module):
    """Its forward pass looks at a value, which vmap refuses."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        out = self.layer(x)
        return out if out.sum().item() > 0 else 2 * out


def test_models_that_vmap_refuses_are_differentiated_sample_by_sample():
    torch.manual_seed(0)
    data = (torch.randn(7, 3), torch.arange(7) % 2)
    given = Problem.supervised(Moody(), "crossentropy", data, batch_size=3)
    found = torch.cat(list(per_sample(given)))
    for i in range(7):
        loss = nn.functional.cross_entropy(given.model(data[0][i : i + 1]), data[1][i : i + 1])
        torch.testing.assert_close(found[i], torch.autograd.grad(loss, given.model.layer.weight)[0].reshape(-1))


class Casting(nn.Module):
    """Keeps a module in a dictionary, and casts it in place in every pass."""

    def __init__(self, cast):
        super().__init__()
        self.hidden, self.others, self.cast = net(), {"last": nn.Linear(4, 4)}, cast

    def forward(self, x):
        self.cast(self.others["last"], x.dtype)
        return self.others["last"](self.hidden(x))


def to(module, dtype):
    module.to(dtype)


def by_type(module, dtype):
    module.double() if dtype == torch.float64 else module.float()


def data_of(module, dtype):
    for p in module.parameters():
        p.data = p.data.to(dtype)


def test_a_sample_without_weight_has_no_gradient():
    torch.manual_seed(0)
    x, y, model = torch.randn(6, 3).double(), torch.tensor([0, -100, 1, 1, -100, 0]), nn.Linear(3, 2).double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1]), int((batch[1] != -100).sum())

    (rows,) = per_sample(Problem.custom(model, loss, (x, y), batch_size=6))
    assert not rows[y == -100].any() and rows[y != -100].any(dim=1).all()


@pytest.mark.parametrize("cast", [to, by_type, data_of])
def test_a_forward_that_casts_in_place_is_differentiated_sample_by_sample(cast):
    given = problem(Casting(cast))
    found = torch.cat(list(per_sample(given))).numpy()
    np.testing.assert_allclose(found, dense(given), atol=1e-12)
    last = given.model.others["last"]
    assert torch.isfinite(last(torch.ones(1, 4, dtype=last.weight.dtype))).all()  # its memory is its own


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.layer(x)[0].mean(1))


def test_a_recurrent_layer_is_differentiated_without_a_warning_of_pytorchs():
    net, x, y = Recurrent().eval(), torch.randn(6, 5, 3), torch.arange(6) % 2
    weights = [p for p in net.parameters() if p.dim() > 1]
    (rows,) = per_sample(Problem.supervised(net, "crossentropy", (x, y), batch_size=6))
    for row, a, b in zip(rows, x, y, strict=True):
        own = torch.autograd.grad(nn.functional.cross_entropy(net(a[None]), b[None]), weights)
        torch.testing.assert_close(row, torch.cat([g.reshape(-1) for g in own]))


def test_the_model_comes_back_as_it_was():
    model = net().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    gradient_covariance(problem(model))
    assert model.training and all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def of(rows):
    return GradientCovariance(rows @ rows.T, np.square(rows).sum(1)[None], ("w",), rows.shape[1])


def test_the_noise_scale_of_planted_signal_and_noise_is_found_within_its_error():
    generator = np.random.default_rng(0)
    n, signal, sigma = 50, 1.5, 2.0
    mean = np.zeros(n)
    mean[0] = signal
    found, error = of(mean + sigma * generator.standard_normal((400, n))).noise_scale
    expected = n * sigma**2 / signal**2
    assert abs(found - expected) < 4 * error and error < 0.2 * expected


def test_the_jackknife_error_of_the_noise_scale_is_the_spread_over_draws():
    draws = [of(1.0 + np.random.default_rng(k).standard_normal((60, 10))).noise_scale for k in range(60)]
    spread = np.std([value for value, _ in draws])
    assert 0.6 * spread < np.mean([error for _, error in draws]) < 1.6 * spread


def test_the_error_of_the_concentration_is_near_its_spread_over_draws():
    scale = np.array([3.0, 1, 1, 1, 1])
    draws = [of(np.random.default_rng(k).standard_normal((80, 5)) * scale).concentrated for k in range(60)]
    spread = np.std([value for value, _ in draws])
    assert 0.6 * spread < np.mean([error for _, error in draws]) < 1.6 * spread
    assert np.mean([value for value, _ in draws]) == pytest.approx(9 / 13, abs=0.05)


def test_gradients_without_signal_have_an_infinite_noise_scale():
    rows = np.concatenate([np.eye(6), -np.eye(6)])
    assert of(rows).noise_scale[0] == np.inf


def test_coherence_is_one_for_equal_gradients_and_its_formula_for_opposed_ones():
    assert of(np.ones((5, 3))).coherence[0] == pytest.approx(1.0)
    rows = np.array([[1.0], [1.0], [1.0], [-1.0]])
    found = of(rows)
    assert found.coherence[0] == pytest.approx((6 - 6) / 12)
    assert found.against[0] == pytest.approx(0.25)


def test_equal_gradients_have_no_scatter():
    found = of(np.ones((4, 3)))
    assert np.isnan(found.concentration()) and np.isnan(found.participation)
    assert found.noise_scale[0] == 0.0


def test_two_samples_have_no_error_bar():
    assert np.isnan(of(np.array([[1.0, 0.0], [1.0, 1.0]])).noise_scale[1])


def test_one_sample_has_no_covariance():
    with pytest.raises(ValueError, match="needs at least 2 samples; got 1"):
        gradient_covariance(problem(samples=1))
    broken = net()
    with torch.no_grad():
        broken[4].weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="gradient is not finite"):
        gradient_covariance(problem(broken))


def test_the_error_of_negative_alignment_is_the_spread_over_draws_where_all_share_an_unsure_mean():
    draws = [of(np.random.default_rng(k).standard_normal((80, 4)) + 0.05).against for k in range(60)]
    spread = np.std([value for value, _ in draws])
    independent = np.sqrt(0.25 / 80)
    assert spread > 1.2 * independent and np.mean([error for _, error in draws]) > 0.8 * spread


def test_a_noise_scale_whose_signal_is_within_two_errors_of_zero_has_no_error():
    value, error = of(np.random.default_rng(3).standard_normal((60, 10)) + 0.05).noise_scale
    assert error == np.inf or value == np.inf


@pytest.mark.parametrize("factor", [3.0, 12.0])
def test_gradients_of_a_saturated_network_do_not_cancel(factor):
    """Losses of 1e-6 and 1e-40 or so: 1 - p is rounding, and squares of gradients are below the smallest float32."""
    torch.manual_seed(0)
    model, y = nn.Linear(4, 3, bias=False), torch.arange(24) % 3
    x = nn.functional.one_hot(y, 4).float() + 0.05 * torch.randn(24, 4)
    model.weight.data = factor * 4.0 * torch.eye(3, 4)
    found = gradient_covariance(Problem.supervised(model, "crossentropy", (x, y)))
    scores, inputs = (x @ model.weight.T).detach().double(), x.double()
    slopes = (scores - torch.logsumexp(scores, 1, keepdim=True)).exp()
    slopes[torch.arange(24), y] = 0.0
    slopes[torch.arange(24), y] = -slopes.sum(1)  # p - 1 without a difference
    rows = (slopes[:, :, None] * inputs[:, None, :]).flatten(1)
    np.testing.assert_allclose(
        found.gram, (rows @ rows.T).numpy(), rtol=1e-4, atol=1e-5 * float(rows.square().sum(1).max())
    )
    assert (found.rms > 0).all()


class Weighed(nn.Module):
    """A criterion with a parameter of its own, which stands still."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.tensor(0.3))

    def forward(self, outputs, targets):
        return torch.exp(-self.log_variance) * nn.functional.cross_entropy(outputs, targets) + self.log_variance


def test_a_criterion_with_parameters_of_its_own_is_none_of_the_model():
    torch.manual_seed(0)
    x, y = torch.randn(6, 4), torch.arange(6) % 3
    model, criterion = nn.Sequential(nn.Linear(4, 3)), Weighed()
    free = gradient_covariance(Problem.supervised(model, criterion, (x, y)))
    fixed = gradient_covariance(Problem.supervised(model, criterion.requires_grad_(False), (x, y)))
    np.testing.assert_array_equal(free.gram, fixed.gram)


def test_the_price_of_a_covariance_counts_what_is_made_again_for_want_of_memory():
    model = nn.Linear(50, 4)
    problem = Problem.supervised(model, "crossentropy", (torch.randn(64, 50), torch.arange(64) % 4))
    row = 4 * 200
    prices = {}
    for blocks in (1, 8):
        clock = iter([0.0, 1.0])  # of 16 samples
        prices[blocks] = cost_of_covariance(problem, "weights", lambda clock=clock: next(clock), 2 * row * 64 // blocks)
    assert prices[1][0] == 64 / min(16, 2 * 64 // 32)  # seconds
    assert prices[8][0] == 64 * 4.5
    assert prices[8][1] == 2 * row * 8 + 4 * row < prices[1][1]
