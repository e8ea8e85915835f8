"""The caller's options of a figure, checked: each function takes what was given and returns what figures use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib
import numpy as np

if TYPE_CHECKING:
    from lossmap.plotting.panels import FigureOptions


def checked_cmap(name: str | None) -> str | None:
    """The name of a colour map. Raises ValueError with the nearest names where matplotlib has none of that name."""
    if name is None or name in matplotlib.colormaps:
        return name
    near = difflib.get_close_matches(str(name), list(matplotlib.colormaps), 3) or ["viridis", "magma", "cividis"]
    raise ValueError(f"--cmap must be a colour map of matplotlib, such as {', '.join(near)}; got {name!r}")


def checked_levels(levels: Sequence[float] | None) -> tuple[float, ...] | None:
    """The levels as numbers. Raises ValueError for anything but a sequence of them, such as a number of levels."""
    if levels is None:
        return None
    try:
        return tuple(float(level) for level in levels)
    except (TypeError, ValueError):
        raise ValueError(f"--levels must be the levels themselves, such as [0.1, 1, 10]; got {levels!r}") from None


def checked_labels(labels: Sequence[str] | None) -> tuple[str, ...] | None:
    """The labels of x and y, and perhaps of the colours. Raises ValueError for another number of them."""
    if labels is None:
        return None
    if isinstance(labels, str) or len(labels) not in (2, 3):
        raise ValueError(f"--labels must be two or three, of x, y and the colour bar; got {labels!r}")
    return tuple(str(label) for label in labels)


def percentile_of(crop: str | None) -> float | None:
    """The percentile at which colours end, from a text such as p99. Raises ValueError for any other text."""
    if crop is None:
        return None
    match = re.fullmatch(r"p(\d{1,2}(?:\.\d+)?)", str(crop).strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"--crop must be a percentile between p0 and p100, such as p99; got {crop!r}")
    return float(match[1])


def checked_camera(camera: str | Sequence[float] | None) -> tuple[float, float] | None:
    """Elevation and azimuth, degrees. Raises ValueError for anything but two finite numbers."""
    if camera is None:
        return None
    parts = camera.split(",") if isinstance(camera, str) else list(camera)
    try:
        angles = [float(part) for part in parts]
    except (TypeError, ValueError):
        angles = []
    if len(angles) != 2 or not np.isfinite(angles).all() or abs(angles[0]) > 90:
        raise ValueError(
            f"--camera must be an elevation from -90 to 90 and an azimuth in degrees, such as 32,-58; got {camera!r}"
        )
    return angles[0], angles[1]


def check_together(options: FigureOptions, files: int, kind: str) -> None:
    """Raise ValueError where one option undoes another, or axes do not fit what is drawn."""
    for name in ("vmin", "vmax", "vlevel", "crop"):
        if options.levels is not None and getattr(options, name) is not None:
            raise ValueError(f"--levels and --{name} exclude each other: give one of them")
    if options.crop is not None and options.vmax is not None:
        raise ValueError("--crop and --vmax end the same colours: give one of them")
    if kind == "eigen" and options.labels is not None and len(options.labels) > 2:
        raise ValueError(
            f"--labels of the kind eigen are two, of x and y, as each map is labelled; got {len(options.labels)}"
        )
    if options.ax is None:
        return
    if files > 1:
        raise ValueError(f"ax takes one surface; got {files}")
    if options.width is not None:
        raise ValueError("ax is part of a figure that has a width: leave width out")
