"""What a picture shows: the fields, their short and long names with units, their colours; and what a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import numpy as np

from lossmap.geometry.grid import BUT_STATISTICS, ENDS_AT, MODEL, PART, WEIGHTS, Field, Grid, shown_unit
from lossmap.io.printable import printable
from lossmap.io.surface import MADE_AS, Group, Surface
from lossmap.plotting.style import ACCURACY, LOSS, RATIO
from lossmap.report.path import origin_on_path

Array = np.ndarray
ACCURACIES = ("train_acc", "test_acc")  # what `accuracy` may mean, the first that there is
MAX_UNIT = 20  # characters, that stand on one line with the name
LINE_AXIS, FIXED_COORDINATE = "drawn_axis", "drawn_at"  # attributes of a line that `as_line` made of a plane
PARTS = ("spectrum", "along", "sharpness")  # measures that are dispatched like points, but over no line or plane
WHOLE = {"norm": "none", "ignore": "none", "parameters": "all"}  # of an axis whose recipe says not what it ends at


@dataclass(frozen=True)
class Quantity:
    """One thing to draw.

    name    a field, or "ratio" for |min_eig / max_eig|
    symbol  short, for a column's head
    label   with its unit, for an axis or a colour bar
    cmap    its colours
    signed  centred on 0
    even    never on geometric levels
    """

    name: str
    symbol: str
    label: str
    cmap: str = LOSS
    signed: bool = False
    even: bool = False


def quantity(surface: Surface, name: str) -> Quantity:
    """How to draw the field of this name. Raises ValueError with the names that there are."""
    if name == "ratio":
        eigenvalues(surface)
        return Quantity(
            name, r"$|\lambda_\min / \lambda_\max|$", r"$|\lambda_\min / \lambda_\max|$, red: $\lambda_\min < 0$",
            RATIO, True,
        )  # fmt: skip
    if name == "gap":
        _check_losses(surface)
        unit = in_brackets(surface.about["test_loss"].unit)
        return Quantity(name, "gap", f"test $-$ training loss{unit}", "PuOr_r", True)
    if name == "accuracy":
        name = accuracy_of(surface) or name
    base, _, index = name.partition(":")
    if base not in surface:
        known = [n for n in surface.fields if not n.endswith(("_seconds", "_rank"))]
        raise ValueError(f"no field {name!r} here; there are: {', '.join(known) or 'none'}")
    about = surface.about[base]
    label = about.long_name + in_brackets(about.unit)
    if about.extra is not None:
        if not index.isdigit() or int(index) >= about.extra[1]:
            raise ValueError(f"the field {base!r} holds {about.extra[1]} numbers a point: name one, {base}:0 and so on")
        label = f"{label}, {index}"
    if base.endswith("max_eig"):
        return Quantity(name, r"$\lambda_\max$", r"$\lambda_\max$" + _unit(about))
    if base.endswith("min_eig"):
        return Quantity(name, r"$\lambda_\min$", r"$\lambda_\min$" + _unit(about), "RdBu", True)
    split, _, what = base.partition("_")
    samples = {"train": "training", "test": "test"}.get(split)
    if samples and what == "acc":
        return Quantity(name, "accuracy", f"{samples} accuracy{in_brackets(about.unit)}", ACCURACY, even=True)
    if samples and what == "loss":
        return Quantity(name, "loss", f"{samples} loss{in_brackets(about.unit)}")
    return Quantity(name, base, label)


def common_quantity(surfaces: Sequence[Surface], name: str) -> Quantity:
    """How to draw one quantity of several surfaces on one scale, whose label has one unit.

    Raises ValueError where one does not hold it, and where they give it in different units.
    """
    what = quantity(surfaces[0], name)
    units = list(dict.fromkeys(_unit_of(surface, name) or "no unit" for surface in surfaces))
    if len(units) > 1:
        raise ValueError(
            f"{name} is in different units in these files ({'; '.join(units)}), which no common scale can show: "
            "draw each by itself, from Python into axes of one figure (ax=)"
        )
    return what


def _unit_of(surface: Surface, name: str) -> str:
    """The unit of a quantity as people read it; empty where it has none."""
    base = {"ratio": "", "gap": "test_loss"}.get(name, quantity(surface, name).name.partition(":")[0])
    return shown_unit(surface.about[base].unit) if base else ""


def common_field(surfaces: Sequence[Surface], name: str) -> str:
    """The field that a name means in all surfaces: `accuracy` is that of one split, the training samples' if it can.

    Raises ValueError where there are accuracies, of no split in all of them.
    """
    if name != "accuracy" or not any(accuracy_of(surface) for surface in surfaces):
        return name
    both = [n for n in ACCURACIES if all(n in surface for surface in surfaces)]
    if not both:
        raise ValueError(
            "these files hold accuracies of different samples: name one, such as --field test_acc, or draw them apart"
        )
    return both[0]


def short_unit(about: Field) -> str:
    """A field's unit as it stands at an axis; empty where it has none."""
    return shown_unit(about.unit)


def _unit(about: Field) -> str:
    return in_brackets(short_unit(about))


def on_scale(label: str, log: bool) -> str:
    """The label of an axis or a colour bar, with the word for a scale that is not linear."""
    return f"{label}, log scale" if log else label


def in_brackets(unit: str, width: int = 40) -> str:
    """A unit behind a name, a long one on lines of its own; nothing for a number without unit.

    width  characters of a line; 20 suit the axis of a low panel
    """
    text = shown_unit(unit)
    if not text:
        return ""
    gap = "\n" if len(text) > MAX_UNIT else " "
    return gap + fill(f"({text})", width)


def values_of(surface: Surface, name: str) -> tuple[Array, Array]:
    """The numbers of a quantity and the statuses of its points, both of the grid's shape.

    The ratio is |min/max|, with a minus where the smallest eigenvalue is positive: so negative curvature is red.
    """
    if name == "ratio":
        high, low = (surface[n] for n in eigenvalues(surface))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = -np.sign(low) * np.abs(low / high)
        return np.where((low == 0) & (high == 0), 0.0, ratio), surface.status_of("max_eig")
    if name == "gap":
        _check_losses(surface)
        return surface["test_loss"] - surface["train_loss"], surface.status_of("test_loss")
    if name == "accuracy":
        name = accuracy_of(surface) or name
    base, _, index = name.partition(":")
    values = surface[base]
    if index:
        values = values[..., int(index)]
    return values, surface.status_of(base)


def accuracy_of(surface: Surface) -> str | None:
    """The field that `accuracy` means: that of the training samples, or of the test samples; None without one."""
    return next((name for name in ACCURACIES if name in surface), None)


def _check_losses(surface: Surface) -> None:
    """Raise ValueError unless both losses are there, of which a gap is made."""
    if "train_loss" not in surface or "test_loss" not in surface:
        raise ValueError("a gap needs train_loss and test_loss in one file; lossmap surface --split both computes them")


def eigenvalues(surface: Surface) -> tuple[str, str]:
    """The names of the two ends. Raises ValueError where they are not there."""
    if "max_eig" not in surface or "min_eig" not in surface:
        raise ValueError("this file holds no eigenvalues max_eig and min_eig; lossmap eigenmap computes them")
    return "max_eig", "min_eig"


def changes_sign(surface: Surface) -> bool:
    """Whether a plane has points with a negative and points with a positive smallest eigenvalue."""
    if "min_eig" not in surface or min(surface.grid.shape) < 2 or surface.grid.y is None:
        return False
    low = surface["min_eig"]
    known = low[np.isfinite(low)]
    return bool(known.size and known.min() < 0 < known.max())


def other_kinds(surface: Surface) -> tuple[str, ...]:
    """What there is to draw beside a surface: spectrum, layers, sharpness, connection, topology and so on."""
    groups = surface.groups
    is_held = {
        "spectrum": any(
            n.startswith("spectrum/") and {"top", "bottom", "node", "strength"} & set(g.arrays)
            for n, g in groups.items()
        ),
        "layers": any(n.startswith("layers/") and "block" in g for n, g in groups.items()),
        "sharpness": any(n.startswith("sharpness/") for n in groups),
        "connection": "connection" in groups,
        "topology": "topology" in groups,
        "evolution": "evolution/results" in groups,
        "health": "health" in groups,
        "path": "trajectory" in groups,
    }
    return tuple(kind for kind in is_held if is_held[kind])


def fields_of_points(surface: Surface) -> list[str]:
    """The fields that are readings at points: no book-keeping, and nothing of the parts of a spectrum or a run."""
    parts = {name for measure in PARTS for name in surface.measures.get(measure, ())}
    beside = (
        "_seconds",
        "_rank",
        "_error",
        "_limit",
        "_samples_read",
    )  # book-keeping, and what belongs to another field
    return [name for name in surface.fields if name not in parts and not name.endswith(beside)]


def holds_points(surface: Surface) -> bool:
    """Whether there is a surface to draw: readings over a line or a plane."""
    return bool(fields_of_points(surface))


TASK_MEASURES = ("spectrum",)  # whose figures are made when all tasks are done


def best_field(surface: Surface) -> str:
    """The field that a picture shows if nothing is said. Raises ValueError where there is none."""
    names = fields_of_points(surface)
    for name in ("train_loss", "test_loss", "max_eig"):
        if name in names:
            return name
    if not names and "result" in surface.attributes and not contents_of(surface):
        raise ValueError(f"there is no figure of this result ({surface.attributes['result']}): print it instead")
    if not names and not contents_of(surface):
        for measure in set(TASK_MEASURES) & set(surface.status):
            counts = surface.counts(measure)
            raise ValueError(
                f"there is no figure yet: {counts['done']} of {sum(counts.values())} tasks of this {measure} are done; "
                "`lossmap resume FILE` computes the others, and with --stop-after 1 it prints what is there"
            )
    if not names:
        raise ValueError(f"this file holds no surface; it holds: {', '.join(contents_of(surface)) or 'nothing'}")
    about = surface.about[names[0]]
    return names[0] if about.extra is None else f"{names[0]}:0"


def contents_of(surface: Surface) -> list[str]:
    """All that a file holds, in words."""
    contents = list(other_kinds(surface))
    if holds_points(surface):
        contents.insert(0, "a surface")
    if any(name.startswith("directions/") for name in surface.groups):
        contents.append("directions (see lossmap plane FILE)")
    return contents


def axis_labels(surface: Surface) -> tuple[str, str]:
    """What the axes of the plane are, as far as the file knows; of a line in a plane, also where in it the line is.

    Of the line between two networks both their names.
    """
    if "connection" in surface.groups:
        first, other = line_ends(surface)
        return f"t, from {first} (0) to {other} (1)", ""
    if LINE_AXIS not in surface.attributes:
        return _axis(surface, "x", "x"), _axis(surface, "y", "y")
    name = str(surface.attributes[LINE_AXIS])
    other = {"x": "y", "y": "x"}[name]
    return f"{_axis(surface, 'x', name)}; {other} = {surface.attributes[FIXED_COORDINATE]:g}", ""


def model_positions(surface: Surface) -> tuple[float, ...]:
    """Where models stand on a line: at 0, and of a line between two at 1 as well; nowhere on a line beside them."""
    if surface.attributes.get(FIXED_COORDINATE, 0.0) != 0.0:
        return ()
    return (0.0, 1.0) if _end(surface, "x") is not None else (0.0,)


def line_ends(surface: Surface) -> tuple[str, str]:
    """What the models at 0 and at 1 of a line are called, for people to read."""
    names = surface.groups.get("connection", Group({})).attributes
    first, other = names.get("first", "model"), names.get("other", _end(surface, "x") or "model 2")
    other = names.get("end", other)
    return printable(str(first)), printable(str(other))


def models_on_plane(surface: Surface) -> list[tuple[float, float, str]]:
    """(x, y, name) of the models that an axis of a plane leads to, as in `plane_through`; none on others' planes."""
    ends = ((1.0, 0.0, _end(surface, "x")), (0.0, 1.0, _end(surface, "y")))
    return [(x, y, name) for x, y, name in ends if name is not None]


def _end(surface: Surface, direction: str) -> str | None:
    """The model at 1 of an axis that leads to one: its file's name, or `model 2` and `model 3`; else None.

    Where its buffers, such as running statistics of batch norm, do not stand there: `weights of` it.
    """
    attributes = surface.groups.get(f"directions/{direction}", Group({})).attributes
    kind, _, file = _kind(surface, direction).partition(":")
    end = attributes.get(ENDS_AT)
    if end is None and MADE_AS not in attributes:
        end = MODEL if all(attributes.get(name, whole) == whole for name, whole in WHOLE.items()) else PART
    if kind != "to" or end not in (MODEL, BUT_STATISTICS, WEIGHTS):
        return None
    own = _file_at_end(surface, direction, file) if file else _without_file(direction)
    return own if end == MODEL else f"weights of {own}"


def _file_at_end(surface: Surface, direction: str, file: str) -> str:
    """The name of the file at the end of an axis, with as many of its folders as tell it from the other axis's."""
    own, other = (Path(f).parts for f in (file, _kind(surface, {"x": "y", "y": "x"}[direction]).partition(":")[2]))
    count = 1  # of its folders as many as tell it from a file of the same name at the end of the other axis
    while count < len(own) and own != other and own[-count:] == other[-count:]:
        count += 1
    return str(Path(*own[-count:]))


def _without_file(direction: str) -> str:
    """What a model at the end of an axis is called that was read from no file."""
    return f"model {2 if direction == 'x' else 3}"


def _axis(surface: Surface, direction: str, name: str) -> str:
    """The label of an axis of this name along a direction of the file."""
    kind = _kind(surface, direction)
    if not kind:
        return name
    if kind == "random":
        return f"{name}, random direction"
    end = _end(surface, direction)
    if end is not None:
        return f"{name}, 0: model, 1: {end}"
    if kind.startswith("pca"):
        component = int("".join(c for c in kind if c.isdigit()) or 1)
        return f"{name}, principal component {component}{_explained(surface, component)}"
    if kind == "to":
        return f"{name}, to {_without_file(direction)}"
    return f"{name}, {kind.replace(':', ' ')}"


def _kind(surface: Surface, direction: str) -> str:
    """How an axis was made, also where it was read from a file since; empty where that is not known."""
    attributes = surface.groups.get(f"directions/{direction}", Group({})).attributes
    return str(attributes.get(MADE_AS, attributes.get("kind", "")))


def _explained(surface: Surface, component: int) -> str:
    """The share of a training path that a component explains, as " (85 %)"; empty if not known.

    About an origin that is no checkpoint of the path it is one of squared distances from there, and no variance.
    """
    path = surface.groups.get("trajectory", Group({}))
    ratios = np.atleast_1d(path.arrays.get("explained_variance_ratio", ()))
    if component > ratios.size:
        return ""
    share = 100 * float(ratios[component - 1])
    of = "" if "residual" not in path.arrays or origin_on_path(path.arrays) is not None else " of squared distances"
    return f" ({share:.{0 if share >= 10 else 1}f} %{of})"


def as_line(surface: Surface) -> Surface:
    """A plane with one tick along an axis, as the line that it is; a line as it is.

    Its direction is directions/x; attributes say which axis of the plane it runs along, and the other coordinate.
    """
    grid = surface.grid
    if grid.y is None:
        return surface
    ticks, name, fixed = grid.x, "x", grid.y[0]
    groups = dict(surface.groups)
    if grid.y.size > 1:
        ticks, name, fixed = grid.y, "y", grid.x[0]
        groups.pop("directions/x", None)
        if "directions/y" in groups:
            groups["directions/x"] = groups["directions/y"]
    n = ticks.size
    return replace(
        surface,
        grid=Grid(ticks),
        fields={name: a.reshape(n, *a.shape[2:]) for name, a in surface.fields.items()},
        status={name: a.reshape(n) for name, a in surface.status.items()},
        groups=groups,
        attributes={**surface.attributes, LINE_AXIS: name, FIXED_COORDINATE: float(fixed)},
    )


def is_line(surface: Surface) -> bool:
    """Whether there is but one axis with more than one tick."""
    return surface.grid.y is None or 1 in surface.grid.shape
