"""Curvature while Lightning trains: `Trainer(callbacks=[LightningCurvature(problem, every=100)])`.

Steps are those of the optimizer (`trainer.global_step`). Where several processes train, the first measures and the
others wait at their next common gradient. Importing this module imports Lightning.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from lossmap.callbacks.monitor import CurvatureMonitor, moved, refuse_foreign
from lossmap.data.problem import Problem


def _callback_class() -> Any:
    """Lightning's base class of callbacks, of the package under either of its names."""
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            return import_module(package).Callback
        except ImportError:
            continue
    raise ImportError("LightningCurvature needs Lightning: pip install lightning")


Callback: Any = _callback_class()


class LightningCurvature(Callback):  # type: ignore[misc]
    """The curvature of a network that Lightning trains, every so many steps; weights come out the same to the bit.

    Args:
        problem: the LightningModule that is trained (its `forward`), or a network inside it, with its loss and a small
            fixed set of samples: a `lossmap.Problem`.
        every: steps of the optimizer between two readings.
        path: a result file for the readings; see `CurvatureMonitor`.
        loggers: as of `CurvatureMonitor`; by default those of the Trainer. An empty tuple for none.
        parameters: what the Hessian is of; see `CurvatureMonitor`.
        max_overhead: the share of the training's own time that readings may take; None: no limit.
        checkpoints: a folder for the weights at each reading.
        tol: accuracy of the eigenvalues, relative to the largest absolute one.
        trace_products: products for the trace; 0: no trace.
        max_products: at most so many for one search of eigenvalues.
        backend: of products.
        seed: of random starts and probes.
        check: whether products are compared with differences of the gradient before training begins; None: where the
            loss goes through a custom autograd Function.
        overwrite: whether a file that is there is begun anew.

    Attributes:
        monitor: the `CurvatureMonitor`, once training has begun.

    Raises:
        ImportError: when asked for without Lightning.
        ValueError: when training begins, as `CurvatureMonitor` does, and where the problem's model is not trained.

    """

    def __init__(
        self,
        problem: Problem,
        *,
        every: int = 100,
        path: str | Path | None = None,
        loggers: Any = None,
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
    ) -> None:
        super().__init__()
        self.problem, self.loggers = problem, loggers
        self.options: dict[str, Any] = {
            "every": every,
            "path": path,
            "parameters": parameters,
            "max_overhead": max_overhead,
            "checkpoints": checkpoints,
            "tol": tol,
            "trace_products": trace_products,
            "max_products": max_products,
            "backend": backend,
            "seed": seed,
            "check": check,
            "overwrite": overwrite,
        }
        self.monitor: CurvatureMonitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Prepare the measurement, where this process is the first."""
        if not trainer.is_global_zero:
            return
        refuse_foreign(self.problem, pl_module)
        optimizers = trainer.optimizers
        loggers = trainer.loggers if self.loggers is None else self.loggers
        self.monitor = CurvatureMonitor(
            moved(self.problem, pl_module.device),
            optimizers[0] if len(optimizers) == 1 else None,
            loggers=loggers,
            **self.options,
        )

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure where that is due."""
        if self.monitor is not None:
            self.monitor.step(int(trainer.global_step))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the monitor of a training that was interrupted: its file no longer says that it goes on."""
        self.on_train_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Close the monitor."""
        if self.monitor is not None:
            self.monitor.close()
