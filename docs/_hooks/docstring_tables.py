"""Docstrings as mkdocstrings takes them: examples as sections, aligned columns of names and meanings as tables.

Public functions have docstrings in Google's style, whose section `Example:` is `Examples:` to Griffe, the reader of
sources behind mkdocstrings. Others list names as `name   what it is`, with continued lines indented below the meaning.
Griffe calls `on_object` for each object that it has read.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe

ENTRY = re.compile(r"^(\*{0,2}[A-Za-z_][\w.,/ *]*?) {2,}(\S.*)$")
SHORT_ENTRY = re.compile(r"^([a-z_]\w*) (\S.*)$")


class DocstringTables(griffe.Extension):
    """Rewrites docstrings for the site."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    paragraphs = re.split(r"\n[ \t]*\n", inspect.cleandoc(docstring))
    return "\n\n".join(_paragraph(p) for p in paragraphs)


def _paragraph(text: str) -> str:
    lines = text.strip("\n").splitlines()
    if lines and lines[0] == "Example:":
        return text.replace("Example:", "Examples:", 1)
    if lines and (lines[0].startswith(" ") or re.match(r"^[A-Z]\w+:$", lines[0])):  # of a section
        return text
    if any(line.lstrip().startswith(">>>") for line in lines):
        return "```pycon\n" + inspect.cleandoc(text) + "\n```"
    if any(line.strip().startswith(("```", "|", "- ", "* ")) for line in lines):
        return text
    before: list[str] = []
    rows: list[list[str]] = []
    column = 0
    for line in lines:
        match = ENTRY.match(line)
        if match and not before:
            column = match.start(2)
            rows.append([match[1].strip(), match[2]])
        elif rows and line.startswith(" " * min(2, column)):
            rows[-1][1] += " " + line.strip()
        elif rows and (short := SHORT_ENTRY.match(line)) and short.start(2) == column:
            rows.append([short[1], short[2]])
        elif rows:
            return _table(rows) + "\n\n" + "\n".join(lines[lines.index(line) :])
        else:
            before.append(line)
    if not rows:
        return text
    return _table(rows)


def _table(rows: list[list[str]]) -> str:
    cells = [f"| `{name}` | {meaning.replace('|', chr(92) + '|')} |" for name, meaning in rows]
    return "\n".join(["| argument | meaning |", "|---|---|", *cells])
