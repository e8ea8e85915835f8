"""The reference of the Python interface has every public name once, and no other."""

import re
from pathlib import Path

import lossmap

PAGES = sorted((Path(__file__).resolve().parents[2] / "docs" / "reference" / "api").glob("*.md"))


def test_every_public_name_has_one_place_in_the_reference():
    directives = [
        name for page in PAGES for name in re.findall(r"^::: lossmap\.(\w+)$", page.read_text(), re.MULTILINE)
    ]
    assert sorted(directives) == sorted(set(lossmap.__all__) - {"__version__"})


def test_the_index_of_the_reference_links_to_every_name():
    index = next(page for page in PAGES if page.name == "index.md").read_text()
    for name in set(lossmap.__all__) - {"__version__"}:
        assert re.search(rf"\[`{name}`\]\(\w+\.md#lossmap\.{name}\)", index), name
