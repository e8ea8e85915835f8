"""What an interactive page holds: the fields of one or several surfaces, their errors, scales, holes, path and origin.

Numbers are float32 where that keeps them to 1e-7, else float64; little-endian, their bytes grouped by significance,
deflated, in base64. Scales, levels and colours are those of the print, so that both show a value alike.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from lossmap.geometry.grid import shown_unit
from lossmap.io.curvature_signs import NEGATIVE, UNDECIDED
from lossmap.io.field_errors import ROUNDED, field_errors
from lossmap.io.group_layout import check_groups
from lossmap.io.hdf5_open import Damaged
from lossmap.io.printable import printable
from lossmap.io.surface import Group, Surface
from lossmap.plotting.between_points import MEASURED, errors_between, refinement_notes, with_points_between
from lossmap.plotting.coarse_picture import with_coarse_picture
from lossmap.plotting.contour_levels import labels, scale_of
from lossmap.plotting.dispatch import draw_content
from lossmap.plotting.flatness import noise_in, ratio_errors
from lossmap.plotting.maps import centred, checkpoint_sizes
from lossmap.plotting.notes import accuracy_notes
from lossmap.plotting.panels import FigureOptions
from lossmap.plotting.plane_figures import MAX_RATIO, PATH_LOSS
from lossmap.plotting.quantities import (
    FIXED_COORDINATE,
    LINE_AXIS,
    Quantity,
    as_line,
    axis_labels,
    best_field,
    common_field,
    common_quantity,
    holds_points,
    is_line,
    line_ends,
    model_positions,
    models_on_plane,
    other_kinds,
    quantity,
    values_of,
)
from lossmap.plotting.sign_hatches import hatched_signs
from lossmap.plotting.style import STYLE, style_context, with_numbered_ids
from lossmap.plotting.training import draw_training, is_training
from lossmap.report.render import report_of_group

COLOURS = 33  # of a scale; an odd number has the middle, which is white of signed ones
MAX_PARTS = 10  # of a field with a further dimension, that can be chosen
TABS = {
    "spectrum": "Spectrum", "layers": "Layers", "evolution": "Dynamics", "health": "Health", "sharpness": "Sharpness",
    "connection": "Connection", "training": "Training", "topology": "Topology", "path": "Path",
}  # fmt: skip
GROUPS = {"evolution": "evolution/results", "path": "trajectory"}  # of a kind, where it is not called so
BESIDE = (
    "_error",
    "_limit",
    "_seconds",
    "_rank",
    "_measured",
    "_rounding",
    "_start",
    "_samples_read",
)  # fields about other fields
STEP = "step"  # of a training, which its readings run along
RATIO_WORDS = "|smallest / largest eigenvalue|"
SMALLEST_FLOAT32, LARGEST_FLOAT32 = 2.0**-126, 3.4e38
SIGN_CODES = {NEGATIVE: 1, UNDECIDED: 2}
ERROR_BITS = 10  # of a bar that is no field itself, rounded up: three digits

Packed = dict[str, str]


@dataclass(frozen=True)
class PageSource:
    """A surface of the page, and its title."""

    surface: Surface
    title: str


def page_data(
    sources: Sequence[PageSource], stem: str, field: str | None, options: FigureOptions, reload: float | None
) -> dict[str, Any]:
    """All that the page shows, as plain values for JSON.

    stem     of the names of files that the page makes
    field    that it shows first; the best one of the first file if left out
    options  of that field, as `page` takes them
    reload   seconds after which the page of a growing survey is read again; None for a finished one
    """
    shown = [_shown(source) for source in sources]
    names = _names(shown, field)
    return {
        "stem": stem,
        "first": names[0] if names else "",
        "summary": "; ".join(dict.fromkeys(filter(None, (_summary(source.surface) for source in sources)))),
        "reload": reload,
        "fields": [_field(shown, names, name, options if i == 0 else _own(options)) for i, name in enumerate(names)],
        "files": [_file(own, source, names, options) for own, source in zip(shown, sources, strict=True)],
    }


def packed(values: np.ndarray) -> Packed:
    """An array of any shape as text; uint8 stays, all else is the narrowest float that holds it to 1e-7."""
    if values.dtype == np.uint8:
        return {"type": "u1", "data": _deflated(values.tobytes())}
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    is_wide = sizes.size and not (sizes.min() >= SMALLEST_FLOAT32 and sizes.max() <= LARGEST_FLOAT32)
    name = "f8" if is_wide else "f4"
    own = np.ascontiguousarray(values.reshape(-1), dtype=f"<{name}")
    grouped = own.view(np.uint8).reshape(own.size, -1).T
    return {"type": name, "data": _deflated(grouped.tobytes())}


def _deflated(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def colour_list(name: str) -> list[list[int]]:
    """A colour map of matplotlib's as (red, green, blue), 0 to 255, at even steps."""
    shares = np.linspace(0.0, 1.0, COLOURS)
    return [[round(255 * float(part)) for part in colour[:3]] for colour in matplotlib.colormaps[name](shares)]


def _shown(source: PageSource) -> Surface:
    """The surface as it is drawn: a plane with one tick on an axis is a line."""
    surface = with_coarse_picture(with_points_between(source.surface))
    return as_line(surface) if is_line(surface) else surface


def _own(options: FigureOptions) -> FigureOptions:
    """The options of the other fields, which have units of their own."""
    return replace(options, vmin=None, vmax=None, log=None, loss_max=None)


def _names(surfaces: Sequence[Surface], field: str | None) -> list[str]:
    """The fields that can be chosen, the one that is named or else the best first."""
    having = [surface for surface in surfaces if holds_points(surface)]
    if not having:
        return []
    first = quantity(having[0], common_field(having, field or best_field(having[0]))).name
    names = [first]
    for surface in having:
        names += _names_in(surface)
    return list(dict.fromkeys(names))


def _names_in(surface: Surface) -> Iterator[str]:
    for name in surface.fields:
        extra = surface.about[name].extra
        if extra is None:
            yield name
        else:
            yield from (f"{name}:{i}" for i in range(min(extra[1], MAX_PARTS)))
        if name == "min_eig" and "max_eig" in surface:
            yield "ratio"


def _holds(surface: Surface, name: str) -> bool:
    if name == "ratio":
        return "min_eig" in surface and "max_eig" in surface
    return name.partition(":")[0] in surface


def _field(surfaces: Sequence[Surface], names: Sequence[str], name: str, options: FigureOptions) -> dict[str, Any]:
    """What is common to all files of a field: words, unit, colours, scales; names: of all fields."""
    having = [surface for surface in surfaces if _holds(surface, name)]
    what, (words, unit) = common_quantity(having, name), _words(having[0], name)
    noise = noise_in(having, name)
    arrays = [values_of(surface, name)[0] for surface in having]
    are_lines = all(map(is_line, having))
    if options.log is None and not what.signed and not noise and are_lines:
        drawn = list(_drawn_together(having, names, name))
        log = options.suits_log(drawn, what.even)  # the axis reaches to the last value
        options = replace(options, log=log and any((values > 0).any() for values in arrays))
    label = f"{words} ({unit})" if unit else words
    if name == "ratio":
        label += f", {'above 0' if are_lines else 'red'}: smallest negative"
    top = options.vmax if options.loss_max is None else options.loss_max
    return {
        "name": name,
        "words": words,
        "unit": unit,
        "label": label,
        "more": _is_beside(name),
        "signed": what.signed,
        "colours": colour_list(what.cmap),
        "scales": list(_scales(what, arrays, options, noise)),
        "ends": [options.vmin, top],
        "note": "equal within its errors" if noise else "",
    }


def _drawn_together(surfaces: Sequence[Surface], names: Sequence[str], name: str) -> Iterator[np.ndarray]:
    """The values of a field of lines, and of those that its chart shows beside it, which have the same unit."""
    for surface in surfaces:
        unit = _words(surface, name)[1]
        for other in names:
            is_beside = other != name and _is_beside(other)
            if not is_beside and _holds(surface, other) and _words(surface, other)[1] == unit:
                yield values_of(surface, other)[0]


def _is_beside(name: str) -> bool:
    """Whether a field tells of another one, or of the work: it stands under "more"."""
    return name.endswith((*BESIDE, "products")) or name.startswith("audit_") or ":" in name or name == MEASURED


def _words(surface: Surface, name: str) -> tuple[str, str]:
    """A field in words, and its unit."""
    if name == "ratio":
        return RATIO_WORDS, ""
    base, _, index = name.partition(":")
    about = surface.about[base]
    words = about.long_name or base
    return printable(f"{words}, {index}" if index else words), printable(shown_unit(about.unit))


# ---- scales


def _scales(what: Quantity, arrays: list[np.ndarray], options: FigureOptions, noise: float) -> Iterator[dict[str, Any]]:
    """The scale of the print, and the other that the reader may choose."""
    first = _scale(what, arrays, options, noise)
    yield first
    if first["flat"]:
        return
    for log in (True, False):
        if log and (what.even or not _suits(what, arrays)):
            continue
        other = _scale(what, arrays, replace(options, log=log), noise)
        if other["kind"] != first["kind"]:
            yield other


def _suits(what: Quantity, arrays: Sequence[np.ndarray]) -> bool:
    """Whether a field can stand on a logarithmic scale at all: a signed one does so on both sides of 0."""
    known = np.concatenate([values[np.isfinite(values)].reshape(-1) for values in arrays])
    return bool(known.size) and (what.signed or bool(known.min() > 0))


def _scale(what: Quantity, arrays: list[np.ndarray], options: FigureOptions, noise: float) -> dict[str, Any]:
    """One scale: its kind, ends and levels, and the ticks of its colour bar."""
    if what.signed:
        return _signed_scale(what, arrays, options, noise)
    scale = options.scale(arrays, what, noise)
    low, high = scale.ends
    if not low < high:
        low, high = low - 0.5, high + 0.5
    levels = scale.levels.tolist()
    return {
        "kind": "log" if scale.log else "linear",
        "low": low,
        "high": high,
        "levels": levels,
        "ticks": [[value, text] for value, text in zip(levels, labels(scale.levels), strict=True)],
        "flat": scale.flat,
    }


def _signed_scale(what: Quantity, arrays: list[np.ndarray], options: FigureOptions, noise: float) -> dict[str, Any]:
    """A scale that is white at 0 and reaches as far to both sides, by decades beyond usual values where those vary."""
    limit = options.vmax
    if limit is None and what.name == "ratio":
        limit = MAX_RATIO
    norm = centred(arrays, limit, options.log, noise)
    if isinstance(norm, SymLogNorm):
        linear, most = float(norm.linthresh), float(norm.vmax or 1.0)
        decades = 10.0 ** np.arange(np.ceil(np.log10(linear)), np.log10(most) + 1e-9)
        decades = decades[:: max(1, -(-decades.size // 4))]
        levels = np.concatenate([-decades[::-1], [0.0], decades])
        kind: dict[str, Any] = {"kind": "symlog", "linear": linear}
    else:
        most = float(getattr(norm, "halfrange", None) or 1.0)
        levels, kind = (
            scale_of([np.array([-most, most])], low=-most, high=most, log=False, count=8).levels,
            {"kind": "linear"},
        )
    texts = [f"{abs(v):.3g}" for v in levels] if what.name == "ratio" else labels(levels)
    return kind | {
        "low": -most,
        "high": most,
        "levels": levels.tolist(),
        "ticks": [[value, text] for value, text in zip(levels.tolist(), texts, strict=True)],
        "flat": bool(noise),
    }


# ---- one file


def _file(surface: Surface, source: PageSource, names: Sequence[str], options: FigureOptions) -> dict[str, Any]:
    """Numbers of one file, its path, figures and origin; the source holds the file as it is."""
    own = [name for name in names if _holds(surface, name)]
    read = {name: values_of(surface, name)[0] for name in own}
    measure_of = {name: _measure(surface, name) for name in own}
    path = options.training_path(surface)
    return {
        "title": printable(source.title),
        "x": surface.grid.x.tolist(),
        "y": None if surface.grid.y is None else surface.grid.y.tolist(),
        "along": _along(surface),
        "fixed": surface.attributes.get(FIXED_COORDINATE),
        "axes": [STEP, ""] if is_training(surface) else [printable(label) for label in axis_labels(surface)],
        "values": {name: packed(values) for name, values in read.items()},
        "errors": {name: errors for name, values in read.items() if (errors := _errors(surface, name, values))},
        "status": {name: packed(states) for name, states in surface.status.items() if name in measure_of.values()},
        "statusOf": measure_of,
        "models": list(_models(surface)),
        "path": None if path is None else _path(path),
        "signs": _signs(surface, own, read),
        "between": packed((surface[MEASURED] == 0).astype(np.uint8)) if MEASURED in surface else None,
        "notes_text": "\n".join([*refinement_notes([surface]), *accuracy_notes(surface)]),
        "figures": list(_figures(source)),
        "provenance": list(_provenance(source.surface)),
    }


def _models(surface: Surface) -> Iterator[dict[str, Any]]:
    """Where models stand, on a line or a plane, and what each is called."""
    if is_training(surface):
        return
    if is_line(surface):
        for x, name in zip(model_positions(surface), line_ends(surface), strict=False):
            yield {"x": x, "y": 0.0, "name": name}
        return
    for x, y, name in ((0.0, 0.0, "model"), *models_on_plane(surface)):
        yield {"x": x, "y": y, "name": printable(name)}


def _path(path: Group) -> dict[str, Any]:
    """The path's points, their losses (null where there is none), and areas in squared points of type."""
    points = {axis: np.asarray(path[axis], float).tolist() for axis in ("x", "y")}
    losses = [float(loss) if np.isfinite(loss) else None for loss in path["loss"]] if "loss" in path else None
    return {**points, "loss": losses, "sizes": checkpoint_sizes(path).tolist(), "field": PATH_LOSS}


def _signs(surface: Surface, names: Sequence[str], values: Mapping[str, np.ndarray]) -> dict[str, Packed]:
    """The cells of signed fields that are hatched, (ny nx) each: 1 below 0, 2 undecided, as the print hatches them."""
    packed_signs = {}
    for name in () if is_line(surface) else names:
        hatched = hatched_signs(surface, quantity(surface, name), values[name])
        if hatched:
            signs = sum(np.uint8(code) * hatched[word] for word, code in SIGN_CODES.items() if word in hatched)
            packed_signs[name] = packed(np.asarray(signs, np.uint8))
    return packed_signs


def _along(surface: Surface) -> str:
    """The name of the coordinate that a line runs along, and of the first one of a plane."""
    if is_training(surface):
        return STEP
    return "t" if "connection" in surface.groups else str(surface.attributes.get(LINE_AXIS, "x"))


def _measure(surface: Surface, name: str) -> str:
    base = "max_eig" if name == "ratio" else name.partition(":")[0]
    return next((measure for measure, fields in surface.measures.items() if base in fields), "")


def _errors(surface: Surface, name: str, values: np.ndarray) -> dict[str, Any] | None:
    """Where the bars of a field come from: another field, a share of the value, or numbers of their own."""
    if name == "ratio":
        return dict(packed(_rounded_up(ratio_errors(surface, values))))
    if ":" in name:
        return None
    between = errors_between(surface, name, values)
    if between is not None:
        return dict(packed(_rounded_up(between)))
    for beside in (f"{name}_error", f"{name}_noise_error"):
        if beside in surface and surface.about[beside].extra is None:
            return {"field": beside}
    errors, kind = field_errors(surface, name, values)
    known = np.isfinite(values) & (values != 0)
    if kind != ROUNDED or not known.any():
        return None
    return {"relative": float((errors[known] / np.abs(values[known])).max())}


def _rounded_up(errors: np.ndarray) -> np.ndarray:
    """Errors >= 0 with few bits, so that they pack well; none is smaller than it was."""
    with np.errstate(invalid="ignore"):
        parts, exponents = np.frexp(errors)
        return np.asarray(np.ldexp(np.ceil(parts * 2.0**ERROR_BITS) / 2.0**ERROR_BITS, exponents))


def _summary(surface: Surface) -> str:
    """How far the file is, in one line."""
    parts = []
    for measure in surface.status:
        counts = surface.counts(measure)
        text = f"{measure}: {counts['done']:,} of {sum(counts.values()):,} points"
        parts.append(text + (f", {counts['failed']:,} failed" if counts["failed"] else ""))
    return printable("; ".join(parts))


def _figures(source: PageSource) -> Iterator[dict[str, str]]:
    """The figures of what the file holds beside its surface, each with its report."""
    surface = source.surface
    kinds = other_kinds(surface)
    if is_training(surface):
        kinds = ("training", *kinds)
    for kind in kinds:
        check_groups(surface, kind)
        entry = {"tab": TABS[kind], "title": TABS[kind], "text": _report(surface, kind)}
        try:
            figure = _figure(surface, kind)
        except ValueError as error:  # too little is there yet: the tab says so
            yield entry | {"text": "\n".join(filter(None, (str(error), entry["text"])))}
            continue
        content = io.BytesIO()
        with matplotlib.rc_context(STYLE):
            figure.savefig(content, format="svg", metadata={"Date": None})
        yield entry | {"svg": _deflated(with_numbered_ids(content.getvalue()))}


def _figure(surface: Surface, kind: str) -> Figure:
    if kind == "training":
        with style_context():
            return draw_training([surface], None, FigureOptions())
    return draw_content([surface], kind, None, None)


def _report(surface: Surface, kind: str) -> str:
    """The reports of the groups of a kind, which say in words what the figure shows.

    Raises Damaged where a number that a report needs is not there, or none.
    """
    first = GROUPS.get(kind, kind)
    texts = []
    for name, group in surface.groups.items():
        if name != first and not name.startswith(f"{first}/"):
            continue
        try:
            text = report_of_group(name, group.arrays, group.attributes)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            words = f"is damaged: {name} has parts of which no report can be made"
            raise Damaged(f"{surface.source or 'what is to be shown'} {words}") from error
        texts.append(text or str(group.attributes.get("verdict", "")))
    return printable("\n\n".join(filter(None, texts)))


def _provenance(surface: Surface) -> Iterator[tuple[str, str]]:
    """The command, what was run when, versions and settings: pairs of a name and a text."""
    attributes = surface.attributes
    if "command_line" in attributes:
        program, *words = str(attributes["command_line"]).split(" ")
        if PurePath(program).name in ("__main__.py", "lossmap"):
            program = "lossmap"
        yield "command", printable(" ".join([program, *words]))
    for name, value in attributes.items():
        if name == "command_line" or name.startswith(("resolved_", "code_")):
            continue
        yield printable(name.replace("_", " ")), printable(str(value))
    for name, value in _leaves(surface.settings):
        yield printable(name), printable(value)


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as names joined by dots, and texts; those that are not set are left out."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)
