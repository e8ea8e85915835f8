"""Text from files, made safe to print: without characters that command a terminal or reverse its line.

Escape sequences can rename a window, hide lines or type on some terminals; directional marks show a text in another
order than it is. They are taken out where a file is read, so that terminal, page and figures all show what is left.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# C0 but tab and line feed, DEL and C1, directional marks, and halves of characters, which no terminal can encode
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
ESCAPED = re.compile(r"\\u(?:00[0189][0-9a-fA-F]|007[fF]|061[cC]|20[026][0-9a-fA-F]|[dD][89a-fA-F])")  # of JSON


class MissingCharacters(UserWarning):
    """Characters of a figure that no font of this machine has."""


def printable(text: str) -> str:
    """The text without control characters; a table in JSON also without those that it writes as escapes."""
    text = CONTROL.sub("", text)
    if text[:1] in "{[" and ESCAPED.search(text):
        try:
            return json.dumps(printable_value(json.loads(text)))
        except ValueError:  # no JSON, and shown as it is
            return text
    return text


def printable_value(value: Any) -> Any:
    """Plain values with all their texts made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable_value(key): printable_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [printable_value(item) for item in value]
    return value
