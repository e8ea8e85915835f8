"""lossmap: survey the loss landscape of a trained network, and read its curvature.

`import lossmap` loads nothing heavy: a picture can be drawn from a result file on a machine without
torch. The names in `__all__` are fetched from their rooms when first asked for.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lossmap.draw.figures import draw as draw
    from lossmap.measure.loss import losses as losses
    from lossmap.space.directions import Plane as Plane
    from lossmap.space.directions import line_between as line_between
    from lossmap.space.directions import random_plane as random_plane
    from lossmap.space.grid import Grid as Grid
    from lossmap.space.problem import Problem as Problem
    from lossmap.store.surface import read as read
    from lossmap.store.values import Surface as Surface
    from lossmap.survey import survey as survey

__version__ = "0.1.0"

_HOMES = {
    "Grid": "lossmap.space.grid",
    "Plane": "lossmap.space.directions",
    "Problem": "lossmap.space.problem",
    "Surface": "lossmap.store.values",
    "draw": "lossmap.draw.figures",
    "line_between": "lossmap.space.directions",
    "losses": "lossmap.measure.loss",
    "random_plane": "lossmap.space.directions",
    "read": "lossmap.store.surface",
    "diagnose_network_health": "lossmap.measure.health",
    "survey": "lossmap.survey",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Fetch a public name from its room on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lossmap' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class Namesake(ModuleType):
    """A room or wing that bears the name of its one function, `survey` and `draw`.

    Importing a room binds its name in the package, over the function's: so the room can be called as well, and
    `lossmap.survey(...)` means the same before and after somebody imported `lossmap.survey`.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function of this name."""
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOMES[name]), name)(*args, **kwargs)


def namesake(module: str) -> None:
    """Make a module one that can be called; it says so itself, at its end."""
    sys.modules[module].__class__ = Namesake
