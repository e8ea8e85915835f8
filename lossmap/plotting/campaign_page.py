"""One self-contained HTML page over all members of a campaign: table, small multiples with common scales, links.

Each 2-D field of each measure is a row of maps with one colour scale, each 1-D field a row of lines with common axes,
each spectrum a row of eigenvalues with their bars on one axis. A map is a PNG of one pixel a point, enlarged by the
browser, so that a thousand members are a few megabytes. Scales end, and are logarithmic, as those of the print; signed
fields are white at 0 in its colours. Nothing is loaded from elsewhere, which a content security policy ensures.
"""

from __future__ import annotations

import base64
import html
import os
import struct
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lossmap.geometry.grid import shown_unit
from lossmap.io.read import NotASurface, read
from lossmap.io.surface import Surface
from lossmap.plotting.contour_levels import suits_log, usual_ends
from lossmap.plotting.html import digest_of
from lossmap.plotting.quantities import Quantity, quantity
from lossmap.report.text import value_with_error

Row = Mapping[str, Any]
WIDTH, HEIGHT = 168, 126  # of a small multiple, in pixels
BARS = ("_error", "_limit", "_rounding", "_rounding_measured")  # endings of fields that are not shown
HIDDEN = (
    "name",
    "digest",
    "file",
    "reason",
    "measure",
    "outcome",
    "done",
    "failed",
    "total",
)  # columns that the table shows otherwise
MAX_POINTS_SHOWN = 12  # eigenvalues of a spectrum at either end

STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5c6b7a; --line: #dde3ea; --band: #f6f8fa; --accent: #3b5b92; }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 1240px; padding: 28px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 4px; }
h3 { font-size: 15px; margin: 24px 0 2px; }
p.note { color: var(--soft); margin: 0 0 12px; }
.scroll { overflow: auto; max-height: 420px; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; font-size: 13px; }
th { position: sticky; top: 0; background: var(--band); text-align: left; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th:first-child, td.member { position: sticky; left: 0; background: var(--band); } th:first-child { z-index: 1; }
td.member { max-width: 360px; overflow: hidden; text-overflow: ellipsis; }
th, td { padding: 4px 10px; border-bottom: 1px solid var(--line); } td.number { text-align: right; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.failed { color: #b3261e; } .unfinished, .new { color: #8a6d00; } .bar { color: var(--soft); }
.multiples { display: flex; flex-wrap: wrap; gap: 14px 16px; }
figure { margin: 0; width: 168px; } figcaption { font-size: 12px; line-height: 1.3; overflow-wrap: anywhere; }
figure:target { outline: 2px solid var(--accent); outline-offset: 4px; }
figure img { width: 168px; height: 126px; image-rendering: pixelated; display: block; border: 1px solid var(--line); }
.scale { display: flex; align-items: center; gap: 8px; margin: 4px 0 12px; color: var(--soft); font-size: 13px; }
.scale img { width: 220px; height: 12px; } svg text { font: 9px system-ui, sans-serif; fill: #5c6b7a; }
"""
SORT = """
document.querySelectorAll('th').forEach(head => head.firstElementChild.addEventListener('click', () => {
  const body = head.closest('table').tBodies[0], rows = [...body.rows], up = head.dataset.up !== 'yes';
  const column = head.cellIndex, key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  rows.sort((a, b) => { const x = key(a), y = key(b), d = x - y;
    return (isNaN(d) ? x.localeCompare(y, undefined, {numeric: true}) : d) * (up ? 1 : -1); });
  head.parentElement.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  head.dataset.up = up ? 'yes' : 'no'; rows.forEach(row => body.append(row)); }));
"""


def campaign_page(
    rows: Sequence[Row], title: str, path: Path, notes: Sequence[str] = (), settings: Collection[str] = ()
) -> Path:
    """Write the page, whole. Returns its path.

    rows      of the campaign's table: name, measure, outcome, digest, file, settings, numbers with their bars
    title     of the page, such as the name of the campaign's file
    notes     sentences at its top
    settings  columns that are no results, which stand behind those that are

    Raises OSError where it cannot be written.
    """
    members = _members(rows)
    policy = (
        f"default-src 'none'; script-src '{digest_of(SORT)}'; style-src '{digest_of(STYLE)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = [
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><main><h1>{_text(title)}</h1>{_summary(rows)}",
        *(f'<p class="failed">{_text(note)}</p>' for note in notes),
        *_sections(rows, members, path.parent, frozenset(settings)),
        f"</main><script>{SORT}</script></body></html>",
    ]
    part = path.with_name(path.name + ".part")
    part.write_text("\n".join(parts), encoding="utf-8")
    part.replace(path)
    return path


@dataclass(frozen=True)
class _Member:
    """A member that has a result: its row, what its figures say below them, and the result."""

    row: Row
    caption: str
    surface: Surface


def _members(rows: Sequence[Row]) -> list[_Member]:
    members: dict[str, _Member] = {}
    for row in rows:
        if not row.get("file") or row["digest"] in members:
            continue
        if row["outcome"] == "failed" and not row["failed"]:  # as a whole, such as one whose file is another's
            continue
        try:
            surface = read(row["file"])
        except (NotASurface, OSError):  # the table says what is wrong with it
            continue
        members[row["digest"]] = _Member(row, str(row["name"]).partition(": ")[2] or str(row["name"]), surface)
    return list(members.values())


def _text(value: Any) -> str:
    """Text for a page; control characters, which a name in a file may hold, are left out."""
    return html.escape("".join(c for c in str(value) if c.isprintable()))


# ---- the table


def _summary(rows: Sequence[Row]) -> str:
    counts: dict[str, int] = {}
    for row in rows:
        counts[str(row["outcome"])] = counts.get(str(row["outcome"]), 0) + 1
    seconds = sum({row["digest"]: float(row.get("seconds") or 0.0) for row in rows}.values())
    parts = ", ".join(f'<span class="{_text(word)}">{count:,} {_text(word)}</span>' for word, count in counts.items())
    return f'<p class="note">{len(rows):,} members: {parts}; {seconds / 3600:.3g} rank-hours</p>'


def _table(measure: str, rows: Sequence[Row], folder: Path, settings: Collection[str]) -> str:
    """The members of one measure: numbers and settings that differ, and above the table those that do not."""
    shown = [n for n in _columns(rows) if n not in HIDDEN and not n.endswith("_error")]
    # a member's name says its settings, and what is looked for are the numbers
    names = sorted((name for name in shown if not _is_constant(rows, name)), key=lambda name: name in settings)
    titles = ("member", "outcome", "points", *names, "result")
    head = "".join(f'<th scope="col"><button type="button">{_text(title)}</button></th>' for title in titles)
    lines = [f"<tr>{''.join(_cells(row, names, folder))}</tr>" for row in rows]
    constant = ", ".join(f"{name} {_plain(rows[0][name])}" for name in shown if _is_constant(rows, name))
    note = f'<p class="note">of all: {_text(constant)}</p>' if constant else ""
    return (
        f'<h2>{_text(measure)}</h2>{note}<div class="scroll" tabindex="0" role="region" '
        f'aria-label="members of {_text(measure)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _plain(value: Any) -> str:
    """A value as text."""
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _is_constant(rows: Sequence[Row], name: str) -> bool:
    """Whether a column holds one and the same value in every row; never of a single row."""
    return len(rows) > 1 and all(name in row and row[name] == rows[0].get(name) for row in rows)


def _cells(row: Row, names: Sequence[str], folder: Path) -> Iterator[str]:
    name = _text(row["name"])
    yield f'<td class="member"><a href="#{_text(row["digest"])}" title="{name}">{name}</a></td>'
    reason = f' title="{_text(row["reason"])}"' if row.get("reason") else ""
    yield f'<td class="{_text(row["outcome"])}"{reason}>{_text(row["outcome"])}</td>'
    points = f"{row['done']:,} of {row['total']:,}" if row["total"] else ""  # an examination has none
    yield f'<td class="number" data-value="{row["done"]}">{points}</td>'
    for name in names:
        yield _cell(row.get(name), row.get(f"{name}_error"))
    link = ""
    if row.get("file"):
        link = f'<a href="{_text(os.path.relpath(row["file"], folder))}">{_text(str(row["digest"])[:8])}</a>'
    yield f"<td>{link}</td>"


def _cell(value: Any, error: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"<td>{_text(_plain(value))}</td>"
    shown, _, bar = (value_with_error(value, error) if error is not None else f"{value:.5g}").partition(" +- ")
    bar = f' <span class="bar">&plusmn; {bar}</span>' if bar else ""
    return f'<td class="number" data-value="{value!r}">{shown}{bar}</td>'


# ---- the small multiples


def _sections(
    rows: Sequence[Row], members: Sequence[_Member], folder: Path, settings: Collection[str]
) -> Iterator[str]:
    """By measure the table of its members, and their figures."""
    named: set[str] = set()  # members whose first figure has the anchor that the table links to
    for measure in dict.fromkeys(str(row["measure"]) for row in rows):
        yield _table(measure, [row for row in rows if row["measure"] == measure], folder, settings)
        own = [member for member in members if member.row["measure"] == measure]
        for axes in (2, 1):
            shown = [member for member in own if member.surface.grid.axes == axes and len(member.surface.grid) > 1]
            for name in dict.fromkeys(name for member in shown for name in _fields(member.surface)):
                having = [member for member in shown if name in _fields(member.surface)]
                yield _section(measure, name, having, axes, named)
        spectra = [member for member in own if _eigenvalues(member.surface) is not None]
        if spectra:
            yield _spectra(measure, spectra, named)


def _fields(surface: Surface) -> list[str]:
    """The fields that are shown: over the whole grid, and known somewhere."""
    names = [name for measure, own in surface.measures.items() if measure not in ("audit", "spectrum") for name in own]
    return [
        name
        for name in names
        if not name.endswith(BARS)
        and name != "products"
        and surface.fields[name].shape == surface.grid.shape
        and np.isfinite(surface.fields[name]).any()
    ]


@dataclass(frozen=True)
class _Scale:
    """A common scale of many members' values.

    cmap    the colour map; beyond: the largest value above it, where a few lie far above all others
    holes   whether some values are not known
    """

    low: float
    high: float
    is_log: bool
    cmap: str = "viridis"
    beyond: float | None = None
    holes: bool = False

    @classmethod
    def of(cls, arrays: Sequence[np.ndarray], what: Quantity) -> _Scale:
        """The scale of all finite values, as the print has it: white at 0 of a signed quantity."""
        values = np.concatenate([array[np.isfinite(array)].reshape(-1) for array in arrays])
        holes = values.size < sum(array.size for array in arrays)
        low, high = usual_ends(values)
        beyond = float(values.max()) if values.max() > high else None
        if what.signed:
            low, high = -max(-low, high), max(-low, high)
            return cls(low, high, False, what.cmap, beyond, holes)
        is_log = not what.even and suits_log([values])
        low = float(values[values > 0].min()) if is_log else low
        return cls(low, high, is_log, what.cmap, beyond, holes)

    def share(self, values: np.ndarray) -> np.ndarray:
        """Where values lie on the scale, from 0 to 1; NaN stays."""
        low, high = self.low, self.high
        if self.is_log:
            with np.errstate(divide="ignore"):  # zeros lie below it
                values, low, high = np.log(values), np.log(low), np.log(high)
        if high == low:
            return np.where(np.isfinite(values), 0.5, np.nan)
        return np.clip((values - low) / (high - low), 0.0, 1.0)

    def text(self) -> str:
        """What has to be said of it beside its ends."""
        parts = ["", "one scale for all", "logarithmic" if self.is_log else None]
        parts.append(f"values up to {self.beyond:.4g} beyond" if self.beyond is not None else None)
        parts.append("gaps: not known" if self.holes else None)
        return ", ".join(part for part in parts if part is not None)


def _section(measure: str, name: str, members: Sequence[_Member], axes: int, named: set[str]) -> str:
    what = quantity(members[0].surface, name)
    if axes == 1:  # no colours, and an axis that ends with the values
        what = replace(what, signed=False, even=what.even or what.signed)
    scale = _Scale.of([member.surface.fields[name] for member in members], what)
    unit = shown_unit(members[0].surface.about[name].unit)
    high = f"{scale.high:.4g} {unit}".rstrip()
    draw = _map if axes == 2 else _line
    captions = _captions(members)
    figures = "".join(
        _figure(member, draw(member.surface, name, scale), caption, named)
        for member, caption in zip(members, captions, strict=True)
    )
    bar = "to"
    if axes == 2:
        ramp = _png(np.linspace(0, 1, 220)[None], scale.cmap)
        bar = f'<img alt="colour scale" src="{ramp}">'
    return (
        f"<h3>{_text(measure)}: {_text(members[0].surface.about[name].long_name or name)}</h3>"
        f'<div class="scale">{scale.low:.4g} {bar} {_text(high)}{scale.text()}'
        f'</div><div class="multiples">{figures}</div>'
    )


def _captions(members: Sequence[_Member]) -> list[str]:
    """What tells the members of one row of figures apart: their captions without the parts that all of them have."""
    parts = [member.caption.split(", ") for member in members]
    common = set(parts[0]).intersection(*parts) if len(parts) > 1 else set()
    return [
        ", ".join(part for part in own if part not in common) or member.caption
        for own, member in zip(parts, members, strict=True)
    ]


def _figure(member: _Member, picture: str, caption: str, named: set[str]) -> str:
    digest = str(member.row["digest"])
    anchor = ""
    if digest not in named:
        named.add(digest)
        anchor = f' id="{_text(digest)}"'
    return f"<figure{anchor}>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _map(surface: Surface, name: str, scale: _Scale) -> str:
    """A 2-D field as an image, y upwards; points that are not known are transparent."""
    up = -1 if surface.grid.y is None or surface.grid.y[0] < surface.grid.y[-1] else 1
    right = 1 if surface.grid.x[0] < surface.grid.x[-1] else -1
    source = _png(scale.share(surface.fields[name])[::up, ::right], scale.cmap)
    return f'<img alt="{_text(_in_words(surface, name))}" src="{source}">'


def _in_words(surface: Surface, name: str) -> str:
    """A field for those who do not see its picture: its name and its ends."""
    known = surface.fields[name][np.isfinite(surface.fields[name])]
    about = surface.about[name]
    return f"{about.long_name or name}, {known.min():.4g} to {known.max():.4g} {shown_unit(about.unit)}".rstrip()


def _png(shares: np.ndarray, cmap: str) -> str:
    """Values from 0 to 1, (rows, columns), as the data of a PNG in the colours of a map; NaN is transparent."""
    import matplotlib as mpl

    colours = mpl.colormaps[cmap](np.nan_to_num(shares), bytes=True)
    colours[~np.isfinite(shares)] = 0
    rows, columns = shares.shape
    raw = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(colours))
    chunks = [
        (b"IHDR", struct.pack(">2I5B", columns, rows, 8, 6, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _line(surface: Surface, name: str, scale: _Scale) -> str:
    """A 1-D field as a line over its own ticks; gaps where points are not known."""
    x, y = surface.grid.x, scale.share(surface.fields[name])
    span = float(x[-1] - x[0]) or 1.0
    points = [
        (8 + (WIDTH - 16) * float(t - x[0]) / span, 6 + (HEIGHT - 26) * (1 - float(v)))
        for t, v in zip(x, y, strict=True)
    ]
    pieces: list[list[str]] = [[]]
    for (left, top), value in zip(points, y, strict=True):
        if np.isfinite(value):
            pieces[-1].append(f"{left:.1f},{top:.1f}")
        elif pieces[-1]:
            pieces.append([])
    lines = "".join(
        f'<polyline points="{" ".join(piece)}" fill="none" stroke="#3b5b92" stroke-width="1.5"/>'
        for piece in pieces
        if piece
    )
    return _svg(lines, float(x[0]), float(x[-1]), _in_words(surface, name))


def _svg(content: str, low: float, high: float, words: str) -> str:
    """A small drawing with a frame, and the ends of its horizontal axis."""
    bottom = HEIGHT - 16
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{_text(words)}">'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{bottom}" fill="#fff" stroke="#dde3ea"/>{content}'
        f'<text x="2" y="{HEIGHT - 4}">{low:.3g}</text>'
        f'<text x="{WIDTH - 2}" y="{HEIGHT - 4}" text-anchor="end">{high:.3g}</text></svg>'
    )


# ---- spectra


def _eigenvalues(surface: Surface) -> tuple[np.ndarray, np.ndarray] | None:
    """The eigenvalues at the ends that the first spectrum in a result has, with their errors; None without one."""
    for name, group in surface.groups.items():
        ends = [end for end in ("top", "bottom") if end in group and f"{end}_error" in group]
        if name.startswith("spectrum/") and ends:
            values = [np.asarray(group[end])[:MAX_POINTS_SHOWN] for end in ends]
            errors = [np.asarray(group[f"{end}_error"])[:MAX_POINTS_SHOWN] for end in ends]
            return np.concatenate(values), np.concatenate(errors)
    return None


def _spectra(measure: str, members: Sequence[_Member], named: set[str]) -> str:
    pairs = [pair for member in members if (pair := _eigenvalues(member.surface)) is not None]
    every = np.concatenate([values for values, _ in pairs] + [np.zeros(1)])
    margin = 0.04 * float(every.max() - every.min()) or 1.0
    low, high = float(every.min()) - margin, float(every.max()) + margin
    figures = "".join(
        _figure(member, _strip(*pair, low, high), caption, named)
        for member, pair, caption in zip(members, pairs, _captions(members), strict=True)
    )
    return (
        f"<h3>{_text(measure)}: eigenvalues at the ends</h3>"
        f'<div class="scale">with their errors; one axis for all, from {low:.4g} to {high:.4g}</div>'
        f'<div class="multiples">{figures}</div>'
    )


def _strip(values: np.ndarray, errors: np.ndarray, low: float, high: float) -> str:
    """Eigenvalues along a horizontal axis, the largest on top, each with its bar; a line at zero."""

    def left(value: float) -> float:
        return 8 + (WIDTH - 16) * min(1.0, max(0.0, (value - low) / (high - low)))

    order = np.argsort(-values)
    step = (HEIGHT - 28) / max(1, len(values))
    marks = [f'<line x1="{left(0):.1f}" x2="{left(0):.1f}" y1="1" y2="{HEIGHT - 17}" stroke="#dde3ea"/>']
    for row, index in enumerate(order):
        value, error, top = float(values[index]), float(errors[index]), 8 + step * (row + 0.5)
        marks.append(
            f'<line x1="{left(value - error):.1f}" x2="{left(value + error):.1f}" y1="{top:.1f}" y2="{top:.1f}" '
            f'stroke="#3b5b92"/><circle cx="{left(value):.1f}" cy="{top:.1f}" r="2.4" fill="#3b5b92">'
            f"<title>{value_with_error(value, error).replace('+-', '&#177;')}</title></circle>"
        )
    ends = ", ".join(f"{value:.4g}" for value in values[order])
    return _svg("".join(marks), low, high, f"eigenvalues {ends}")
