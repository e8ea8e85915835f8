"""Files for ParaView: the surface as a structured grid (.vts) or as polygons (.vtp), every field on its points.

The height is `height_factor * (v - height_offset)`, where v is the field, or its decimal logarithm where
`height_is_log` is 1: these three stand in the file as field data, and scale the surface to half the width of the plane.
The numbers themselves stand beside it as point data, with the ratio of the eigenvalues where there are any. Points
without a finite height are hidden in a .vts and left out of a .vtp. A training path goes into a .vtp beside, on the
surface, with its own losses. With points between the measured ones (`interp`) `measured` is 1 at those that were
measured; readings follow the spline of `interpolation`, statuses are 0 and all else is NaN between them.

Format: VTK XML, inline base64 (docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html). NumPy alone.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from lossmap.io.printable import printable
from lossmap.io.read import Group, Surface, read
from lossmap.plotting.between_points import MEASURED, with_points_between
from lossmap.plotting.contour_levels import Scale, suits_log, usual_ends
from lossmap.plotting.interpolation import checked_interp, factor_of, refine, refine_ticks, value_at
from lossmap.plotting.maps import BEYOND, y_ticks
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.quantities import best_field, fields_of_points, is_line, quantity, values_of
from lossmap.plotting.style import appears_whole

TYPES = {"f8": "Float64", "i8": "Int64", "u1": "UInt8"}
HIDDEN = 2  # vtkDataSetAttributes::HIDDENPOINT
PATH_STEPS = 16  # of a path's line between two checkpoints
PATH_LIFT = 0.004  # of the plane's width, by which the path lies above the surface, so that it is not hidden in it


def vtk(
    what: Surface | str | os.PathLike[str],
    path: str | os.PathLike[str],
    field: str | None = None,
    *,
    log: bool | None = None,
    vmax: float | None = None,
    trajectory: Group | bool | None = None,
    interp: int | str | None = None,
) -> list[Path]:
    """Write the surface, and its training path where it has one; returns the files written.

    what   a surface, or the path of a result file
    path   the file to write, .vts or .vtp
    field  the height; train_loss if there is one
    log    logarithmic heights or not; by what the values span if left out
    vmax   heights above it are cut off there
    trajectory  the path to write beside, with arrays x and y; that of the surface if left out, False for none
    interp  points to an interval between the measured ones; the measured ones alone if left out

    Raises ValueError for another ending, or for a line, which has no surface; otherwise as `read`.
    """
    path = Path(path)
    if path.suffix not in (".vts", ".vtp"):
        raise ValueError(f"a file for ParaView ends in .vts or .vtp; got {str(path)!r}")
    surface = what
    if not isinstance(surface, Surface):
        surface = read(surface)
    surface = with_points_between(surface)
    name = field or best_field(surface)
    if is_line(surface):
        raise ValueError("a line has no surface for ParaView; draw it, or read the file itself")
    values, _ = values_of(surface, quantity(surface, name).name)
    scale = FigureOptions(log=log).scale(
        [values if vmax is None else np.minimum(values, vmax)], quantity(surface, name)
    )
    x, y = surface.grid.x, y_ticks(surface.grid)
    factor = factor_of(values.shape, checked_interp(interp) or 1)
    relief = _Relief.of(x, y, values, scale, vmax, factor)
    across, up = np.meshgrid(relief.x, relief.y)
    points = np.stack([across, up, relief.height], axis=-1).reshape(-1, 3)
    data = {n: a.reshape(len(points), -1) for n, a in _point_data(surface, factor).items()}
    write = _structured if path.suffix == ".vts" else _polygons
    text = write(relief.height.shape, points, data, name, relief.field_data)
    with appears_whole(path) as part:
        part.write_text(text)
    trail = FigureOptions(trajectory=trajectory).training_path(surface)
    if trail is None:
        return [path]
    beside = path.with_name(f"{path.stem}_trajectory.vtp")
    if factor == 1:  # the path goes over the smooth surface, whatever the surface's file holds
        relief = _Relief.of(x, y, values, scale, vmax, factor_of(values.shape, None))
    text = _trail(trail, relief)
    with appears_whole(beside) as part:
        part.write_text(text)
    return [path, beside]


@dataclass(frozen=True)
class _Relief:
    """The surface as it stands in space.

    x, y    ticks, (nx,) and (ny,); height: (ny, nx), NaN where there is none
    log     whether heights are of log10 of the field; factor, offset: see the module
    width   of the plane, in its own units
    """

    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    log: bool
    factor: float
    offset: float
    width: float

    @classmethod
    def of(
        cls, x: np.ndarray, y: np.ndarray, values: np.ndarray, scale: Scale, vmax: float | None, fine: int
    ) -> _Relief:
        """The relief of values, (ny, nx), cut at vmax, with `fine` steps to an interval.

        On a log scale what is not positive lies as low as the smallest positive value.
        """
        height = np.where(np.isfinite(values), values, np.nan)
        top = np.inf if vmax is None else vmax
        if scale.log:
            known = height[height > 0]
            height = np.log10(np.where(height <= 0, known.min(), height))
            top = np.log10(top) if top > 0 else np.inf
        lowest, highest = _ends(np.minimum(height, top))  # of what was measured, whatever lies between
        if fine > 1:
            measured, height = height, refine(x, y, _tamed(height), fine)
            height[::fine, ::fine] = measured
            x, y = refine_ticks(x, fine), refine_ticks(y, fine)
        height = np.minimum(height, top)
        width = max(float(np.ptp(x)), float(np.ptp(y)))
        factor = 0.5 * width / (highest - lowest) if highest > lowest else 1.0
        return cls(x, y, factor * (height - lowest), scale.log, factor, lowest, width)

    @property
    def field_data(self) -> dict[str, np.ndarray]:
        """How heights follow from the field, one number each."""
        return {
            "height_is_log": np.array([self.log], dtype="u1"),
            "height_factor": np.array([self.factor]),
            "height_offset": np.array([self.offset]),
        }


def _ends(values: np.ndarray) -> tuple[float, float]:
    """The smallest and the largest finite value; 0 and 0 where there is none."""
    known = values[np.isfinite(values)]
    return float(min(known, default=0.0)), float(max(known, default=0.0))


def _point_data(surface: Surface, factor: int) -> dict[str, np.ndarray]:
    """All fields, statuses and the ratio of the eigenvalues, with `factor` steps to an interval, (ny, nx, ...)."""
    fields = dict(surface.fields)
    if "max_eig" in surface and "min_eig" in surface:
        fields["ratio"] = values_of(surface, "ratio")[0]
    data = {f"{measure}_status": status for measure, status in surface.status.items()}
    if factor == 1:
        return fields | data
    x, y = surface.grid.x, y_ticks(surface.grid)
    measured = fields.pop(MEASURED, np.ones(surface.grid.shape)).astype("u1")  # of a refined surface not all were
    readings = {*fields_of_points(surface), "ratio"}
    return {
        **{name: _refined(x, y, a, factor, name in readings) for name, a in fields.items()},
        **{name: _between(status, factor, 0) for name, status in data.items()},
        MEASURED: _between(measured, factor, 0),
    }


def _refined(x: np.ndarray, y: np.ndarray, values: np.ndarray, factor: int, is_reading: bool) -> np.ndarray:
    """A field, (ny, nx, ...), between its points: the spline of a reading, of its logarithm if that suits; else NaN."""
    if not is_reading:
        return _between(values, factor, np.nan)
    layers = []
    for layer in np.moveaxis(values.reshape(*values.shape[:2], -1), -1, 0):
        if suits_log([layer]) and not (layer == 0).any():
            with np.errstate(invalid="ignore"):
                layers.append(10.0 ** refine(x, y, _tamed(np.log10(layer)), factor))
        else:
            layers.append(refine(x, y, _tamed(layer), factor))
        layers[-1][::factor, ::factor] = layer  # to the bit, infinite ones too
    return np.stack(layers, axis=-1)


def _tamed(heights: np.ndarray) -> np.ndarray:
    """Heights, (ny, nx), of which a few that lie far above or below all others are nearer: their spline would swing."""
    known = heights[np.isfinite(heights)]
    if known.size == 0:
        return heights
    low, high = usual_ends(known)
    margin = BEYOND * (high - low)
    return np.where(np.isfinite(heights), np.clip(heights, low - margin, high + margin), heights)


def _between(values: np.ndarray, factor: int, filling: float) -> np.ndarray:
    """Values, (ny, nx, ...), at the measured points among refined ones, and the filling at all others."""
    ny, nx = values.shape[:2]
    shape = (factor * (ny - 1) + 1, factor * (nx - 1) + 1, *values.shape[2:])
    spread = np.full(shape, filling, dtype=values.dtype)
    spread[::factor, ::factor] = values
    return spread


def _array(name: str, values: np.ndarray, components: int = 1, attributes: str = "") -> str:
    kind = {"f": "f8", "i": "i8", "u": "u1"}[values.dtype.kind]
    data = np.ascontiguousarray(values, dtype="<" + kind).tobytes()
    text = base64.b64encode(np.uint64(len(data)).tobytes() + data).decode()
    return (
        f'<DataArray type="{TYPES[kind]}" Name={quoteattr(printable(name))} '
        f'NumberOfComponents="{components}"{attributes} format="binary">'
        f"{text}</DataArray>\n"
    )


def _file(kind: str, inside: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" '
        f'header_type="UInt64">\n<{kind}{inside}</{kind}>\n</VTKFile>\n'
    )


def _fields(data: Mapping[str, np.ndarray], name: str) -> str:
    arrays = "".join(_array(n, a, a.shape[1]) for n, a in data.items())
    scalars = f" Scalars={quoteattr(printable(name))}" if name in data else ""
    return f"<PointData{scalars}>\n{arrays}</PointData>\n"


def _field_data(data: Mapping[str, np.ndarray]) -> str:
    """Arrays that belong to the whole file, (n,) each."""
    arrays = "".join(_array(n, a, attributes=f' NumberOfTuples="{a.size}"') for n, a in data.items())
    return f"<FieldData>\n{arrays}</FieldData>\n"


def _structured(
    shape: tuple[int, ...],
    points: np.ndarray,
    data: Mapping[str, np.ndarray],
    name: str,
    whole: Mapping[str, np.ndarray],
) -> str:
    hidden = ~np.isfinite(points[:, 2])
    ghosts = np.where(hidden, HIDDEN, 0).astype("u1").reshape(-1, 1)
    finite = points.copy()
    finite[hidden, 2] = 0.0
    extent = f"0 {shape[1] - 1} 0 {shape[0] - 1} 0 0"
    inside = (
        f' WholeExtent="{extent}">\n{_field_data(whole)}<Piece Extent="{extent}">\n'
        + _fields({**data, "vtkGhostType": ghosts}, name)
        + f"<Points>\n{_array('Points', finite, 3)}</Points>\n</Piece>\n"
    )
    return _file("StructuredGrid", inside)


def _polygons(
    shape: tuple[int, ...],
    points: np.ndarray,
    data: Mapping[str, np.ndarray],
    name: str,
    whole: Mapping[str, np.ndarray],
) -> str:
    known = np.isfinite(points[:, 2])
    number = np.cumsum(known) - 1
    index = np.arange(len(points)).reshape(shape)
    corners = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], axis=-1).reshape(-1, 4)
    quads = number[corners[known[corners].all(axis=1)]]
    data = {n: a[known] for n, a in data.items()}
    return _file("PolyData", _piece(points[known], {"Polys": quads}, _fields(data, name), whole))


def _trail(path: Group, relief: _Relief) -> str:
    """A training path over the relief, as far as that reaches: a line, and its checkpoints with what is known of them.

    Of each checkpoint its step and, where the path holds them, its own loss and its distance from the plane; NaN
    between them. The line has PATH_STEPS points between two checkpoints, so that it stays on the surface; outside of
    the plane and over its holes there is none, as in print.
    """
    checkpoints = np.asarray(path["x"]).size
    count = PATH_STEPS * (checkpoints - 1) + 1
    at = np.arange(0, count, PATH_STEPS)
    x, y = (np.interp(np.arange(count), at, np.asarray(path[name])) for name in ("x", "y"))
    height = value_at(relief.x, relief.y, relief.height, x, y)
    known = np.isfinite(height) & _within(relief.x, x) & _within(relief.y, y)
    points = np.stack([x, y, height + PATH_LIFT * relief.width], axis=-1)
    data = {"step": np.asarray(path.arrays.get("step", np.arange(checkpoints)), dtype=np.float64)}
    data |= {n: np.asarray(path[n], dtype=np.float64) for n in ("loss", "residual") if n in path}
    spread = {}
    for name, values in data.items():
        spread[name] = np.full((count, 1), np.nan)
        spread[name][at, 0] = values
    number = np.cumsum(known) - 1  # of the points that are written
    pairs = np.flatnonzero(known[:-1] & known[1:])
    cells = {"Verts": number[at[known[at]], None], "Lines": np.stack([number[pairs], number[pairs + 1]], axis=-1)}
    scalars = "loss" if "loss" in data else "step"
    spread = {name: values[known] for name, values in spread.items()}
    return _file("PolyData", _piece(points[known], cells, _fields(spread, scalars), relief.field_data))


def _within(ticks: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Which places lie between the ends of the ticks, but for rounding."""
    margin = 1e-9 * float(np.ptp(ticks))
    within: np.ndarray = (places >= ticks.min() - margin) & (places <= ticks.max() + margin)
    return within


def _piece(points: np.ndarray, cells: Mapping[str, np.ndarray], fields: str, whole: Mapping[str, np.ndarray]) -> str:
    """Points and cells by kind, (cells, corners) each."""
    numbers = dict.fromkeys(("Verts", "Lines", "Strips", "Polys"), 0) | {k: len(c) for k, c in cells.items()}
    counts = " ".join(f'NumberOf{what}="{number}"' for what, number in numbers.items())
    text = "".join(
        f"<{kind}>\n{_array('connectivity', c.reshape(-1))}"
        f"{_array('offsets', np.arange(1, len(c) + 1) * c.shape[1])}</{kind}>\n"
        for kind, c in cells.items()
    )
    return (
        f'>\n{_field_data(whole)}<Piece NumberOfPoints="{len(points)}" {counts}>\n{fields}'
        f"<Points>\n{_array('Points', points, 3)}</Points>\n{text}</Piece>\n"
    )
