"""Whether a network copes with its task: the sentence follows from accuracy, chance and their errors."""

from __future__ import annotations

import pytest
import torch

from lossmap.data.problem import Problem
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.regression_fit import regression_fit
from lossmap.health.diagnose import diagnose
from lossmap.report.task import outstanding_text, regression_numbers, task_numbers, task_text
from lossmap.report.text import meaningful_digits


def linear(scale, samples=200):
    """Three classes told apart by the largest of three inputs; `scale` 0 tells nothing, a negative one the opposite."""
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 3, generator=generator)
    model = torch.nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(scale * torch.eye(3))
    return Problem.supervised(model, "crossentropy", (x, x.argmax(dim=1)))


def numbers(scale, samples=200):
    return task_numbers(label_noise(linear(scale, samples)))


def test_held_out_samples_are_judged_first():
    good, bad = numbers(5.0), numbers(0.0, 100)
    assert task_text(good, None).startswith("above chance: accuracy 100.00 +- ")
    assert "none were held out" in task_text(good, None)
    assert "none were held out" not in task_text(good, None, of_training=False)
    both = task_text(good, bad)
    assert both.startswith("not shown to be above chance") and "of 100 held-out samples" in both
    assert "accuracy 100.00 +- " in both and "none were held out" not in both
    assert task_text(None, None) == ""


@pytest.mark.parametrize("scale", [0.0, -5.0])
def test_what_is_not_above_chance_is_not_said_to_be(scale):
    found = numbers(scale)
    text = task_text(found, None)
    alone = meaningful_digits(found["entropy"], found["loss_error"])  # 1.09695426 where the loss is 1.09861229, not 1.1
    assert text.startswith("not shown to be above chance") and f"labels' frequencies alone {alone})" in text


def test_layers_are_named_most_severe_first_and_only_what_has_a_suggestion_is_tried():
    findings = [
        {"where": "the model", "rule": "chance level", "tries": []},
        *({"where": f"layer {i}", "rule": f"rule {i}", "tries": [{"what": f"thing {i}"}]} for i in range(4)),
        {"where": "layer 0", "rule": "other", "tries": []},
    ]
    text = outstanding_text(findings)
    assert (
        text
        == "layers that stand out: layer 0, layer 1, layer 2 and 1 more; could be tried first: thing 0 (for rule 0)"
    )
    bare = {"where": "", "rule": "r", "tries": []}  # a model that is one layer has no name of its own
    assert outstanding_text([bare]) == ""
    assert outstanding_text([]) == ""


def test_the_report_of_a_diagnosis_begins_with_it():
    diagnosis = diagnose(linear(5.0), held_out=linear(5.0, 100), examinations=["signals"])
    lines = [line for line in repr(diagnosis).splitlines() if not line.startswith("  (")]
    assert lines[1].split("  ")[1].strip() == "its task" and "above chance" in lines[1]
    assert diagnosis.to_dict()["task"]["held_out"]["samples"] == 100
    assert "its task" not in repr(diagnose(linear(5.0), examinations=["weights"]))


def regression(noise, scale=1.0, samples=400, loss="mse"):
    """Targets 3 x_0 + noise, predicted as 3 scale x_0."""
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 2, generator=generator)
    y = 5.0 + 3.0 * x[:, :1] + noise * torch.randn(samples, 1, generator=generator)
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0 * scale, 0.0]]))
        model.bias.fill_(5.0)
    return Problem.supervised(model, loss, (x, y)), x, y


def test_of_a_regression_the_squared_error_stands_against_the_variance_of_the_targets():
    problem, x, y = regression(0.3)
    fit = regression_fit(problem)
    squares = (5.0 + 3.0 * x[:, :1].double() - y.double()).square().numpy()
    assert fit.error[0] == pytest.approx(squares.mean(), rel=1e-5)
    assert fit.error[1] == pytest.approx(squares.std(ddof=1) / 20, rel=1e-5)
    assert fit.variance == pytest.approx(y.double().numpy().var(), rel=1e-6) and fit.is_better
    assert 1 - fit.error[0] / fit.variance == pytest.approx(9 / 9.09, abs=0.005)
    text = task_text(regression_numbers(fit), None)
    assert text.startswith("better than the targets' mean: squared error 0.0") and "99 % of it explained" in text
    assert text.endswith("of 400 samples examined; none were held out")
    bad = regression_fit(regression(0.3, scale=0.0, samples=100)[0])
    both = task_text(regression_numbers(fit), regression_numbers(bad))
    assert both.startswith("not shown to be better than the targets' mean: ") and "of 100 held-out samples" in both
    assert "explained" not in both
    assert regression_fit(regression(0.3, loss=torch.nn.L1Loss())[0]).variance == fit.variance
    x = torch.randn(30, 2)
    constant = regression(0.0, scale=0.0)[0].model
    of_one_error = regression_fit(Problem.supervised(constant, "mse", (x, torch.full((30, 1), 6.5))))
    assert of_one_error.error == (2.25, pytest.approx(2 * 1.5 * 5.0 * torch.finfo(torch.float32).eps))
    for other in (linear(5.0), regression(0.3, loss=torch.nn.BCEWithLogitsLoss())[0]):
        with pytest.raises(ValueError, match="a regression has the loss mse"):
            regression_fit(other)


def test_the_report_of_a_diagnosis_of_a_regression_begins_with_it():
    diagnosis = diagnose(regression(0.3)[0], held_out=regression(0.3, samples=100)[0], examinations=["signals"])
    lines = [line for line in repr(diagnosis).splitlines() if not line.startswith("  (")]
    assert lines[1].split("  ")[1].strip() == "its task" and "better than the targets' mean" in lines[1]
    assert diagnosis.to_dict()["task"]["held_out"]["samples"] == 100
    assert "" not in diagnosis.to_dict()["skipped"]


def test_an_infinite_loss_is_named():
    assert "loss infinite nats" in task_text({**numbers(5.0), "loss": None, "loss_error": None}, None)
