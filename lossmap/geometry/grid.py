"""The grid: the ticks of the axes, and the points that they span. Needs NumPy alone.

A grid has k = 1 or 2 axes, x first. Arrays over it are stored (x,) or (y, x): row r, column c belongs to
the y tick r and the x tick c. The flat index of a point counts in C order through that shape: in 2-D
index = r * len(x) + c. A field is what a measure reads at each point: a name with a unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lossmap.keywords import checked_init, checked_keywords

MAX_TICKS = 1 << 24  # of an axis
MAX_POINTS = 1 << 31  # of a grid: one field alone would take 16 GB

ENDS_AT = "ends_at"  # in the recipe of an axis that leads to a model: what of that model stands at 1
MODEL, WEIGHTS, PART = "model", "weights", "part"  # all of it; its parameters, without its buffers; not even those
BUT_STATISTICS = "all but running statistics"  # of batch or instance norm, all of it

Point = tuple[float, ...]  # (k,): the coordinates along x, and in 2-D y


@dataclass(frozen=True)
class Field:
    """A quantity read at each point.

    name       as in the file, such as train_loss
    unit       such as nats, percent, 1 (the `units` of the file)
    long_name  one phrase for axes and colour bars
    extra      a further dimension (name, length) behind y, x; none for most fields
    """

    name: str
    unit: str
    long_name: str
    extra: tuple[str, int] | None = None

    @property
    def size(self) -> int:
        """Numbers per point."""
        return 1 if self.extra is None else self.extra[1]


def shown_unit(unit: str) -> str:
    """A unit as people read it: nothing of a number without unit (1), and of "1 per squared unit of theta" no 1."""
    return f"{unit} ".removeprefix("1 ").rstrip()


def curvature_unit(unit: str, matrix: str = "hessian") -> str:
    """The unit of a matrix of a loss of this unit, as people read it: second derivatives, or squared first ones."""
    squared = "squared " if matrix == "fisher" and unit not in ("", "1") else ""
    of = "P^1/2 theta" if matrix == "preconditioned" else "theta"
    return shown_unit(f"{squared}{unit or 1} per squared unit of {of}")


@checked_init
@dataclass(frozen=True, eq=False)
class Grid:
    """The points of a survey: ticks along x, and in 2-D along y, ascending or descending, evenly spaced or not.

    Args:
        x: (nx,) ticks, in lengths of the plane's x axis.
        y: (ny,) ticks along y; None on a line.

    Raises:
        ValueError: where the ticks are no row of finite numbers, and for more than 2,147,483,648 points.

    Example:
        >>> import numpy as np, lossmap
        >>> lossmap.Grid(np.array([0.0, 0.5, 1.0]))
        Grid(x=0:1:3)
        >>> lossmap.Grid.square(-1, 1, 25).shape
        (25, 25)

    """

    x: np.ndarray  # (nx,) float64
    y: np.ndarray | None = None  # (ny,) float64; None in 1-D

    def __post_init__(self) -> None:
        for name in ("x", "y"):
            ticks = getattr(self, name)
            if ticks is None:
                continue
            ticks = np.asarray(ticks, dtype=np.float64)
            if ticks.ndim != 1 or ticks.size == 0 or not np.isfinite(ticks).all():
                raise ValueError(f"the {name} axis must be a row of finite numbers, at least one; got {ticks!r}")
            object.__setattr__(self, name, ticks)
        if len(self) > MAX_POINTS:
            raise ValueError(f"a grid must have <= {MAX_POINTS:,} points; got {len(self):,}")

    @classmethod
    @checked_keywords
    def parse(cls, x: str, y: str | None = None) -> Grid:
        """A grid from `low:high:count` texts, as on the command line.

        Raises ValueError with what came, what is needed and an example.
        """
        if y is None:
            return cls(_ticks("x", x))
        return cls(_ticks("x", x), _ticks("y", y))

    @classmethod
    @checked_keywords
    def square(cls, low: float = -1.0, high: float = 1.0, count: int = 25) -> Grid:
        """The same evenly spaced ticks along x and y."""
        ticks = np.linspace(low, high, count)
        return cls(ticks, ticks.copy())

    @classmethod
    @checked_keywords
    def line(cls, low: float = -1.0, high: float = 1.0, count: int = 51) -> Grid:
        """Evenly spaced ticks along one axis."""
        return cls(np.linspace(low, high, count))

    @property
    def axes(self) -> int:
        """The number of axes k, 1 or 2."""
        return 1 if self.y is None else 2

    @property
    def shape(self) -> tuple[int, ...]:
        """(x,) or (y, x): the shape of every field."""
        if self.y is None:
            return (self.x.size,)
        return (self.y.size, self.x.size)

    @property
    def farthest(self) -> Point:
        """The corner with the largest coordinates by absolute value."""
        axes = [self.x] if self.y is None else [self.x, self.y]
        return tuple(float(axis[np.abs(axis).argmax()]) for axis in axes)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def point(self, index: int) -> Point:
        """The coordinates (x,) or (x, y) of the point with this flat index."""
        if not 0 <= index < len(self):
            raise IndexError(f"the index must be >= 0 and < {len(self)}, the number of points; got {index}")
        if self.y is None:
            return (float(self.x[index]),)
        r, c = divmod(index, self.x.size)
        return (float(self.x[c]), float(self.y[r]))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid) or self.axes != other.axes:
            return False
        return np.array_equal(self.x, other.x) and (
            self.y is None or (other.y is not None and np.array_equal(self.y, other.y))
        )

    def __repr__(self) -> str:
        def span(ticks: np.ndarray) -> str:
            return f"{ticks[0]:g}:{ticks[-1]:g}:{ticks.size}"

        if self.y is None:
            return f"Grid(x={span(self.x)})"
        return f"Grid(x={span(self.x)}, y={span(self.y)})"


def halving_steps(shape: tuple[int, ...]) -> np.ndarray:
    """When a point comes where a grid is taken coarse to fine, (y, x) or (x,) int64: from 0, the corners, upwards.

    Each step halves the spacing along one axis, of a plane x and y in turn: the points up to any step are a grid by
    themselves, with the same ends.
    """
    steps = [np.asarray(_halvings(n), dtype=np.int64) * len(shape) for n in shape]
    if len(shape) == 1:
        return steps[0]
    # y comes after x: of level k along x step 2k - 1, along y 2k
    along_y, along_x = steps[0], np.maximum(steps[1] - 1, 0)
    latest: np.ndarray = np.maximum(along_y[:, None], along_x[None, :])
    return latest


def _halvings(count: int) -> list[int]:
    """For each of so many ticks, after how many halvings it is met; 0 at both ends."""
    levels = [0] * count
    pending = [(0, count - 1, 1)]
    while pending:
        low, high, level = pending.pop()
        if high - low < 2:
            continue
        middle = (low + high) // 2
        levels[middle] = level
        pending += [(low, middle, level + 1), (middle, high, level + 1)]
    return levels


def window_around(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis that holds these coordinates, (points,), and a tenth of their extent beyond on both sides."""
    low, high = float(values.min()), float(values.max())
    margin = 0.1 * (high - low or 1.0)
    return low - margin, high + margin


def _ticks(axis: str, text: str) -> np.ndarray:
    needed = f"--{axis} must be low:high:count, such as --{axis}=-1:1:51"
    parts = text.split(":")
    if len(parts) != 3:
        raise ValueError(f"{needed}; got {text!r}")
    try:
        low, high, count = float(parts[0]), float(parts[1]), int(parts[2])
    except ValueError:
        raise ValueError(f"{needed}; got {text!r}") from None
    if count < 1:
        raise ValueError(f"{needed}, with a count of 1 or more; got {text!r}")
    if count > MAX_TICKS:
        raise ValueError(f"{needed}, with a count of {MAX_TICKS:,} at most; got {text!r}")
    if not np.isfinite([low, high]).all():
        raise ValueError(f"{needed}, with finite ends; got {text!r}")
    if count > 1 and low == high:
        raise ValueError(f"{needed}: {count} points need two different ends; got {text!r}")
    return np.linspace(low, high, count)
