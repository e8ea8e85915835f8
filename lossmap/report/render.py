"""Reports of what a result file holds, by the name of the group: no torch, no live object.

    text = report_of_group("spectrum/train", group.arrays, group.attributes)

Groups written by version 0.1 do not hold all that a report shows: theirs is the text that was printed then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lossmap.report.blocks import blocks_report
from lossmap.report.connection import connection_report
from lossmap.report.health import health_report
from lossmap.report.sharpness import sharpness_report
from lossmap.report.singular_values import singular_values_report
from lossmap.report.spectrum import spectrum_report
from lossmap.report.stored import StoredReport
from lossmap.report.topology import topology_report

RENDERERS: Mapping[str, Callable[[StoredReport], str]] = {  # by the first part of the group's name
    "spectrum": spectrum_report,
    "layers": blocks_report,
    "weights": singular_values_report,
    "sharpness": sharpness_report,
    "connection": connection_report,
    "topology": topology_report,
}


def report_of_group(name: str, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any]) -> str:
    """The report of one group of a result file, or the text that was stored with it; empty where there is neither.

    name  as in the file: spectrum/LABEL, layers/LABEL, weights/singular_values, sharpness/LABEL, connection,
          topology, health
    """
    stored = StoredReport(arrays, attributes)
    if name == "health":
        return health_report(stored)
    renderer = RENDERERS.get(name.partition("/")[0])
    if renderer is None or not stored.is_renderable:
        return stored.text("report")
    return renderer(stored)
