"""The look: column widths, type, colours, and the saving of a figure. Never pyplot, so no screen is needed.

Widths are those of one column and of a page of two, 3.3 and 6.75 inches; type is 8 points; PDF carries its fonts
as TrueType (type 42), which journals ask for. A style (`--style`) sets widths and type as a journal asks for them; the
fonts are those of it that this machine has, else STIX, which matplotlib brings along, or DejaVu Sans.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from lossmap.plotting.fonts import complete_fonts

COLUMN, PAGE = 3.3, 6.75  # inches
LOSS, ACCURACY, RATIO = "viridis", "cividis", "RdBu_r"  # colour maps
BLUE, RED, GREEN, PURPLE = "#1f5a99", "#b5442c", "#2f7d4f", "#6b4c9a"  # of lines; the first two mean loss, accuracy
GREY, DARK = "0.86", "0.45"  # cells without a value, and their hatching

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3,
    "hatch.linewidth": 0.5,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 4),
    "legend.frameon": False,
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "lossmap",  # else the names of parts within an SVG are drawn by chance
    "savefig.dpi": 300,
    "figure.dpi": 150,
}
SMALLEST_TYPE = 5.0  # points, that journals print
MAX_LINE = 30  # characters of an axis label, with which the word for its scale stands on one line
NOTEBOOK_DPI = 110
FORMATS = ("pdf", "png", "svg", "eps", "jpg", "tif", "webp")


@dataclass(frozen=True)
class Style:
    """Widths in inches, and what changes in matplotlib's settings; of the fonts the first that is there is taken."""

    column: float = COLUMN
    page: float = PAGE
    settings: Mapping[str, Any] = field(default_factory=dict)
    fonts: tuple[str, ...] = ()
    math: str = "dejavusans"

    def rc(self) -> Any:
        """Matplotlib's settings."""
        fonts: dict[str, Any] = {}
        if self.fonts:
            there = set(font_manager.get_font_names())
            first = [name for name in self.fonts if name in there][:1]
            fonts = {"font.family": [*first, "DejaVu Sans"], "mathtext.fontset": self.math}
        return {**STYLE, **fonts, **self.settings}


def _sizes(text: float, ticks: float) -> dict[str, float]:
    """Type sizes in points: of text, and of ticks and legends."""
    return {
        **dict.fromkeys(("font.size", "axes.labelsize", "axes.titlesize"), text),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), ticks),
    }


TIMES = ("Times New Roman", "Times", "Nimbus Roman", "TeX Gyre Termes", "STIXGeneral")
HELVETICA = ("Helvetica", "Arial", "Nimbus Sans", "TeX Gyre Heros", "DejaVu Sans")
# Widths by the authors' kits: NeurIPS has one column of 5.5 inches, of which a figure takes half or all; ICML columns
# of 3.25 and a page of 6.75; IEEE 3.5 and 7.16; Nature 89 and 183 mm, with 5 to 7 points of a sans-serif face.
STYLES = {
    "neurips": Style(2.7, 5.5, _sizes(8, 7), TIMES, "stix"),
    "icml": Style(3.25, 6.75, _sizes(8, 7), TIMES, "stix"),
    "ieee": Style(3.5, 7.16, _sizes(8, 7), TIMES, "stix"),
    "nature": Style(3.5, 7.2, _sizes(7, 6), HELVETICA),
}
DEFAULT = Style()
_current: ContextVar[Style] = ContextVar("style", default=DEFAULT)
_styles_of_figures: WeakKeyDictionary[Figure, Style] = WeakKeyDictionary()


def style_of(name: str | os.PathLike[str] | None) -> Style:
    """The style of this name, or of a file .mplstyle, whose figure.figsize gives the width of a column.

    Raises ValueError for another name, or a file that is not there or no style.
    """
    if name is None:
        return _current.get()
    if str(name) in STYLES:
        return STYLES[str(name)]
    if Path(name).suffix != ".mplstyle":
        raise ValueError(f"--style must be one of {', '.join(STYLES)}, or a file .mplstyle; got {str(name)!r}")
    try:
        settings: dict[Any, Any] = dict(matplotlib.rc_params_from_file(name, use_default_template=False))
    except (OSError, ValueError) as error:
        raise ValueError(f"the style {name} cannot be read: {error}") from error
    width = float(settings.pop("figure.figsize", (COLUMN, 0.0))[0])
    return Style(width, max(width, PAGE), settings)


def column_width() -> float:
    """The width of one column in the style that is set, inches."""
    return _current.get().column


def page_width() -> float:
    """The width of a page in the style that is set, inches."""
    return _current.get().page


def type_size(points: float) -> float:
    """A size of type in the default look, larger or smaller as the style that is set has its legends; 5 at least."""
    legend = FontProperties(size=matplotlib.rcParams["legend.fontsize"]).get_size_in_points()
    return float(max(points * legend / STYLE["legend.fontsize"], min(points, SMALLEST_TYPE)))


@contextlib.contextmanager
def style_context(style: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Inside, what is drawn has this look; outside, the user's own matplotlib settings are as they were.

    style  as `style_of`; the one that is set already if left out
    """
    chosen = style_of(style)
    token = _current.set(chosen)
    try:
        with matplotlib.rc_context(chosen.rc()):
            yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def width_context(width: float | None) -> Iterator[None]:
    """Inside, a figure is laid out for this width, inches, be it of one column or a page; None: as it is."""
    style = _current.get()
    token = _current.set(style if width is None else replace(style, column=width, page=width))
    try:
        yield
    finally:
        _current.reset(token)


def _take_literally(figure: Figure) -> bool:
    """Turn off the formulas of texts that cannot be read as one; whether there were any."""
    parser, found = MathTextParser("path"), False
    for text in figure.findobj(Text):
        words = text.get_text()
        if "$" not in words or not text.get_parse_math():
            continue
        try:
            parser.parse(words, 72, text.get_fontproperties())
        except ValueError:
            text.set_parse_math(False)
            found = True
    return found


class ShownFigure(Figure):
    """A figure that is shown where it is the value of a notebook's cell, though pyplot has not been imported."""

    def draw(self, renderer: Any) -> None:
        """As matplotlib's; a name that looks like a formula and is none, such as `a$b_{$`, stands as it is."""
        try:
            super().draw(renderer)
        except ValueError:
            if not _take_literally(self):
                raise
            super().draw(renderer)

    def savefig(self, *args: Any, **kwargs: Any) -> None:
        """As matplotlib's; characters that the font lacks are taken from others, or named in one line."""
        with complete_fonts(self):
            super().savefig(*args, **kwargs)

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        with matplotlib.rc_context(_styles_of_figures.get(self, DEFAULT).rc()):
            self.savefig(picture, format="png", dpi=NOTEBOOK_DPI)
        return picture.getvalue()


def new_figure(width: float, height: float, compressed: bool = False) -> Figure:
    """An empty figure of this size in inches, laid out so that nothing overlaps; compressed around square panels."""
    figure = ShownFigure(figsize=(width, height), layout="compressed" if compressed else "constrained")
    FigureCanvasAgg(figure)
    _styles_of_figures[figure] = _current.get()
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.04, h_pad=0.04, wspace=0.02, hspace=0.02)
    return figure


def name_scales(figure: Figure) -> None:
    """Add the word for its scale to the label of each axis that is not linear and does not say so."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            label, scale = axis.label.get_text(), axis.get_scale()
            if label and scale != "linear" and not re.search("scale|linear", label):
                gap = ", "
                if axis is axes.yaxis or len(label.rpartition("\n")[2]) > MAX_LINE:
                    gap = ",\n"  # a line of its own, or the label is longer than its axis
                axis.label.set_text(f"{label}{gap}{scale} scale")


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 300) -> Path:
    """Write a figure as its ending says (pdf, png, svg, ...) and return its path; it appears whole or not at all.

    dpi  of pixel formats, and of what is rasterized in the others

    The figure's label, which is its caption, becomes the PDF's subject, and the description of a PNG or an SVG.

    Raises ValueError for an ending that is no picture; FileNotFoundError, PermissionError or OSError in a sentence.
    """
    path = Path(path)
    kind = path.suffix.lower().lstrip(".")
    kind = {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)
    if kind not in FORMATS:
        raise ValueError(f"a picture is one of {', '.join(FORMATS)}, by the ending of its name; got {str(path)!r}")
    metadata = _metadata(kind, str(figure.get_label()))
    style = _styles_of_figures.get(figure, DEFAULT)
    with appears_whole(path) as part, matplotlib.rc_context(style.rc()):
        figure.savefig(part, format=kind, dpi=dpi, metadata=metadata or None)
        if kind == "svg":
            part.write_bytes(with_numbered_ids(part.read_bytes()))
    return path


def with_numbered_ids(svg: bytes) -> bytes:
    """An SVG of matplotlib's, whose parts are named by their order.

    Matplotlib names them by a digest of places to the last bit, which a layout does not always give twice.
    """
    numbers: dict[bytes, int] = {}

    def named(match: re.Match[bytes]) -> bytes:
        return match[1] + match[2] + b"%010d" % numbers.setdefault(match[2] + match[3], len(numbers))

    return re.sub(rb'(\bid="|url\(#|href="#)([A-Za-z]\w*?)([0-9a-f]{10})(?=["\)])', named, svg)


def _metadata(kind: str, caption: str) -> dict[str, Any]:
    """What a file of this kind says of itself; no dates, which would make two drawings of one surface differ."""
    metadata: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
    keys = {"pdf": "Subject", "png": "Description", "svg": "Description"}
    if caption and kind in keys:
        metadata[keys[kind]] = caption
    return metadata


@contextlib.contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A place to write to, which becomes the file when all is written: it appears whole or not at all.

    Raises IsADirectoryError, FileNotFoundError, PermissionError or OSError with one sentence.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist: make it first, or name another file")
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(f"{path} cannot be written: no permission in {path.parent}") from error
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error
