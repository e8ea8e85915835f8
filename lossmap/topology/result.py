"""What is known of the minima of a surface: a value with errors, and what a file keeps of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from lossmap.io.field_errors import NOISE
from lossmap.keywords import checked_init
from lossmap.report.stored import REPORT_VERSION, StoredReport
from lossmap.report.topology import topology_report
from lossmap.values import DrawnResult

CLEAR = 2.0  # standard errors beyond which a minimum counts as real


@checked_init
@dataclass(frozen=True, eq=False)
class Topology(DrawnResult):
    """The minima of a field over a grid, and how they merge: the result of `find_minima`. Print it for the report.

    Minima come in ascending order of their values; points are flat indices in C order, -1 where there is none. Of
    `minima` minima, those that errors or `least` explain are here too; `is_real` leaves them out.

    Attributes:
        field: the name, with `unit`.
        x: (nx,) ticks.
        y: (ny,) ticks; empty of a line.
        values: (nx,) or (ny, nx) of the field; NaN where a point is missing.
        basin: (nx,) or (ny, nx): the row of the minimum to which a point runs down, -1 where it is missing; minima
            that are not real are joined across their lowest passes.
        minimum: (minima,) the points.
        saddle: (minima,) where the sublevel set around it meets that of a lower minimum that is real; of one that is
            not real, where its basin is joined to that of one that is.
        into: (minima,) the row of that minimum, the lowest that is met there.
        exit: (minima,) the lowest pass out of its basin; of one that is not real, out of its own before it is joined.
        persistence: (minima,) saddle above minimum; infinite where it meets no lower one. A lower minimum that is not
            real, as a pass with a large error hides it, may be met before the saddle: then only up to there.
        depth: (minima,) lowest pass out of its basin above it; infinite where its basin has no neighbour.
        error: (minima,) of the persistence, or of the depth where that is infinite.
        error_kind: bound, standard error, exact, or rounding: then 8 spacings of numbers at both values, a lower bound
            of their rounding, which is larger where terms of the loss cancel.
        area: (minima,) of the basin, as share of the measured part of the window; 0 of a minimum that is not real.
        at_edge: (minima,) whether it lies on the edge of the window, or beside a missing point.
        sign: (minima,) of the network's smallest Hessian eigenvalue there: negative, undecided, positive; empty where
            the file has none.
        saddle_sign: (minima,) the same at the saddle.
        index: (minima,) at least so many negative Hessian eigenvalues; -1 where nothing is known.
        saddle_index: (minima,) the same at the saddle.
        diagonal: whether points that touch in a corner are neighbours.
        least: the persistence that was asked for.
        missing: number of points without a finite value.
        coarse: number of real minima on every second tick, from the first and from the second one on; empty where the
            grid is too small.
        label: what the report calls the surface.
        precision: in which the losses were computed, where the errors are of rounding; else empty.

    Example:
        >>> import numpy as np, lossmap
        >>> x = np.linspace(-2, 2, 41)
        >>> surface = lossmap.Surface(lossmap.Grid(x), {"train_loss": (x**2 - 1) ** 2 + 0.1 * x})
        >>> topology = lossmap.find_minima(surface)
        >>> topology.count, topology.x[topology.minimum].round(1).tolist()
        (2, [-1.0, 1.0])

    """

    field: str
    unit: str
    x: np.ndarray
    y: np.ndarray
    values: np.ndarray
    basin: np.ndarray
    minimum: np.ndarray
    saddle: np.ndarray
    into: np.ndarray
    exit: np.ndarray
    persistence: np.ndarray
    depth: np.ndarray
    error: np.ndarray
    error_kind: str
    area: np.ndarray
    at_edge: np.ndarray
    sign: tuple[str, ...] = ()
    saddle_sign: tuple[str, ...] = ()
    index: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    saddle_index: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, dtype=np.int64))
    diagonal: bool = True
    least: float = 0.0
    missing: int = 0
    coarse: tuple[int, ...] = ()
    label: str = ""
    precision: str = ""

    @property
    def is_real(self) -> np.ndarray:
        """(minima,) whether a minimum is deeper than errors explain, and than `least`; the lowest always counts."""
        return real_minima(self.persistence, self.error, self.error_kind, self.least)

    @property
    def count(self) -> int:
        """The number of real minima."""
        return int(self.is_real.sum())

    @property
    def real_at_edge(self) -> int:
        """The number of real minima on the edge of the window, or beside a missing point."""
        return int((self.is_real & self.at_edge).sum())

    def position(self, point: int) -> tuple[float, ...]:
        """The coordinates (x,) or (x, y) of a point."""
        if not self.y.size:
            return (float(self.x[point]),)
        row, column = divmod(int(point), self.x.size)
        return (float(self.x[column]), float(self.y[row]))

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a file keeps of it, and a figure draws: arrays and attributes by name."""
        report = _report_of(self)
        return dict(report.arrays), {**report.attributes, "report": repr(self)}

    def __repr__(self) -> str:
        return topology_report(_report_of(self))


def real_minima(persistence: np.ndarray, error: np.ndarray, kind: str, least: float) -> np.ndarray:
    """(minima,) whether a persistence is beyond its error and `least`, or never ends; an unknown error is none."""
    factor = CLEAR if kind == NOISE else 1.0
    real: np.ndarray = np.isinf(persistence) | (
        persistence > np.fmax(factor * np.nan_to_num(error, posinf=np.inf), least)
    )
    return real


def _report_of(t: Topology) -> StoredReport:
    """What the report is rendered from: arrays by the names of the attributes, texts as objects."""
    arrays: dict[str, np.ndarray] = {
        "x": t.x, "values": t.values, "basin": t.basin, "minimum": t.minimum, "saddle": t.saddle, "into": t.into,
        "exit": t.exit, "persistence": t.persistence, "depth": t.depth, "error": t.error, "area": t.area,
        "at_edge": t.at_edge.astype(np.uint8), "is_real": t.is_real.astype(np.uint8),
    }  # fmt: skip
    if t.y.size:
        arrays["y"] = t.y
    if t.sign:
        arrays |= {"sign": np.array(t.sign, dtype=object), "saddle_sign": np.array(t.saddle_sign, dtype=object)}
        arrays |= {"index": t.index, "saddle_index": t.saddle_index}
    attributes = {
        "field": t.field, "unit": t.unit, "error_kind": t.error_kind, "diagonal": int(t.diagonal), "least": t.least,
        "missing": t.missing, "coarse": ",".join(map(str, t.coarse)), "label": t.label, "minima": t.count,
        "precision": t.precision, "report_version": REPORT_VERSION,
    }  # fmt: skip
    return StoredReport(arrays, attributes)
