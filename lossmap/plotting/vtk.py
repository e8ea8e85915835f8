"""Files for ParaView: the surface as a structured grid (.vts) or as polygons (.vtp), every field on its points.

The height is the field, or its decimal logarithm where its levels are geometric, scaled to half the width of the
plane; the numbers themselves stand beside it as point data. Points without a finite height are hidden in a .vts and
left out of a .vtp. A training path goes into a .vtp beside. Format: VTK XML, inline base64
(docs.vtk.org/en/latest/vtk_file_formats/vtkxml_file_format.html). NumPy alone.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lossmap.io.read import Group, Surface, read
from lossmap.plotting.contour_levels import Scale
from lossmap.plotting.maps import y_ticks
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.quantities import best_field, is_line, quantity, values_of
from lossmap.plotting.style import appears_whole

TYPES = {"f8": "Float64", "i8": "Int64", "u1": "UInt8"}
HIDDEN = 2  # vtkDataSetAttributes::HIDDENPOINT


def vtk(
    what: Surface | str | os.PathLike[str],
    path: str | os.PathLike[str],
    field: str | None = None,
    *,
    log: bool | None = None,
    vmax: float | None = None,
    trajectory: Group | bool | None = None,
) -> list[Path]:
    """Write the surface, and its training path where it has one; returns the files written.

    what   a surface, or the path of a result file
    path   the file to write, .vts or .vtp
    field  the height; train_loss if there is one
    log    logarithmic heights or not; by what the values span if left out
    vmax   heights above it are cut off there
    trajectory  the path to write beside, with arrays x and y; that of the surface if left out, False for none

    Raises ValueError for another ending, or for a line, which has no surface; otherwise as `read`.
    """
    path = Path(path)
    if path.suffix not in (".vts", ".vtp"):
        raise ValueError(f"a file for ParaView ends in .vts or .vtp; got {str(path)!r}")
    surface = what
    if not isinstance(surface, Surface):
        surface = read(surface)
    if is_line(surface):
        raise ValueError("a line has no surface for ParaView; draw it, or read the file itself")
    name = field or best_field(surface)
    values, _ = values_of(surface, quantity(surface, name).name)
    if vmax is not None:
        values = np.minimum(values, vmax)
    across, up = np.meshgrid(surface.grid.x, y_ticks(surface.grid))
    width = max(float(np.ptp(across)), float(np.ptp(up)))
    scale = FigureOptions(log=log).scale([values], quantity(surface, name))
    height = _heights(values, scale, 0.5 * width)
    points = np.stack([across, up, height], axis=-1).reshape(-1, 3)
    data = {n: a.reshape(len(points), -1) for n, a in surface.fields.items()}
    data |= {f"{m}_status": s.reshape(-1, 1) for m, s in surface.status.items()}
    write = _structured if path.suffix == ".vts" else _polygons
    text = write(values.shape, points, data, name)
    with appears_whole(path) as part:
        part.write_text(text)
    trail = FigureOptions(trajectory=trajectory).training_path(surface)
    if trail is None:
        return [path]
    beside = path.with_name(f"{path.stem}_trajectory.vtp")
    with appears_whole(beside) as part:
        part.write_text(_trail(np.asarray(trail["x"]), np.asarray(trail["y"]), 0.51 * width))
    return [path, beside]


def _heights(values: np.ndarray, scale: Scale, top: float) -> np.ndarray:
    """The values, or their decimal logarithms, from 0 to `top`; NaN where a height is not finite.

    On a log scale what is not positive lies as low as the smallest positive value.
    """
    height = values.copy()
    if scale.log:
        known = values[np.isfinite(values) & (values > 0)]
        height = np.log10(np.where(values <= 0, known.min(), values))
    height[~np.isfinite(height)] = np.nan
    known = height[np.isfinite(height)]
    lowest, highest = float(min(known, default=0.0)), float(max(known, default=0.0))
    height -= lowest
    if highest > lowest:
        height *= top / (highest - lowest)
    return height


def _array(name: str, values: np.ndarray, components: int = 1) -> str:
    kind = {"f": "f8", "i": "i8", "u": "u1"}[values.dtype.kind]
    data = np.ascontiguousarray(values, dtype="<" + kind).tobytes()
    text = base64.b64encode(np.uint64(len(data)).tobytes() + data).decode()
    return (
        f'<DataArray type="{TYPES[kind]}" Name="{name}" NumberOfComponents="{components}" format="binary">'
        f"{text}</DataArray>\n"
    )


def _file(kind: str, inside: str) -> str:
    return (
        f'<?xml version="1.0"?>\n<VTKFile type="{kind}" version="1.0" byte_order="LittleEndian" '
        f'header_type="UInt64">\n<{kind}{inside}</{kind}>\n</VTKFile>\n'
    )


def _fields(data: Mapping[str, np.ndarray], name: str) -> str:
    arrays = "".join(_array(n, a, a.shape[1]) for n, a in data.items())
    scalars = f' Scalars="{name}"' if name in data else ""
    return f"<PointData{scalars}>\n{arrays}</PointData>\n"


def _structured(shape: tuple[int, ...], points: np.ndarray, data: Mapping[str, np.ndarray], name: str) -> str:
    hidden = ~np.isfinite(points[:, 2])
    ghosts = np.where(hidden, HIDDEN, 0).astype("u1").reshape(-1, 1)
    finite = points.copy()
    finite[hidden, 2] = 0.0
    extent = f"0 {shape[1] - 1} 0 {shape[0] - 1} 0 0"
    inside = (
        f' WholeExtent="{extent}">\n<Piece Extent="{extent}">\n'
        + _fields({**data, "vtkGhostType": ghosts}, name)
        + f"<Points>\n{_array('Points', finite, 3)}</Points>\n</Piece>\n"
    )
    return _file("StructuredGrid", inside)


def _polygons(shape: tuple[int, ...], points: np.ndarray, data: Mapping[str, np.ndarray], name: str) -> str:
    known = np.isfinite(points[:, 2])
    number = np.cumsum(known) - 1
    index = np.arange(len(points)).reshape(shape)
    corners = np.stack([index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]], axis=-1).reshape(-1, 4)
    quads = number[corners[known[corners].all(axis=1)]]
    data = {n: a[known] for n, a in data.items()}
    return _file("PolyData", _piece(points[known], quads, "Polys", _fields(data, name)))


def _trail(x: np.ndarray, y: np.ndarray, height: float) -> str:
    points = np.stack([x, y, np.full(x.size, height)], axis=-1)
    step = np.arange(x.size).reshape(-1, 1)
    return _file("PolyData", _piece(points, np.arange(x.size)[None], "Lines", _fields({"step": step}, "step")))


def _piece(points: np.ndarray, cells: np.ndarray, kind: str, fields: str) -> str:
    numbers = dict.fromkeys(("Verts", "Lines", "Strips", "Polys"), 0) | {kind: len(cells)}
    counts = " ".join(f'NumberOf{what}="{number}"' for what, number in numbers.items())
    width = cells.shape[1]
    offsets = np.arange(1, len(cells) + 1) * width
    return (
        f'>\n<Piece NumberOfPoints="{len(points)}" {counts}>\n{fields}'
        f"<Points>\n{_array('Points', points, 3)}</Points>\n"
        f"<{kind}>\n{_array('connectivity', cells.reshape(-1))}{_array('offsets', offsets)}</{kind}>\n</Piece>\n"
    )
