"""Characters that a figure's font lacks: taken from another font of this machine, or named in one line.

Matplotlib draws a box for each, and prints a warning for each. File and field names may be in any script.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

from lossmap.io.printable import MissingCharacters

PLACEHOLDERS = "Last Resort"  # in the name of fonts that hold a box for every character


@contextlib.contextmanager
def complete_fonts(figure: Figure) -> Iterator[None]:
    """Inside, the texts of a figure have fonts for all their characters, as far as this machine has them.

    Warns of the others in one line (`MissingCharacters`), where matplotlib has one for each.
    """
    missing = _complete(figure)
    if not missing:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        yield
    warnings.warn(
        f"no font of this machine has the characters {missing} of this figure: a box stands for each; fonts such as "
        "Noto Sans CJK have them",
        MissingCharacters,
        stacklevel=4,
    )


def _complete(figure: Figure) -> str:
    """Give each text the fonts that it needs; returns the characters that no font has."""
    missing: dict[str, None] = {}
    for text in figure.findobj(Text):
        words = text.get_text()
        if words.isascii():
            continue
        lacking = _lacking({c for c in words if not c.isspace()}, tuple(text.get_fontfamily()))
        found = [name for name in dict.fromkeys(map(_font_with, sorted(lacking))) if name]
        if found:
            text.set_fontfamily([*text.get_fontfamily(), *found])
        missing |= dict.fromkeys(c for c in words if c in lacking and not _font_with(c))
    return "".join(missing)


def _lacking(characters: set[str], families: tuple[str, ...]) -> set[str]:
    for family in families:
        characters = {c for c in characters if ord(c) not in _codes(font_manager.findfont(family))}
    return characters


@cache
def _codes(path: str) -> frozenset[int]:
    """The characters that a font file holds."""
    font: Any = font_manager.get_font(path)
    return frozenset(font.get_charmap())


@cache
def _font_with(character: str) -> str:
    """The first font of this machine, by name, that holds a character; empty if none does."""
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda e: (e.name, e.style != "normal", e.fname)):
        if PLACEHOLDERS.replace(" ", "") in entry.name.replace(" ", ""):
            continue
        with contextlib.suppress(RuntimeError, OSError):  # a font that cannot be read
            if ord(character) in _codes(entry.fname):
                return entry.name
    return ""
