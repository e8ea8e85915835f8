"""Planted label noise is estimated; clean labels are not suspected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lossmap.data.problem import Problem
from lossmap.diagnostics.label_noise import confident_learning, label_noise


def sure(y, classes, seed=0, own=0.9):
    """Probabilities of a classifier that knows the true classes y."""
    p = np.full((len(y), classes), (1 - own) / (classes - 1))
    p[np.arange(len(y)), y] = own
    return p + np.random.default_rng(seed).uniform(-0.01, 0.01, p.shape)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_flipped_labels_are_counted(rate):
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 5, 2000)
    flipped = generator.random(2000) < rate
    y = np.where(flipped, (truth + 1) % 5, truth)
    found = confident_learning(sure(truth, 5), y)
    share, error = found.noise
    assert abs(share - flipped.mean()) < max(4 * error, 0.02)
    assert set(found.suspected_errors) <= set(np.nonzero(flipped)[0])
    assert found.accuracy == pytest.approx(1 - flipped.mean())


def test_the_joint_counts_are_those_of_the_definition():
    p = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.7, 0.3], [0.3, 0.7]])
    y = np.array([0, 0, 1, 1, 1])
    # t_0 = .85, t_1 = (.9 + .3 + .7) / 3 = .633; confident: 0, 2, 4
    found = confident_learning(p, y)
    np.testing.assert_array_equal(found.joint, [[1, 0], [0, 2]])
    found = confident_learning(np.vstack([p, [0.95, 0.05]]), np.append(y, 1))
    np.testing.assert_array_equal(found.joint, [[1, 0], [1, 2]])
    assert found.suspected_errors.tolist() == [5]
    assert np.isnan(found.noise[0])  # right for 4 of 6, as the most frequent label is
    times = [50, 50, 50, 10]
    rows = np.repeat(np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.95, 0.05]]), times, axis=0)
    better = confident_learning(rows, np.repeat([0, 0, 1, 1], times))  # t_0 = .85, t_1 = .758
    np.testing.assert_array_equal(better.joint, [[50, 0], [10, 50]])
    assert better.noise[0] == pytest.approx(1 / 11) and better.undecided == ""


def test_a_class_without_samples_takes_none():
    found = confident_learning(np.array([[0.1, 0.0, 0.9], [0.2, 0.1, 0.7]]), np.array([0, 0]))
    assert found.joint[:, 2].sum() == 0


def test_the_model_is_asked_in_evaluation_mode_batch_by_batch():
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.9)).train()
    x, y = torch.randn(20, 3), torch.arange(20) % 4
    found = label_noise(Problem.supervised(model, "crossentropy", (x, y), batch_size=6))
    with torch.no_grad():
        expected = confident_learning(model.eval()(x).double().softmax(1).numpy(), y.numpy())
    np.testing.assert_array_equal(found.joint, expected.joint)
    assert found.samples == 20


def test_what_has_no_classes_is_refused():
    with pytest.raises(ValueError, match="label noise requires a classifier"):
        label_noise(Problem.supervised(nn.Linear(2, 1), "mse", (torch.randn(4, 2), torch.randn(4, 1))))


def test_probabilities_that_are_not_finite_leave_the_noise_unknown():
    assert np.isnan(confident_learning(np.full((3, 2), np.nan), np.array([0, 1, 0])).noise[0])


def test_negative_log_likelihood_and_entropy_are_those_of_the_definition():
    p = np.array([[0.5, 0.5], [0.25, 0.75], [0.25, 0.75], [0.25, 0.75]])
    found = confident_learning(p, np.array([0, 0, 1, 1]))
    assert found.negative_log_likelihood[0] == pytest.approx(-np.log([0.5, 0.25, 0.75, 0.75]).mean())
    assert found.entropy == pytest.approx(np.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [0.0, 100.0, [0.0, 0.0, -torch.inf], [0.0, 0.0, -1e9]])
def test_the_error_of_a_likelihood_is_no_less_than_the_rounding_of_the_outputs(dtype, bias):
    model, y = nn.Linear(2, 3, bias=False).to(dtype), torch.arange(30) % 2
    with torch.no_grad():
        model.weight.zero_()
    shifted = Shifted(model, torch.as_tensor(bias, dtype=dtype))
    found = label_noise(Problem.supervised(shifted, "crossentropy", (torch.randn(30, 2, dtype=dtype), y)))
    loss, error = found.negative_log_likelihood
    largest = max(loss, 100.0 if bias == 100.0 else 0.0)
    assert loss == pytest.approx(np.log(3 if isinstance(bias, float) else 2))
    assert error == pytest.approx(torch.finfo(dtype).eps * largest, rel=1e-6)


class Shifted(nn.Module):
    def __init__(self, inner, shift):
        super().__init__()
        self.inner = inner
        self.register_buffer("shift", shift)

    def forward(self, x):
        return self.inner(x) + self.shift


def untrained(samples, classes, seed, width=64):
    """An untrained network over samples whose inputs differ by class: probabilities (N, C) and labels (N,)."""
    torch.manual_seed(seed)
    y = torch.arange(samples) % classes
    x = torch.randn(classes, width)[y] + (4.0 if classes == 2 else 1.0) * torch.randn(samples, width)
    net = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes))
    with torch.no_grad():
        return net(x).double().softmax(1).numpy(), y.numpy()


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_the_mistakes_of_an_untrained_network_are_no_label_noise(classes):
    for seed in range(20):
        result = confident_learning(*untrained(400, classes, seed))
        assert np.isnan(result.noise[0]) and "does not classify" in result.undecided


def test_a_network_that_knows_the_most_frequent_label_alone_does_not_classify():
    y = np.r_[np.zeros(90, dtype=int), np.ones(10, dtype=int)]
    result = confident_learning(np.tile([0.9, 0.1], (100, 1)), y)
    assert result.accuracy == 0.9 and np.isnan(result.noise[0]) and "chance 90 %" in result.undecided


def test_a_confident_network_is_a_classifier_though_its_mistakes_ruin_its_likelihood():
    truth = np.arange(1000) % 4
    y = np.where(np.arange(1000) % 10 == 0, (truth + 1) % 4, truth)
    p = np.full((1000, 4), 1e-12)
    p[np.arange(1000), truth] = 1.0
    result = confident_learning(p, y)
    assert result.negative_log_likelihood[0] > result.entropy
    assert result.noise[0] == pytest.approx(0.1, abs=0.01) and result.undecided == ""


@pytest.mark.parametrize("ignored", [-100, -1, 255, 2])
def test_samples_that_the_loss_ignores_are_left_out(ignored):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 4), torch.randn(60, 3)
    y = (x @ torch.randn(3, 4)).argmax(1)
    y[::3] = ignored
    counted = y != ignored
    found = label_noise(Problem.supervised(model, nn.CrossEntropyLoss(ignore_index=ignored), (x, y), batch_size=16))
    alone = label_noise(Problem.supervised(model, "crossentropy", (x[counted], y[counted])))
    assert (found.samples, found.accuracy) == (int(counted.sum()), alone.accuracy)
    assert found.negative_log_likelihood == pytest.approx(alone.negative_log_likelihood)
    assert found.suspected_errors.tolist() == counted.nonzero()[alone.suspected_errors, 0].tolist()


def test_outputs_that_are_probabilities_are_taken_as_they_are():
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)), torch.randn(50, 3), torch.arange(50) % 4

    def loss(p, y):
        return -p.gather(1, y[:, None]).log().mean()

    found = label_noise(Problem.supervised(model, loss, (x, y)))
    assert found.negative_log_likelihood[0] == pytest.approx(loss(model(x), y).item(), rel=1e-5)


@pytest.mark.parametrize("outputs", [1, 3])
def test_outputs_that_are_no_scores_of_the_classes_are_refused(outputs):
    def loss(f, y):
        return (f.sum(1) - y).square().mean()

    problem = Problem.supervised(nn.Linear(3, outputs), loss, (torch.randn(20, 3), torch.arange(20) % 5))
    with pytest.raises(ValueError, match="no scores of the classes"):
        label_noise(problem)


def test_the_likelihood_of_a_network_that_fits_keeps_its_digits():
    model, y = nn.Linear(3, 3, bias=False).double(), torch.arange(12) % 3
    model.weight.data = torch.eye(3, dtype=torch.float64)
    x = 50.0 * torch.eye(3, dtype=torch.float64)[y]
    found = label_noise(Problem.supervised(model, "crossentropy", (x, y)))
    assert found.negative_log_likelihood[0] == pytest.approx(2 * np.exp(-50.0), rel=1e-9)  # log(1 + 2 exp(-50))


def test_the_likelihood_of_logits_far_apart_is_finite():
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(60, 4, dtype=torch.float64), torch.arange(60) % 3
    with torch.no_grad():
        model.weight *= 2000.0
    found = label_noise(Problem.supervised(model, "crossentropy", (x, y)))
    each = nn.functional.cross_entropy(model(x), y, reduction="none").detach()
    assert each.max() > 800.0  # beyond which a probability is 0
    value, error = found.negative_log_likelihood
    assert value == pytest.approx(each.mean().item(), rel=1e-12)
    assert error == pytest.approx(each.std(correction=0).item() / 60**0.5, rel=1e-9)
