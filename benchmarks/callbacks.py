"""What watching a training costs: seconds with and without a callback, and the readings that fitted.

    python benchmarks/callbacks.py [--quick] [--lightning]

ResNet-20 of width 8 and an MLP on the digits, SGD with momentum and Adam, batches of 64; 64 fixed samples are
measured, a reading every 10 steps is asked for, max_overhead 0.05. `overhead` is the time of readings, with what
prepares them, relative to the rest. Both trainings end with the same weights to the bit, which is checked.
`--lightning` trains by Lightning's Trainer instead of a plain loop.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

import lossmap
from lossmap.callbacks import CurvatureMonitor
from lossmap.data.datasets import load
from lossmap.zoo import build

CASES = {"mlp": (8000, 400), "resnet20-w8": (1500, 100)}  # steps, and those of --quick
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
}


def trained(name, optimizer, steps, **options):
    """Seconds of a training, its weights, and its monitor, where options say how to watch it."""
    torch.manual_seed(0)
    (x, y), model = load("digits", "train").tensors, build(name)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    monitor = None
    start = time.perf_counter()
    if options:
        problem = lossmap.Problem.supervised(model, "crossentropy", (x[:64], y[:64]))
        monitor = CurvatureMonitor(problem, optimizer, **options)
    for step in range(steps):
        rows = torch.arange(64 * step, 64 * step + 64) % len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        if monitor is not None:
            monitor.step()
    return time.perf_counter() - start, model.state_dict(), monitor


def trained_by_lightning(name, optimizer, steps, **options):
    """The same by Lightning's Trainer."""
    import lightning

    from lossmap.callbacks.with_lightning import LightningCurvature

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = build(name)

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return OPTIMIZERS[optimizer](self.parameters())

    torch.manual_seed(0)
    (x, y), model = load("digits", "train").tensors, Classifier()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 64)
    callbacks = []
    if options:
        problem = lossmap.Problem.supervised(model, "crossentropy", (x[:64], y[:64]))
        callbacks.append(LightningCurvature(problem, **options))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_steps=steps, accelerator="cpu", callbacks=callbacks, **quiet)
    start = time.perf_counter()
    trainer.fit(model, loader)
    seconds = time.perf_counter() - start
    return seconds, model.net.state_dict(), callbacks[0].monitor if callbacks else None


def main():
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true")
    flags.add_argument("--lightning", action="store_true", help="by Lightning's Trainer")
    given = flags.parse_args()
    train = trained_by_lightning if given.lightning else trained
    heads = (
        "net",
        "optimizer",
        "steps",
        "without",
        "with",
        "overhead",
        "readings",
        "a reading",
        "products",
        "same bits",
    )
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    for name, lengths in CASES.items():
        for optimizer in OPTIMIZERS:
            print(f"| {' | '.join(compared(train, name, optimizer, lengths[given.quick]))} |", flush=True)


def compared(train, name, optimizer, steps):
    """One training without and with the callback: the cells of a row."""
    without, plain, _ = train(name, optimizer, steps)
    seconds, weights, monitor = train(name, optimizer, steps, every=10)
    same = all(torch.equal(t, weights[key]) for key, t in plain.items())
    readings, each, products = "0", "-", "-"
    if monitor.history.steps:
        surface = monitor.surface
        readings = str(len(surface.grid.x))
        each, products = f"{surface['training_seconds'].mean():.2f} s", f"{surface['products'].mean():.0f}"
    overhead = f"{100 * monitor.overhead.ratio:.1f} %"
    row = (name, optimizer, str(steps), f"{without:.1f} s", f"{seconds:.1f} s", overhead, readings, each, products)
    return *row, "yes" if same else "NO"


if __name__ == "__main__":
    main()
