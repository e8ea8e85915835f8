"""Whether a network copes with its task: the sentence follows from accuracy, chance and their errors."""

from __future__ import annotations

import pytest
import torch

from lossmap.data.problem import Problem
from lossmap.diagnostics.label_noise import label_noise
from lossmap.health.diagnose import diagnose
from lossmap.report.task import outstanding_text, task_numbers, task_text


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
    text = task_text(numbers(scale), None)
    assert text.startswith("not shown to be above chance") and "labels' frequencies alone 1.1" in text


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
    assert outstanding_text([]) == ""


def test_the_report_of_a_diagnosis_begins_with_it():
    diagnosis = diagnose(linear(5.0), held_out=linear(5.0, 100), examinations=["signals"])
    lines = [line for line in repr(diagnosis).splitlines() if not line.startswith("  (")]
    assert lines[1].split("  ")[1].strip() == "its task" and "above chance" in lines[1]
    assert diagnosis.to_dict()["task"]["held_out"]["samples"] == 100
    assert "its task" not in repr(diagnose(linear(5.0), examinations=["weights"]))


def test_an_infinite_loss_is_named():
    assert "loss infinite nats" in task_text({**numbers(5.0), "loss": None, "loss_error": None}, None)
