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
from matplotlib.transforms import Bbox, ScaledTranslation, blended_transform_factory

LEAST_PANEL = 0.25  # of the height of axes as they were, that a picture keeps above its legend
TICK_GAPS = 14.0  # points, of ticks and what is left free around their numbers and the label below them
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
    return bool(_twins(axes))


def _twins(axes: Axes) -> list[Axes]:
    near = {*axes.get_shared_x_axes().get_siblings(axes), *axes.get_shared_y_axes().get_siblings(axes)} - {axes}
    return [other for other in near if other.figure is axes.figure and other.bbox.bounds == axes.bbox.bounds]


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


@contextlib.contextmanager
def kept_in_room(axes: Any) -> Iterator[None]:
    """Inside, labels may be set at will; at the end they stand within the room of the axes as they were before.

    Only where no layout makes room. At the right that is where the axes ended, at the left and below as far as nothing
    else stands and the figure reaches. The legend of a plane stands below it where enough of the plane is left.
    """
    if axes is None or is_laid_out(axes) or hasattr(axes, "get_zlim"):
        yield
        return
    room, had_twin, before = axes.get_position(original=True).frozen(), _is_twin(axes), set(axes.figure.axes)
    yield
    own = [other for other in axes.figure.axes if other is axes or other not in before]
    limits, legend = _free_room(axes, room, own), axes.get_legend()
    if legend is not None and axes.get_aspect() != "auto":
        _put_below(axes, legend, room)
        if _bottom_within(axes, limits) > room.y1 - LEAST_PANEL * room.height:
            legend.set_bbox_to_anchor(None)
            legend.set_loc("best")
    for _ in range(2):  # the numbers at the ticks of smaller axes may be others
        _shrink(axes, limits, had_twin or axes.get_aspect() != "auto")
    if legend is not None and axes.get_aspect() != "auto":
        _shorten_bars(axes, own)


def _shrink(axes: Any, limits: Bbox, keeps_right: bool) -> None:
    """Make axes smaller by as much as what stands around them reaches beyond limits in pixels."""
    needed = Bbox.union([other.get_tightbbox() for other in (axes, *_twins(axes))])
    left, right = max(0.0, limits.x0 - needed.x0), max(0.0, needed.x1 - limits.x1)
    if keeps_right:
        right = 0.0
    place, wide = axes.get_position(original=True), axes.figure.bbox.width
    bottom = max(place.y0, _bottom_within(axes, limits))
    ends = (place.x0 + left / wide, place.x1 - right / wide)
    if (left or right or bottom > place.y0) and bottom < place.y1 and ends[0] < ends[1]:
        axes.set_position(Bbox.from_extents(ends[0], bottom, ends[1], place.y1))
        axes.set_in_layout(True)  # so that a layout that is asked for later counts them


def _shorten_bars(axes: Any, own: list[Any]) -> None:
    """Make colour bars as high as the plane beside them, so that they leave the legend alone."""
    axes.apply_aspect()
    panel = axes.get_position()
    for bar in own:
        if bar is not axes and bar not in _twins(axes):
            place = bar.get_position(original=True)
            bar.set_position(Bbox.from_extents(place.x0, panel.y0, place.x1, panel.y1))
            bar.set_in_layout(True)


def _bottom_within(axes: Any, limits: Bbox) -> float:
    """Where axes must begin so that what stands below them is within limits in pixels; a share of the figure."""
    axes.apply_aspect()
    panel, all_of_it = axes.get_window_extent(), axes.get_tightbbox()
    if all_of_it.y0 >= limits.y0:
        return 0.0
    return float((limits.y0 + panel.y0 - all_of_it.y0 - axes.figure.bbox.y0) / axes.figure.bbox.height)


def below_label(axes: Any) -> Any:
    """The transform from a height of axes to what stands so much below, under the label of x."""
    words = [axes.xaxis.label, *axes.get_xticklabels()[:1]]
    lines = axes.get_xlabel().count("\n")
    down = sum(1.3 * text.get_size() for text in words) + lines * 1.2 * words[0].get_size() + TICK_GAPS
    return axes.transAxes + ScaledTranslation(0.0, -down / 72, axes.figure.dpi_scale_trans)


def _put_below(axes: Any, legend: Any, room: Bbox) -> None:
    """Put a legend below the label of a plane, in the middle of its room."""
    axes.set_anchor("N")
    axes.apply_aspect()
    across = blended_transform_factory(axes.figure.transSubfigure, below_label(axes))
    legend.set_loc("upper center")
    legend.set_bbox_to_anchor((0.5 * (room.x0 + room.x1), 0.0), across)


def _free_room(axes: Any, room: Bbox, own: list[Any]) -> Bbox:
    """How far a picture may reach, pixels: right as far as its room, else to what stands beside it or to the edge."""
    whole = whole_figure(axes.figure)
    here = room.transformed(axes.figure.transSubfigure)
    left, bottom = whole.bbox.x0, whole.bbox.y0
    for other in whole.axes:
        if other in own or (box := other.get_tightbbox()) is None:
            continue
        frame = other.get_window_extent()
        if frame.x1 <= here.x0 + 1 and box.y0 < here.y1 and box.y1 > here.y0:
            left = max(left, box.x1)
        if frame.y1 <= here.y0 + 1 and box.x0 < here.x1 and box.x1 > here.x0:
            bottom = max(bottom, box.y1)
    return Bbox.from_extents(min(left, here.x0), min(bottom, here.y0), here.x1, here.y1)
