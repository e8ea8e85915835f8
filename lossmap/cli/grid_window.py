"""The grid of the settings: ticks as they are written, or a window around a training path (`--x auto`)."""

from __future__ import annotations

import re

import numpy as np

from lossmap.cli.setting_groups import PlaneSettings
from lossmap.cli.settings import UsageError
from lossmap.geometry.grid import Grid, window_around
from lossmap.io.read import training_path

AUTO = re.compile(r"auto(?::(\d+))?")
AUTO_COUNT = 51  # points along an axis


def tick_texts(plane: PlaneSettings) -> tuple[str, str | None]:
    """The ticks along x and y as low:high:count, None for no y, with `auto` replaced.

    Raises UsageError where `auto` has no path to go by, and as `training_path` does.
    """
    x, y = plane.x, plane.y
    if AUTO.fullmatch(x):
        x = _around_path(plane, "x", x)
    if y is not None and AUTO.fullmatch(y):
        y = _around_path(plane, "y", y)
    return x, y


def grid_in(plane: PlaneSettings) -> Grid:
    """The grid of the settings; raises as `tick_texts` and `Grid.parse`."""
    return Grid.parse(*tick_texts(plane))


def auto_count(axis: str, text: str, default: int = AUTO_COUNT) -> int:
    """How many ticks `auto` or `auto:COUNT` asks for. Raises UsageError for fewer than two, which span no window."""
    found = AUTO.fullmatch(text)
    count = int(found[1]) if found and found[1] else default
    if count < 2:
        raise UsageError(f"--{axis}={text}: a window around a path has 2 ticks or more")
    return count


def _around_path(plane: PlaneSettings, axis: str, text: str) -> str:
    if plane.proj_file is None:
        raise UsageError(f"--{axis}={text} needs --proj-file, the training path that the window is to hold")
    path = training_path(plane.proj_file)
    if axis not in path:
        raise UsageError(f"the path in {plane.proj_file} has no coordinate {axis}: give --{axis} as low:high:count")
    low, high = window_around(np.asarray(path[axis]))
    return f"{low:.6g}:{high:.6g}:{auto_count(axis, text)}"
