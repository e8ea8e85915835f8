"""Curvature while the Trainer of Hugging Face trains: `Trainer(..., callbacks=[HuggingFaceCurvature(problem)])`.

Steps are those of the optimizer (`state.global_step`). Where several processes train, the first measures. Readings go
into the Trainer's log history too. Importing this module imports transformers.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from lossmap.callbacks.history import known
from lossmap.callbacks.loggers import PREFIX
from lossmap.callbacks.monitor import CurvatureMonitor, moved, refuse_foreign
from lossmap.data.problem import Problem


def _callback_class() -> Any:
    """The base class of the Trainer's callbacks."""
    try:
        return import_module("transformers").TrainerCallback
    except ImportError as error:
        raise ImportError("HuggingFaceCurvature needs transformers: pip install 'lossmap[huggingface]'") from error


TrainerCallback: Any = _callback_class()


class HuggingFaceCurvature(TrainerCallback):  # type: ignore[misc]
    """The curvature of a network that the Trainer trains, every so many steps; weights come out the same to the bit.

    Args:
        problem: the model that is trained, its loss, and a small fixed set of samples: a `lossmap.Problem`, such as
            `lossmap.huggingface(model, batches)`.
        every: steps of the optimizer between two readings.
        path: a result file for the readings; see `CurvatureMonitor`.
        loggers: as of `CurvatureMonitor`. The Trainer's own `log_history` holds the readings anyway.
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
        ImportError: when asked for without transformers.
        ValueError: when training begins, as `CurvatureMonitor` does, and where the problem's model is not trained.

    """

    def __init__(
        self,
        problem: Problem,
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

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare the measurement, where this process is the first."""
        if not state.is_world_process_zero:
            return
        model = kwargs["model"]
        refuse_foreign(self.problem, model)
        device = next(self.problem.model.parameters()).device
        self.monitor = CurvatureMonitor(
            moved(self.problem, device), kwargs.get("optimizer"), loggers=self.loggers, **self.options
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where that is due, and add the reading to the Trainer's history."""
        if self.monitor is None:
            return
        reading = self.monitor.step(int(state.global_step))
        if reading is not None:
            numbers = {PREFIX + name: value for name, value in known(reading).items()}
            state.log_history.append({**numbers, "epoch": state.epoch, "step": state.global_step})

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the monitor."""
        if self.monitor is not None:
            self.monitor.close()
