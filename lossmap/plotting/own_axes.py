"""Axes of the caller's own, into which `draw(..., ax=)` draws: which of them fit, and how they are left.

Their figure keeps its size, and what they, or axes that share a range with them, showed before stays in sight.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import FontProperties

BAR, LINE = 0.85, 0.14  # inches, of a colour bar with its numbers and a label of one line, and of a line


def size_of(axes: Any) -> tuple[float, float]:
    """Width and height of axes as they stand, inches."""
    return float(axes.bbox.width / axes.figure.dpi), float(axes.bbox.height / axes.figure.dpi)


def size_beside_bar(axes: Any, ratio: float) -> tuple[float, float]:
    """Width and height that a map of this width over height has in axes as they stand, beside its bar, inches."""
    wide, tall = size_of(axes)
    wide = max(wide - BAR, 0.3 * wide)
    return wide, min(tall, wide / ratio)


def room_for_bar(panels: Any, lines: int) -> dict[str, Any]:
    """Keywords of a colour bar with a label of so many lines: where no layout makes room, it takes that of its axes."""
    if isinstance(panels, list) or is_laid_out(panels):
        return {}
    return {"fraction": min(0.6, (BAR - LINE + LINE * lines) / size_of(panels)[0])}


def type_of_ticks(axes: Any) -> float:
    """How large the numbers along an axes' lower side are, as a share of those in the style that is set."""
    labels = axes.xaxis.get_ticklabels()
    usual = FontProperties(size=rcParams["xtick.labelsize"]).get_size_in_points()
    return float(labels[0].get_size() / usual) if labels else 1.0


def is_laid_out(axes: Any) -> bool:
    """Whether the figure of the caller's axes makes room for what stands beside them."""
    return whole_figure(axes.figure).get_layout_engine() is not None


def whole_figure(figure: Any) -> Figure:
    """The figure that a part of one, or it itself, belongs to."""
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure  # type: ignore[no-any-return]


def check_axes(axes: Any, kind: str, is_plane: bool) -> None:
    """Raise ValueError unless the axes can show a figure of this kind; is_plane: and no line."""
    if not isinstance(axes, Axes):
        raise ValueError(f"ax must be one Axes of matplotlib, such as plt.subplots()[1]; got {type(axes).__name__}")
    is_relief = hasattr(axes, "get_zlim")
    if (kind == "3d") != is_relief or (not is_relief and axes.name != "rectilinear"):
        raise ValueError(
            'the kind 3d needs axes with projection="3d", and the others need rectilinear axes; '
            f"got axes with projection={axes.name!r} for the kind {kind}"
        )
    straight = [("x", axes.get_xscale()), ("y", axes.get_yscale() if is_plane else "linear")]
    for name, scale in straight:
        if scale != "linear":
            raise ValueError(f"ax must have a linear axis {name}, or what lies below 0 is cut off; got {scale}")
    if is_plane and not is_relief and _is_twin(axes):
        raise ValueError(
            "ax of a plane must not be one of twins, as its panel gets the shape of the plane: give others"
        )


def _is_twin(axes: Axes) -> bool:
    """Whether other axes lie over these and share a range with them."""
    near = {*axes.get_shared_x_axes().get_siblings(axes), *axes.get_shared_y_axes().get_siblings(axes)} - {axes}
    return any(other.figure is axes.figure and other.bbox.bounds == axes.bbox.bounds for other in near)


@contextlib.contextmanager
def kept_in_sight(axes: Any) -> Iterator[None]:
    """Inside, limits may be set at will; at the end they reach over what was shown before too. None: nothing to do."""
    before: dict[str, tuple[float, ...]] = {}
    for name in "xy" if axes is not None and not hasattr(axes, "get_zlim") else "":
        siblings = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
        if any(other.has_data() for other in siblings):
            before[name] = getattr(axes, f"get_{name}lim")()
    yield
    for name, ends in before.items():
        now = getattr(axes, f"get_{name}lim")()
        if getattr(axes, f"get_{name}scale")() == "log":  # which has no place for what is not positive
            ends = tuple(end for end in ends if end > 0)
        getattr(axes, f"set_{name}lim")(min(*ends, *now), max(*ends, *now))
