"""A caption for a figure, from what its file says: what, of which model, where, on which samples, and how sure.

It names what it knows and is silent about the rest; of a path it gives the file's name alone. The same text is the
description of the picture's file (`style.save`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.io.surface import FAILED, Surface
from lossmap.plotting.between_points import refinement_notes
from lossmap.plotting.notes import accuracy_notes
from lossmap.plotting.quantities import best_field, contents_of, holds_points, is_line, values_of

NORMS = {"filter": "filter-normalized", "layer": "layer-normalized", "weight": "normalized weight by weight"}
IN_WORDS = {
    "ratio": "ratio of the extreme Hessian eigenvalues",
    "eigen": "extreme Hessian eigenvalues",
    "convexity": "sign of the smallest Hessian eigenvalue, with levels of the loss,",
    "spectrum": "Hessian spectrum",
    "layers": "Hessian layer by layer",
    "path": "training path",
    "topology": "minima of a surface",
    "connection": "line between two networks",
}


def caption_of(
    surfaces: Sequence[Surface],
    kind: str,
    field: str | None,
    titles: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The caption of a figure of these results, in whole sentences.

    kind    of the figure, as `draw` takes it; field: what is shown, the best one if left out
    titles  one for each surface, before its sentences where there are several
    notes   further sentences, without a full stop
    """
    parts = []
    for i, surface in enumerate(surfaces):
        title = f"{titles[i]}: " if titles and len(surfaces) > 1 else ""
        parts.append(title + " ".join(_sentences(surface, kind, field)))
    return " ".join([*parts, *(f"{_capital(note)}." for note in notes)])


def _sentences(surface: Surface, kind: str, field: str | None) -> list[str]:
    """What is known of one surface."""
    what = IN_WORDS.get(kind, f"{kind} figure")
    name = field
    if kind in ("filled", "contour", "map", "3d", "line", "median", "auto") and holds_points(surface):
        name = field or best_field(surface)
        what = IN_WORDS.get(name) or _described(surface, name)
    words = [what, *_of_model(surface)]
    if holds_points(surface):
        words += _over(surface)
    text = " ".join([*words, *_on_samples(surface, kind, name)]).rstrip(",")
    sentences = [f"{_capital(text)}."]
    if holds_points(surface):
        sentences += _holes(surface, name if kind not in ("eigen", "convexity") else "max_eig")
        sentences += [f"{_capital(note)}." for note in refinement_notes([surface])]
        if kind in ("eigen", "convexity") or (name or "").endswith(("eig", "ratio")):
            sentences += [f"{_capital(note)}." for note in accuracy_notes(surface)]
    elif kind not in IN_WORDS:
        sentences += [f"Holds: {', '.join(contents_of(surface))}."]
    return sentences


def _described(surface: Surface, name: str) -> str:
    base = name.partition(":")[0]
    if base not in surface:
        return name
    about = surface.about[base]
    unit = f" ({about.unit})" if about.unit not in ("", "1") else ""
    return f"{about.long_name}{unit}"


def _settings(surface: Surface) -> Mapping[str, Any]:
    """The settings of the command that made the file; none where there was none."""
    for name, text in surface.attributes.items():
        if name.startswith("resolved_"):
            try:
                settings = json.loads(str(text)).get("settings", {})
            except (ValueError, AttributeError, RecursionError):
                continue
            if isinstance(settings, Mapping):
                return settings
    return {}


def _of_model(surface: Surface) -> list[str]:
    """The model, and the file of its weights."""
    given = _settings(surface)
    model = surface.settings.get("file", {}).get("model") or given.get("model")
    if not model:
        return []
    words = f"of {Path(str(model)).name}"
    if given.get("model_file"):
        words += f" ({Path(str(given['model_file'])).name})"
    return [words]


def _over(surface: Surface) -> list[str]:
    """The line or plane: directions, how they were made, ticks."""
    grid = surface.grid
    kinds = [_direction(surface, axis) for axis in ("x", "y")[: 1 if grid.y is None else 2]]
    ticks = [grid.x] if grid.y is None else [grid.x, grid.y]
    count = "\N{MULTIPLICATION SIGN}".join(str(t.size) for t in ticks)
    ends = " and ".join(f"[{t.min():g}, {t.max():g}]" for t in ticks)
    if len(set(map(str, ticks))) == 1:
        ends = f"[{ticks[0].min():g}, {ticks[0].max():g}]" + ("\N{SUPERSCRIPT TWO}" if len(ticks) == 2 else "")
    known = [kind for kind in kinds if kind]
    along = "a line" if is_line(surface) else "a plane"
    if known:
        same = len(set(known)) == 1 and len(known) == 2
        along += f" along two directions, each {known[0]}," if same else f" along {' and '.join(known)}"
    return [f"over {along}, {count} points in {ends},".replace(",,", ",")]


def _direction(surface: Surface, axis: str) -> str:
    """How a direction was made, in words; empty where that is not known."""
    group = surface.groups.get(f"directions/{axis}")
    if group is None:
        return ""
    about = group.attributes
    kind = str(about.get("made_as", about.get("kind", "")))
    words = kind.replace(":", " ")
    if kind.startswith("to:"):
        words = f"to {Path(kind[3:]).name}"
    details = [NORMS[str(about["norm"])]] if about.get("norm") in NORMS else []
    if about.get("ignore") == "biasbn":
        details.append("without biases and batch norm")
    if kind == "random" and "seed" in about:
        details.append(f"seed {about['seed']}")
    return f"{words} ({', '.join(details)})" if details and words else words


def _on_samples(surface: Surface, kind: str, field: str | None) -> list[str]:
    """Samples, data and precision of the measure that is shown."""
    measures = surface.settings.get("measures", {})
    name = "eigen" if kind in ("eigen", "convexity") or (field or "").endswith(("eig", "ratio")) else "loss"
    own: Mapping[str, Any] = measures.get(name) or next(iter(measures.values()), {})
    samples = own.get("samples")
    if not isinstance(samples, Mapping) or not samples:
        return []
    split = (field or "").partition("_")[0]
    chosen = {split: samples[split]} if split in samples else dict(samples)
    counted = " and ".join(f"{int(n):,} {'training' if s == 'train' else s} samples" for s, n in chosen.items())
    words = f"on {counted}"
    if own.get("dataset"):
        words += f" of {Path(str(own['dataset'])).name}"
    if own.get("precision"):
        words += f", in {own['precision']}"
    return [words]


def _holes(surface: Surface, name: str | None) -> list[str]:
    """How many points have no finite value, by the reason."""
    values, status = values_of(surface, name or best_field(surface))
    failed = int((status == FAILED).sum())
    left = int((status == 0).sum())
    not_finite = int((~np.isfinite(values)).sum()) - failed - left
    words = [(left, "not computed"), (failed, "failed"), (not_finite, "not finite")]
    counts = ", ".join(f"{count:,} {word}" for count, word in words if count > 0)
    return [f"Of {values.size:,} points: {counts}."] if counts else []


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
