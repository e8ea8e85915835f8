"""Rows of Weights & Biases: none of a reading or of the training is dropped or overwritten."""

import pytest

from lossmap.callbacks.loggers import log_of


class RunOfWandb:
    """A run of Weights & Biases: what it keeps, drops and overwrites."""

    def __init__(self):
        self.step, self.row, self.rows, self.axes = 0, {}, [], {}

    def define_metric(self, name, step_metric):
        self.axes[name] = step_metric

    def log(self, numbers, step=None, commit=None):
        if step is not None and step < self.step:
            return  # with a warning
        if step is not None and step > self.step:
            self.write(step)
        self.row.update(numbers)
        if commit or (commit is None and step is None):
            self.write(self.step + 1)

    def write(self, step):
        self.rows += [self.row] if self.row else []
        self.row, self.step = {}, step


@pytest.mark.parametrize("logs_each_step", [0, 1, 2, 3])
@pytest.mark.parametrize("names_steps", [False, True])
def test_wandb_keeps_every_reading_and_every_number_of_the_training(logs_each_step, names_steps):
    run = RunOfWandb()
    log = log_of(run)
    for step in range(1, 11):
        for i in range(logs_each_step):
            run.log({f"own{i}": step}, **({"step": step} if names_steps else {}))
        if step % 2 == 0:
            log({"max_eig": 10.0 * step}, step)
    run.write(run.step)
    readings = [(row["curvature/step"], row["curvature/max_eig"]) for row in run.rows if "curvature/max_eig" in row]
    assert readings == [(step, 10.0 * step) for step in range(2, 11, 2)]
    assert run.axes == {"curvature/*": "curvature/step"}
    for i in range(logs_each_step):
        assert [row[f"own{i}"] for row in run.rows if f"own{i}" in row] == list(range(1, 11))


def test_wandb_keeps_every_reading_of_a_training_that_counts_other_steps():
    run = RunOfWandb()
    log = log_of(run)
    for step in range(1, 11):
        if step % 5 == 1:
            run.log({"own": step}, step=64 * step)  # samples
        log({"max_eig": 10.0 * step}, step)
    run.write(run.step)
    assert [row["curvature/step"] for row in run.rows if "curvature/step" in row] == list(range(1, 11))
    assert [row["own"] for row in run.rows if "own" in row] == [1, 6]
