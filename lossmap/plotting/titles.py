"""Titles: names that tell files apart, broken into lines that fit their panels. Widths are inches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from matplotlib import rcParams
from matplotlib.font_manager import FontProperties

NAME_LETTER = 0.64  # of the size of type, how wide a letter of a file's name is: digits and underscores are wide
LEGEND_LETTERS = 30  # of a name in the legend of a column
BESIDE_NAME = 0.45  # inches, that a legend's line and its margins take beside a name
LEAST_LETTERS = 4  # of a line of a name
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def distinct_names(paths: Sequence[PurePath], ending: bool = False) -> list[str]:
    """The files' names, with as many of their folders as tell those of one name apart: run1/net and run2/net.

    ending  whether the names have their endings
    """
    known = [path.parts if ending else (*path.parts[:-1], path.stem) for path in paths]
    names = []
    for parts in known:
        count = 1
        others = {other for other in known if other != parts}
        while count < len(parts) and any(other[-count:] == parts[-count:] for other in others):
            count += 1
        names.append("/".join(parts[-count:]).replace("//", "/"))
    return numbered(names)


def numbered(names: Sequence[str]) -> list[str]:
    """Names of which equal ones are told apart by a number behind the second, the third, ..."""
    result: list[str] = []
    for name in names:
        own, count = name, 1
        while own in result:
            count += 1
            own = f"{name} ({count})"
        result.append(own)
    return result


def broken_name(name: str, letters: float, most: int | None = None) -> str:
    """A name in lines of at most so many letters, broken behind signs such as _ and /; its lines and formulas stay.

    most  lines of it at most: where there is no room for more, the middle of it, or of what follows the last colon,
          gives way to an ellipsis; None: any number
    """
    broken = _broken(name, letters)
    if most is None or broken.count("\n") < most or _has_formula(name):
        return broken
    before, colon, end = name.rpartition(": ")
    return _shortened(before + colon, end, letters, most) or _shortened("", name, letters, most) or broken


def _shortened(before: str, name: str, letters: float, most: int) -> str | None:
    """What stands before a name, and as much of its ends as so many lines hold; None where that is too little."""
    room = int(most * max(letters, LEAST_LETTERS)) - len(before)
    for kept in range(min(len(name) - 1, room), LEAST_LETTERS, -1):
        broken = _broken(f"{before}{name[: -(-kept // 2)]}{ELLIPSIS}{name[len(name) - kept // 2 :]}", letters)
        if broken.count("\n") < most:
            return broken
    return None


def _broken(name: str, letters: float) -> str:
    if "\n" in name:
        return "\n".join(_broken(line, letters) for line in name.split("\n"))
    if len(name) <= letters:
        return name
    if _has_formula(name):  # broken at blanks outside of any
        words = re.findall(r"(?:\$[^$]*\$|[^\s$]|\$)+", name)
        return "\n".join(_filled(words, letters))
    most = max(LEAST_LETTERS, int(letters))
    lines = [""]
    for piece in re.findall(r"[^\s_\-./,]*[\s_\-./,]*", name):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > most:
            lines.append("")
        lines[-1] += piece
        while len(lines[-1].rstrip()) > most:
            lines[-1:] = [lines[-1][:most], lines[-1][most:]]
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _has_formula(name: str) -> bool:
    return name.count("$") > 1


def legend_letters(width: float) -> float:
    """How many letters of a name a line of a legend has in a figure of this width: LEGEND_LETTERS where they fit."""
    size = FontProperties(size=rcParams["legend.fontsize"]).get_size_in_points()
    return min(LEGEND_LETTERS, 72 * (width - BESIDE_NAME) / (NAME_LETTER * size))


def _filled(words: Sequence[str], letters: float) -> list[str]:
    """Words in lines of at most so many letters, if none alone is longer."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= letters:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def set_titles(
    panels: Sequence[Any], titles: Sequence[str], width: float, columns: int = 1, grow: bool = True, **place: Any
) -> None:
    """Titles over panels of this width, in lines that fit.

    panels   of a figure, row by row with so many columns, or an axes of the caller's own
    grow     whether the figure grows by the lines, as one of the caller's own must not
    place    further keywords of matplotlib's set_title
    """
    size = FontProperties(size=rcParams["axes.titlesize"]).get_size_in_points()
    broken = [broken_name(title, 72 * width / (NAME_LETTER * size)) for title in titles]
    for axes, title in zip(panels, broken, strict=False):
        axes.set_title(title, **place)
    more = [title.count("\n") for title in broken]
    lines = sum(max(more[i : i + columns]) for i in range(0, len(more), columns))
    if lines and grow:
        figure = panels[0].figure
        figure.set_figheight(figure.get_figheight() + 1.25 * size * lines / 72)


def entitle(figure: Any, titles: Sequence[str] | None) -> None:
    """Put the title of one file, if there is any, above its figure, which grows by the lines."""
    if titles:
        title = broken_name(titles[0], 72 * figure.get_figwidth() / (NAME_LETTER * 9))
        head = [text for text in figure.texts if text.get_position()[1] > 0.9]  # words above the panels, as of a sheet
        tall = figure.get_figheight()
        more = 13 * (title.count("\n") + 1) / 72
        above = figure.suptitle(title, fontsize=9)
        figure.set_figheight(tall + more)
        if head:
            for text in head:
                text.set_y(text.get_position()[1] * tall / (tall + more))
            layout = figure.get_layout_engine()
            left, low, wide, high = layout.get()["rect"]
            layout.set(rect=(left, low, wide, high * tall / (tall + more)))
            above.set(y=1.0 - 0.03 / tall, in_layout=False)
