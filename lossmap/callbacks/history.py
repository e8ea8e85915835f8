"""The readings of a training as a result file: a line whose points are steps, with the measure `training`.

`lossmap draw`, `status` and `lossmap.read` understand it; the field `stability_threshold` says what it is. The file is
written anew with every reading, and appears whole. Units as in `measurement`.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import write_surface
from lossmap.io.surface import DONE, FAILED, TRAINING_PROCESS, Failure, Surface

MEASURE = "training"


@dataclass
class History:
    """The readings so far, by step.

    fields    of a reading
    settings  what was asked for, stored with them
    attributes  root attributes of the file: where the readings come from
    """

    fields: Sequence[Field]
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    readings: list[Mapping[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  # index of a reading -> why it failed
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def add(self, step: int, reading: Mapping[str, float], seconds: float, reason: str = "") -> None:
        """Add the reading of a step; `reason` says why it has no curvature, where it has none."""
        if reason:
            self.reasons[len(self.steps)] = reason
        self.steps.append(step)
        self.readings.append(reading)
        self.seconds.append(seconds)

    def surface(self) -> Surface:
        """The readings as a Surface over the steps. Raises ValueError where there is none yet."""
        if not self.steps:
            raise ValueError("nothing has been measured yet")
        values = {f.name: np.array([r.get(f.name, np.nan) for r in self.readings]) for f in self.fields}
        times = {f"{MEASURE}_seconds": np.array(self.seconds), f"{MEASURE}_rank": np.zeros(len(self.steps))}
        about = {f.name: f for f in self.fields} | {
            f"{MEASURE}_seconds": Field(f"{MEASURE}_seconds", "s", "seconds that the reading took"),
            f"{MEASURE}_rank": Field(f"{MEASURE}_rank", "1", "rank that made the reading"),
        }
        status = np.array([FAILED if i in self.reasons else DONE for i in range(len(self.steps))], dtype=np.uint8)
        return Surface(
            Grid(np.array(self.steps, dtype=np.float64)),
            values | times,
            about,
            {MEASURE: status},
            {MEASURE: tuple(f.name for f in self.fields)},
            {"file": {}, "measures": {MEASURE: dict(self.settings)}},
            tuple(Failure(i, 0, "", reason, MEASURE) for i, reason in self.reasons.items()),
            {"long_name": "curvature along a training", **self.attributes, "end": now()},
        )

    def write(self, path: Path, is_last: bool = False) -> None:
        """Write the readings into a file, in place of what it held; until the last ones it names this process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        surface = self.surface()
        if not is_last:
            process = {TRAINING_PROCESS: f"{socket.gethostname()} {os.getpid()}"}
            surface = replace(surface, attributes={**surface.attributes, **process})
        write_surface(path, surface, overwrite=True)


def now() -> str:
    """The time, as files state it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def known(reading: Mapping[str, float]) -> dict[str, float]:
    """The numbers of a reading that are known, for a logger."""
    return {name: value for name, value in reading.items() if isfinite(value)}
