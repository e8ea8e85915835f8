"""Curvature while a network trains, for a loop of one's own: a reading every so many steps.

    monitor = CurvatureMonitor(problem, optimizer, every=100, path="training.h5")
    for x, y in loader:
        ...
        optimizer.step()
        monitor.step()
    monitor.close()

Training goes on to the same bits as without it. Symbols, units and the price of a reading: `measurement`; what of the
training's time it may take: `overhead`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch

from lossmap import accelerators
from lossmap.callbacks.history import History, known, now
from lossmap.callbacks.loggers import logs_of
from lossmap.callbacks.measurement import OTHER_PRODUCTS, Measurement, Reading
from lossmap.callbacks.overhead import Overhead
from lossmap.data.checkpoints import finite_or_named, sorted_as_people_count
from lossmap.data.problem import Problem
from lossmap.diagnostics.step_rule import RATE_IS_0, step_rule
from lossmap.geometry.parameter_vector import state_tensors
from lossmap.io.provenance import provenance
from lossmap.io.surface import Surface
from lossmap.keywords import checked_init
from lossmap.training.run_folder import save

logger = logging.getLogger("lossmap")


@checked_init
class CurvatureMonitor:
    """Curvature and the optimizer's stability every so many steps of a training; weights come out the same to the bit.

    Args:
        problem: the model that is trained, its loss, and a small fixed set of samples to measure: a
            `lossmap.Problem`. Of a loader its samples are read once, when the problem is made.
        optimizer: whose stability threshold is compared: SGD (momentum, Nesterov), Adam or AdamW of PyTorch.
        every: steps between two readings.
        path: a result file for the readings, which `lossmap draw` shows and `lossmap.read` reads; None: none.
        loggers: one or several: TensorBoard's SummaryWriter, Weights & Biases, a logger of Lightning, a function
            (numbers, step), the path of a .csv file.
        parameters: what the Hessian is of: `trainable`, `weights` (dimension > 1), `all`, or a regular expression.
        max_overhead: the share of the training's own time that readings may take; what does not fit is left out,
            which the log says once. What prepares them counts, and waits until it fits: a mistake in loss or model is
            then found while training goes on, which it does. None: no limit, and all is prepared before training.
        checkpoints: a folder for the weights at each reading, `step_000100.pt`, as `lossmap dynamics` takes it.
        tol: accuracy of the eigenvalues, relative to the largest absolute one.
        trace_products: products for the trace; 0: no trace.
        max_products: at most so many for one search of eigenvalues.
        backend: of products: `double-backward` (nothing to prepare), `auto`, `linearized` or `retained-graph`.
        seed: of random starts and probes.
        check: whether products are compared with differences of the gradient before training begins, as commands do;
            it takes a hundred gradients, and thousands where the loss has a kink at the start (ReLU), whatever
            `max_overhead` is. None: once that fits, and but for kinks, where the loss goes through a custom autograd
            Function, whose second derivative may be wrong in silence, or products are not made by double backward.
        overwrite: whether a file that is there is begun anew.
        clock: seconds; to be replaced in tests.

    Raises:
        FileExistsError: where the file is there already.
        ValueError: for a number out of range, a model that cannot be differentiated twice, weights in half precision or
            sharded over processes, and a loss that is no mean over samples.

    Example:
        >>> import torch, lossmap
        >>> from lossmap.callbacks import CurvatureMonitor
        >>> _ = torch.manual_seed(0)
        >>> x, y = torch.randn(64, 4), torch.randn(64, 1)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> problem = lossmap.Problem.supervised(model, "mse", (x, y))
        >>> with CurvatureMonitor(problem, optimizer, every=10, max_overhead=None) as monitor:
        ...     for _ in range(30):
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.mse_loss(model(x), y).backward()
        ...         optimizer.step()
        ...         reading = monitor.step()
        >>> monitor.surface.grid.x.tolist(), round(reading["stability_threshold"], 6)
        ([10.0, 20.0, 30.0], 20.0)

    """

    def __init__(
        self,
        problem: Problem,
        optimizer: Any = None,
        *,
        every: int = 100,
        path: str | Path | None = None,
        loggers: Any = (),
        parameters: str = "trainable",
        max_overhead: float | None = 0.05,
        checkpoints: str | Path | None = None,
        tol: float = 1e-2,
        trace_products: int = 12,
        max_products: int = 100,
        backend: str = "double-backward",
        seed: int = 0,
        check: bool | None = None,
        overwrite: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not every >= 1 or every % 1:
            raise ValueError(f"every must be a whole number >= 1; got {every}")
        if not 0.0 < tol < 1.0:
            raise ValueError(f"tol must be between 0 and 1; got {tol}")
        if max_products < 2:
            raise ValueError(f"max_products must be >= 2; got {max_products}")
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise TypeError(f"optimizer must be one of PyTorch's kind, with param_groups; got {optimizer!r:.60}")
        if trace_products != 0 and trace_products < 6:
            raise ValueError(f"trace_products must be 0 (no trace) or >= 6; got {trace_products}")
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.suffix.lower() == ".csv":
            raise ValueError(
                f"path is that of an HDF5 file, such as training.h5; a table is a logger: loggers={str(path)!r}"
            )
        if self.path is not None and self.path.exists() and not overwrite:
            raise FileExistsError(f"{self.path} exists; name another file, or say overwrite=True")
        _refuse_sharded(problem.model)
        self.optimizer, self.every = optimizer, every
        self.checkpoints = None if checkpoints is None else Path(checkpoints)
        self.logs = logs_of(loggers)
        self.steps = 0
        self._watched = 0  # steps of the training since the monitor was made
        self._last: int | None = None  # the last step that was due
        self._reported: set[str] = set()
        self._has_saved = False  # whether a checkpoint of this training was written
        self._refusal = ""  # why nothing can be measured, where that was found while training
        self._product_seconds: float | None = None  # of a reading, by its products; None before the first one
        self.overhead = Overhead(max_overhead, clock)
        with self.overhead.preparing():
            self.measurement = Measurement(
                problem, parameters, tol, trace_products, max_products, backend, seed, check, clock=clock
            )
            if max_overhead is None or check:
                self.measurement.prepare_all()  # raises what speaks against any measurement, before training begins
        self.overhead.estimate = self.measurement.usual_seconds
        settings = {
            "every": every,
            "parameters": parameters,
            "tol": tol,
            "trace_products": trace_products,
            "max_products": max_products,
            "seed": seed,
            "samples": problem.data.samples,
            "optimizer": step_rule(optimizer, {}).name if optimizer is not None else "none",
        }
        origin = {**provenance(accelerators.name_of(self._device), 1), "start": now()}
        self.history = History(self.measurement.fields, settings, attributes=origin)

    @property
    def surface(self) -> Surface:
        """The readings so far: `surface["max_eig"]` (step,), and so on; the steps are `surface.grid.x`."""
        return self.history.surface()

    def step(self, step: int | None = None) -> Reading | None:
        """Count a step of the optimizer, and measure where that is due and fits; call it after `optimizer.step()`.

        Args:
            step: the number of steps so far, where something else counts them; the same number twice counts once.

        Returns:
            The reading, numbers by name; None where nothing was measured.

        """
        before, self.steps = self.steps, self.steps + 1 if step is None else step
        is_first = not self._watched
        self._watched += 1 if is_first else max(0, self.steps - before)  # a resumed training begins beyond 0
        is_passed = not is_first and self.steps // self.every > before // self.every  # by steps of 2 for two optimizers
        if not (is_passed or self.steps % self.every == 0) or self.steps == self._last or self.steps <= 0:
            return None
        if self._last is not None and self.steps < self._last:
            self._report(f"step {self.steps} comes after step {self._last}: steps are counted over the whole training")
        self._last = self.steps
        self._wait()
        if self._refusal or not self._is_prepared() or not self.overhead.fits():
            return None
        return self._measure(self._products_that_fit())

    def measure(self) -> Reading:
        """Measure now, whatever the time it takes: the reading, which is logged and stored like any other.

        Raises:
            ValueError: before the first reading, for a model that cannot be differentiated twice, and a loss that is no
                mean over samples.

        """
        with self.overhead.preparing():
            self._refusal = ""
            self.measurement.prepare_all()
        return self._measure(None)

    def _is_prepared(self) -> bool:
        """Whether a reading can be taken, after those parts of its preparation that fit now."""
        while self.measurement.pending:
            step = self.overhead.training / max(1, self._watched)
            if not self.overhead.fits(self.measurement.preparation_seconds(step), self.measurement.is_timed):
                return False
            with self.overhead.preparing():
                try:
                    self.measurement.prepare_next()
                except Exception as error:  # the model's own code may raise any; training goes on all the same
                    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                    self._refusal = f"no curvature is measured of this training: {kind}{error}"
                    self._report(self._refusal)
                    return False
                self._wait()
            self.overhead.estimate = self.measurement.usual_seconds
        return True

    def _products_that_fit(self) -> int | None:
        """How many products fit into the time that is left, by the price of the last ones; None: any number."""
        if self.overhead.share is None:
            return None
        each = self._product_seconds or self.measurement.usual_seconds / self.measurement.usual_products
        return int(self.overhead.left / each) if each > 0 else None

    def _measure(self, products: int | None) -> Reading:
        with self.overhead.measuring():
            before = self.overhead.clock()
            reading, reason = self._reading(products)
            self._wait()
            self.history.fields = self.measurement.fields
            self._note_price(reading, self.overhead.clock() - before)
            self.history.add(self.steps, reading, self.overhead.clock() - before, reason)
            self._log(known(reading))
            try:
                self._write(reading["loss"])
            except OSError as error:  # a full disk ends no training
                self._report(f"step {self.steps}: the readings could not be written: {error}")
        return reading

    def close(self) -> None:
        """End the file, which says no more that the training goes on; report missing readings and too much time."""
        if self.path is not None and self.history.steps:
            try:
                self.history.write(self.path, is_last=True)
            except OSError as error:  # the trained network is still to be saved
                self._report(f"the readings could not be written: {error}")
        excess = self.overhead.excess()
        if not self.history.steps and self.overhead.skipped and not self._refusal:
            self._report(
                f"none of {self.overhead.skipped} readings of curvature fitted into max_overhead="
                f"{self.overhead.share:g} of the training time: measure fewer samples, or give a larger max_overhead"
                + (f" ({excess})" if excess else "")
            )
        elif excess is not None:
            self._report(excess)

    def __enter__(self) -> CurvatureMonitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"CurvatureMonitor(every {self.every} steps, {len(self.history.steps)} readings, "
            f"{100 * self.overhead.ratio:.2g} % of the training time)"
        )

    def _log(self, reading: Reading) -> None:
        """The reading into every logger; one that fails, as without a network, ends no training."""
        for log in self.logs:
            try:
                log(reading, self.steps)
            except Exception as error:  # a logger may raise any
                self._report(f"a logger of curvature fails: {type(error).__name__}: {error}")

    def _note_price(self, reading: Reading, seconds: float) -> None:
        """Keep what a product of this reading took, with its share of all else."""
        if reading.get("products", 0.0) > 0:
            self._product_seconds = seconds / (reading["products"] + OTHER_PRODUCTS)

    def _reading(self, products: int | None = None) -> tuple[Reading, str]:
        """The reading now, and why it has no curvature, where it has none: training goes on all the same."""
        try:
            reading = self.measurement(self.optimizer, products)
            if not isfinite(reading["loss"]):
                self._report("the loss over the fixed samples is no number: no curvature is read while it is none")
            return reading, ""
        except Exception as error:  # the model's own code may raise any; what is amiss from the start has raised before
            kind = (
                "" if isinstance(error, (FloatingPointError, torch.OutOfMemoryError)) else f"{type(error).__name__}: "
            )
            self._report(f"step {self.steps}: no curvature was measured: {kind}{error}")
            return dict.fromkeys((f.name for f in self.history.fields), nan), f"{type(error).__name__}: {error}"
        finally:
            self._report_rule()

    def _report_rule(self) -> None:
        """Say once what the last reading found of the optimizer."""
        reason, absent = self.measurement.rule_reason, self.measurement.without_gradient
        if reason and reason != RATE_IS_0:
            self._report(reason)
        if absent:
            self._report(
                f"the gradient of {', '.join(absent[:3])} has been no more than rounding (a bias before batch norm?): "
                "left out of the Hessian as the optimizer sees it"
            )

    def _write(self, loss: float) -> None:
        if self.path is not None:
            self.history.write(self.path)
        if self.checkpoints is not None:
            self._save_weights(self.checkpoints, loss)

    def _report_others(self, folder: Path) -> None:
        """Name the checkpoints of a folder that are of another training: `lossmap dynamics` would take them, too."""
        begun_at = 0 if self._watched >= self.steps else self.steps  # a resumed training goes on behind its own
        others = [p.name for p in sorted_as_people_count(folder.glob("step_*.pt")) if _step_of(p) > begun_at]
        if others:
            some = ", ".join(others if len(others) <= 3 else [others[0], "...", others[-1]])
            self._report(
                f"{folder} holds checkpoints of another training ({some}), which lossmap dynamics would take for "
                "those of this one: name another folder, or delete them"
            )

    def _save_weights(self, folder: Path, loss: float) -> None:
        if not self._has_saved:
            self._has_saved = True
            self._report_others(folder)
        state = {name: t.detach().clone() for name, t in state_tensors(self.measurement.problem.model).items()}
        try:
            finite_or_named(state, f"the model at step {self.steps}")
        except ValueError as error:  # a training that diverged goes on to show it
            self._report(f"no checkpoint was written: {error}")
            return
        save({"state_dict": state, "step": self.steps, "loss": loss}, folder / f"step_{self.steps:06d}.pt")

    def _wait(self) -> None:
        """Until the device has done what it was given, so that the clock counts it where it belongs."""
        accelerators.synchronize(self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.measurement.problem.model.parameters()).device

    def _report(self, sentence: str) -> None:
        """Log a sentence once."""
        if sentence not in self._reported:
            self._reported.add(sentence)
            logger.warning("%s", sentence)


def _step_of(path: Path) -> int:
    """The step of a checkpoint's name, `step_000100.pt`; 0 where it has another."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else 0


def _refuse_sharded(model: torch.nn.Module) -> None:
    """Raises ValueError where a process holds but a part of the parameters."""
    for name, p in model.named_parameters():
        if hasattr(p, "device_mesh") or hasattr(p, "ds_id") or type(p).__name__ == "FlatParameter":
            raise ValueError(
                f"the parameter {name!r} is sharded over processes (FSDP, DeepSpeed ZeRO-3, tensor parallel): "
                "curvature needs it whole; save checkpoints and measure them with lossmap dynamics"
            )


def moved(problem: Problem, device: torch.device) -> Problem:
    """The problem with its samples on a device, to which a trainer has moved the model."""
    return replace(problem, data=problem.data.to(device))


def refuse_foreign(problem: Problem, trained: Any) -> None:
    """Raises ValueError where no parameter of the problem's model is one of the model that is trained."""
    own = {id(p) for p in trained.parameters()}
    if not any(id(p) in own for p in problem.model.parameters()):
        raise ValueError(
            f"the problem's model ({type(problem.model).__name__}) is not the one that is trained "
            f"({type(trained).__name__}): make the problem of the same object, not of a copy"
        )
