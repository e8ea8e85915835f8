"""Numbers of a step into whatever logs a training: by the method that it has, so that no such library is imported.

add_scalar(name, value, step)     TensorBoard's SummaryWriter
log_metrics(numbers, step=)       the loggers of Lightning, MLflow
log(numbers, step=)               others such; and Weights & Biases (define_metric): the module or a run
a path that ends in .csv          one row a step
a function (numbers, step)        anything else
"""

from __future__ import annotations

import csv
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

Log = Callable[[Mapping[str, float], int], Any]
PREFIX = "curvature/"
logger = logging.getLogger("lossmap")


def log_of(logger: Any) -> Log:
    """How numbers go into a logger. Raises TypeError for what is none, or takes other arguments."""
    if isinstance(logger, (str, os.PathLike)):
        return CsvLog(Path(logger))
    if hasattr(logger, "add_scalar"):
        _check_call(logger.add_scalar, "", 0.0, 0)
        return lambda numbers, step: [logger.add_scalar(PREFIX + name, n, step) for name, n in numbers.items()]
    if hasattr(logger, "define_metric") and hasattr(logger, "log"):
        return WandbLog(logger)
    for method in ("log_metrics", "log"):
        if hasattr(logger, method):
            _check_call(getattr(logger, method), {}, step=0)
            return _by(getattr(logger, method))
    if callable(logger):
        _check_call(logger, {}, 0)
        return logger  # type: ignore[no-any-return]
    raise TypeError(
        "a logger must have add_scalar, log_metrics or log, or be a function (numbers, step) or the path of a .csv "
        f"file; got {type(logger).__name__}"
    )


def _check_call(function: Callable[..., Any], *values: Any, **named: Any) -> None:
    """Raises TypeError where a function does not take these arguments: the first call comes when training has begun."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled code shows none
        return
    try:
        signature.bind(*values, **named)
    except TypeError as error:
        taken = "name, number, step" if len(values) == 3 else "numbers, step=step" if named else "numbers, step"
        name = getattr(function, "__qualname__", type(function).__name__)
        raise TypeError(f"the logger {name} is called as {name}({taken}), which it does not take: {error}") from None


def logs_of(loggers: Any) -> list[Log]:
    """How numbers go into one logger or several; into none for None or False."""
    if not loggers:
        return []
    is_several = isinstance(loggers, Iterable) and not isinstance(loggers, (str, os.PathLike))
    return [log_of(logger) for logger in (loggers if is_several else [loggers])]


def _by(method: Callable[..., Any]) -> Log:
    return lambda numbers, step: method({PREFIX + name: n for name, n in numbers.items()}, step=step)


class WandbLog:
    """Rows of Weights & Biases, whose charts are over the training's steps, `curvature/step`.

    It drops what is logged for a step before its own, which counts the calls of a training that logs by `log(numbers)`.
    Then the numbers go into the row that the training writes next.

    owner  the module wandb, or a run
    """

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.defined_in: Any = None  # the run whose charts are over these steps
        self.waiting: int | None = None  # the row that holds a reading and is not written yet

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the numbers of a step. Raises what W&B raises, as where no run has begun."""
        run = getattr(self.owner, "run", None) or self.owner
        if run is not self.defined_in:
            run.define_metric(f"{PREFIX}*", step_metric=f"{PREFIX}step")
            self.defined_in, self.waiting = run, None
        row = {PREFIX + name: n for name, n in numbers.items()} | {f"{PREFIX}step": step}
        current = getattr(run, "step", 0)
        if step >= current:
            run.log(row, step=step)
            return
        if self.waiting == current:  # the next reading would stand in the place of the last
            run.log({})
        run.log(row, commit=False)
        self.waiting = getattr(run, "step", 0)


class CsvLog:
    """A table with one row a step, flushed with each. Raises ValueError where the file does not end in .csv.

    path  of the file; where it is there already, `name-2.csv` is begun, as the log says

    It is written anew, and appears whole, where a reading has a number that those before it had not (a threshold, once
    the learning rate is no longer 0), after a row that could not be written, and where the file is gone. What another
    process has written there since is left alone: all rows go on in a file beside it, `name-2.csv`, as the log says.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix.lower() != ".csv":
            raise ValueError(f"the file of a logger must end in .csv; got {str(path)!r}")
        self.path = self.asked = path
        self.columns: list[str] = []
        self.rows: list[dict[str, float]] = []
        self.is_whole = False  # whether the file holds all rows before the next one
        self.state: tuple[int, int] | None = None  # of the file, as this log has left it

    def __call__(self, numbers: Mapping[str, float], step: int) -> None:
        """Add a row; a number that it has not is `nan`."""
        self.rows.append({"step": step} | {name: value for name, value in numbers.items() if name != "step"})
        added = [name for name in self.rows[-1] if name not in self.columns]
        self.columns += added
        now = _state_of(self.path)
        if now is not None and now != self.state:
            self._go_on_beside()
            now = None
        is_appended = self.is_whole and not added and now is not None
        self.is_whole = False
        try:
            if is_appended:
                with self.path.open("a", newline="") as file:
                    self._table(file).writerow(self.rows[-1])
            else:
                self._write_anew()
        finally:
            self.state = _state_of(self.path)
        self.is_whole = True

    def _go_on_beside(self) -> None:
        """Take a name that no file has, since this one is of an earlier training, or of another process."""
        other, why = self.path, "another process has written into %s" if self.state else "%s was there before"
        self.state = None
        numbered = (self.asked.with_name(f"{self.asked.stem}-{i}{self.asked.suffix}") for i in count(2))
        self.path = next(path for path in numbered if not path.exists())
        logger.warning(f"{why}: the readings of this training are in %s", other, self.path)

    def _write_anew(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with beside.open("w", newline="") as file:
                table = self._table(file)
                table.writeheader()
                table.writerows(self.rows)
            if _state_of(self.path) not in (None, self.state):  # while this was written
                self._go_on_beside()
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)

    def _table(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self.columns, restval="nan")


def _state_of(path: Path) -> tuple[int, int] | None:
    """Which file stands there, and how long it is; None for none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size
