"""The page on costs holds no figure that is not among the benchmarks' results."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "cost.md").read_text()
RESULTS = (ROOT / "benchmarks" / "RESULTS.md").read_text()
DERIVED = {"2.5": 23.6 / 9.3}  # quotients of figures that stand there


def numbers(text):
    """The numbers of a text, without thousands separators, .5 as 0.5."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text)
    found = re.findall(r"(?<![\w.-])\d*\.?\d+(?:e-?\d+)?(?![\w.]*\w)", text)
    return {f"0{number}" if number.startswith(".") else number for number in found}


def test_every_figure_is_among_the_results():
    own = numbers(re.sub(r"`[^`]*`", "", PAGE)) - {"0"}
    measured = numbers(RESULTS.replace("-", " ")) | numbers(RESULTS)
    assert len(own) > 25
    assert {n for n in own - measured if n not in DERIVED} == set()
    for number, value in DERIVED.items():
        assert abs(float(number) - value) < 0.05
