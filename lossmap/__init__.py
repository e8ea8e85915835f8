"""lossmap: survey the loss landscape of a trained network, and read its curvature.

`import lossmap` loads nothing heavy: a picture can be drawn from a result file on a machine without
torch. The names in `__all__` are fetched from their rooms when first asked for.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Grid": "lossmap.space.grid",
    "Problem": "lossmap.space.problem",
    "Plane": "lossmap.space.directions",
    "random_plane": "lossmap.space.directions",
    "line_between": "lossmap.space.directions",
    "losses": "lossmap.measure.loss",
    "survey": "lossmap.survey",
    "Surface": "lossmap.store.surface",
    "read": "lossmap.store.surface",
    "draw": "lossmap.draw.figures",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Fetch a public name from its room on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lossmap' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
