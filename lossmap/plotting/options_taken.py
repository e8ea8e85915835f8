"""Which options a kind of figure takes, so that none is ignored in silence: the others are refused by name.

Options are those of `draw` beside the kind and what is drawn. NumPy alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lossmap.io.surface import Surface
from lossmap.plotting.quantities import best_field, changes_sign, is_line, quantity

LEVELS = frozenset({"vmin", "vmax", "vlevel", "log", "levels"})
LINE = LEVELS | {"field", "titles", "width", "style"}
SHEET = LINE | {"trajectory", "interp", "points"}
MAP = SHEET | {"ax", "cmap", "labels", "crop"}
TAKEN: dict[str, frozenset[str]] = {
    "filled": MAP,
    "contour": MAP,
    "map": MAP - {"interp", "levels"},
    "3d": MAP | {"camera"},
    "line": LINE - {"vlevel", "levels"} | {"loss_max", "ax", "labels"},
    "median": LINE - {"vlevel", "levels", "titles"} | {"loss_max", "labels"},
    "eigen": MAP - {"field", "ax"} | {"loss_max"},
    "convexity": MAP - {"field"} | {"loss_max"},
    "training": frozenset({"titles", "width", "style"}),
    "spectrum": frozenset({"field", "titles", "width", "style"}),
    "layers": frozenset({"field", "titles", "width", "style"}),
    "sharpness": frozenset({"field", "titles", "width", "style"}),
    "connection": frozenset({"titles", "width", "style", "log"}),
    "topology": frozenset({"titles", "width", "style"}),
    "evolution": frozenset({"titles", "style"}),
    "health": frozenset({"titles", "style"}),
    "path": frozenset({"titles", "width", "style"}),
    "page": LINE - {"vlevel", "width", "style", "levels"} | {"trajectory", "loss_max"},
    "vtk": frozenset({"field", "log", "vmax", "trajectory", "interp"}),
}
FLAGS = {"ax": "ax", "trajectory": "--proj-file", "loss_max": "--loss-max", "log": "--log or --linear"}
NAMES = {"page": "an HTML page", "vtk": "a file for ParaView"}


def refuse_unused(surfaces: Sequence[Surface], kind: str, field: str | None, options: Mapping[str, Any]) -> None:
    """Raise ValueError where an option would change nothing; arguments as `unused_options`."""
    for sentence in unused_options(surfaces, kind, field, options).values():
        raise ValueError(sentence)


def used_options(
    surfaces: Sequence[Surface], kind: str, field: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options without those that would change nothing; arguments as `unused_options`."""
    unused = unused_options(surfaces, kind, field, options)
    return {name: value for name, value in options.items() if name in TAKEN[kind] and name not in unused}


def unused_options(
    surfaces: Sequence[Surface], kind: str, field: str | None, options: Mapping[str, Any]
) -> dict[str, str]:
    """The options that would change nothing of a figure, and of each a sentence that says so.

    kind     of the figure, as `draw` takes it but for auto; or page, vtk
    field    the field to draw; the best one if left out
    options  by name; None for one that is not set
    """
    given = [name for name, value in options.items() if _is_set(name, value)]
    sentences = {name: _refusal(name, kind) for name in given if name not in TAKEN[kind]}
    for name in given:
        if name not in sentences:
            reason = _reason_of_content(name, surfaces, kind, field, options)
            if reason:
                sentences[name] = reason
    return sentences


def _is_set(name: str, value: Any) -> bool:
    """Whether an option is set to something that asks for more than the default."""
    if name == "trajectory":
        return value is not None and not isinstance(value, bool)
    return value is not None


def _flag(name: str) -> str:
    return FLAGS.get(name, f"--{name}")


def _refusal(name: str, kind: str) -> str:
    takers = ", ".join(k for k, taken in TAKEN.items() if name in taken and k not in NAMES)
    what = NAMES.get(kind, f"a figure of the kind {kind}")
    return f"{_flag(name)} changes nothing of {what}; the kinds that take it: {takers}"


def _reason_of_content(
    name: str, surfaces: Sequence[Surface], kind: str, field: str | None, options: Mapping[str, Any]
) -> str:
    """Why an option that the kind takes changes nothing of what these files hold; empty where it does."""
    flat = all(is_line(surface) for surface in surfaces)
    if name == "loss_max" and not flat:
        return "--loss-max ends the loss axis of a line (the kinds line and eigen); of a plane --vmax ends the levels"
    if flat and name in ("vlevel", "trajectory", "interp", "points", "levels", "cmap", "crop"):
        return f"{_flag(name)} changes nothing of a line; planes take it, in the kinds filled, contour, map, eigen"
    if flat and kind in ("eigen", "convexity") and name in ("ax", "labels"):
        return f"{_flag(name)} changes nothing of eigenvalues along a line, of which each panel is labelled by itself"
    if name == "vmax" and flat and options.get("loss_max") is not None:
        return "--vmax and --loss-max end the same axis of a line: give one of them"
    if kind in ("eigen", "convexity"):
        if name == "interp" and kind == "convexity" and any(map(changes_sign, surfaces)):
            return ""  # the line of lambda_min = 0 follows it
        if name in LEVELS | {"loss_max", "interp"} and options[name] is not False and not _have_loss(surfaces):
            return (
                f"{_flag(name)} is of the loss beside the eigenvalues, and these files hold none: "
                "the kinds filled, contour and map take it for a --field"
            )
        return ""
    return _reason_of_sign(name, surfaces, kind, field, options)


def _reason_of_sign(
    name: str, surfaces: Sequence[Surface], kind: str, field: str | None, options: Mapping[str, Any]
) -> str:
    """Colours that are centred on 0 have one end to set; empty where another quantity is drawn."""
    names = ("vmin", "vlevel", "log") if kind == "page" else ("vmin", "vlevel", "interp", "levels")
    if kind not in ("filled", "map", "page") or name not in names:
        return ""
    what = quantity(surfaces[0], field or best_field(surfaces[0]))
    if not what.signed or is_line(surfaces[0]):
        return ""
    if name == "interp":
        return f"--interp changes nothing of {what.name}, which is drawn in cells: the kinds contour and 3d take it"
    return (
        f"{_flag(name)} changes nothing of {what.name}, whose colours are centred on 0: --vmax ends them on both "
        "sides; the kinds contour and 3d take it"
    )


def _have_loss(surfaces: Sequence[Surface]) -> bool:
    return any(all(name in surface for surface in surfaces) for name in ("train_loss", "test_loss"))
