"""Sentences of reports: none may contradict its own numbers."""

import re
from math import inf, nan
from pathlib import Path

import pytest

from lossmap.report.blocks import BlockSummary, block_text
from lossmap.report.text import (
    filled,
    interval_text,
    meaningful_digits,
    percent_with_error,
    raised_error,
    table,
    value_with_error,
    wrapped,
)

ROOT = Path(__file__).resolve().parents[2]
OWN_DIGITS = re.compile(r"(?:\{[^{}]*:[^{}]*\.\d[efg]\}|%\.\d[efg]) ?(?:\+-|\u00b1|&plusmn;|&#177;) ?(?:\{|%)")


@pytest.mark.parametrize(
    "share, error, text",
    [
        (0.25, 0.125, "25 +- 12 %"),
        (0.0833, 0.08, "8.3 +- 8.0 %"),
        (0.5, 0.0412, "50.0 +- 4.1 %"),
        (1.0, 0.0, "100 +- 0 %"),
    ],
)
def test_shares_with_errors_are_written_in_plain_digits(share, error, text):
    assert percent_with_error(share, error) == text


@pytest.mark.parametrize(
    "value, error, text",
    [
        (4.2567568, 8.4e-6, "4.2567568 +- 8.4e-06"),
        (1.0986123, 1.3e-7, "1.0986123 +- 1.3e-07"),  # a zero at the end is left out
        (12.3449, 0.0123, "12.345 +- 0.012"),
        (-0.5, 3.0, "-0.5 +- 3"),
        (0.0, 0.02, "0 +- 0.02"),
        (4.0, 0.0, "4"),
        (4.0, nan, "4"),
        (nan, 1.0, "not found"),
    ],
)
def test_a_value_has_as_many_digits_as_its_error(value, error, text):
    assert value_with_error(value, error) == text
    assert text == "not found" or text.partition(" ")[0] == meaningful_digits(value, error)


def test_the_ends_of_an_interval_have_as_many_digits_as_tell_them_apart():
    assert interval_text(4.25674, 4.25677) == "4.25674 to 4.25677"
    assert interval_text(1.0, 3.0) == "1 to 3" and interval_text(-inf, inf) == "-inf to inf"


def test_no_module_prints_a_value_and_its_bar_with_digits_of_its_own():
    assert OWN_DIGITS.search('f"{value:.4g} +- {error:.2g}"') and OWN_DIGITS.search('"%.4g +- %.1g"')
    for path in (ROOT / "lossmap").rglob("*.py"):
        found = OWN_DIGITS.findall(path.read_text())
        assert not found, f"{path}: {found}"


def test_the_ends_of_a_block_have_the_digits_of_their_error():
    block = BlockSummary(
        "1.weight", "1", 3, 4.2567568, 1.0986123, 4.2567568, inf, 8.4e-6, 4e-11, 2e-7, True, (3, 3), (0, 0), (0, 0),
        "undecided", "",
    )  # fmt: skip
    assert "from 1.0986123 +- 8.4e-06 to 4.2567568 +- 8.4e-06; 3 positive" in block_text(block)


def test_negative_counts_beside_a_smallest_eigenvalue_that_is_not_resolved_from_them():
    """A density sees negative eigenvalues where the extreme one found lies within its error of zero."""
    block = BlockSummary(
        "1.weight", "1", 1536, 4e-5, 9e-10, 4e-5, inf, 2e-8, 4e-11, 2e-7, True, (515, 1533), (2, 922), (0, 1019),
        "indefinite", "",
    )  # fmt: skip
    text = block_text(block)
    assert "2-922 eigenvalues negative (the smallest found, 9e-10 +- 2e-08, is not resolved from them)" in text


def test_lines_are_filled_to_a_terminal_and_numbers_stay_with_their_errors():
    text = ", ".join(f"{i + 0.125:.3f} +- 0.002 (95 % interval)" for i in range(12))
    lines = wrapped("largest", text)
    assert max(map(len, lines)) <= 80 and len(lines) > 3
    assert not any(line.rstrip().endswith("+-") or line.lstrip().startswith(("+-", "%")) for line in lines)
    assert " ".join(line.strip() for line in lines).removeprefix("largest").strip() == text


def test_a_label_longer_than_its_column_has_a_line_of_its_own():
    assert wrapped("a.very.long.name.of.a.tensor", "zero") == ["  a.very.long.name.of.a.tensor", " " * 16 + "zero"]


def test_a_word_longer_than_a_line_is_not_cut():
    assert filled("short " + "x" * 90 + " short", 40) == ["short", "x" * 90, "short"]


def test_columns_that_find_no_room_go_below_behind_the_same_names():
    rows = [["block", *(f"column {i}" for i in range(12))], *([name, *["1234"] * 12] for name in ("fc1", "fc2"))]
    assert "column 3" in table(rows, breaks=[5])[0] and "column 4" not in table(rows, breaks=[5])[0]
    lines = table(rows, right=range(1, 13))
    assert max(map(len, lines)) <= 80
    heads = [line.split() for line in lines if "block" in line]
    assert len(heads) == 2 and all(head[0] == "block" for head in heads)
    assert sum(line.count("column") for line in lines) == 12 and sum("fc2" in line for line in lines) == 2


def test_of_a_traceback_the_first_line_of_the_message_is_told():
    frame = 'Traceback (most recent call last):\n  File "net.py", line 3, in forward\n    raise X\n    ^^^^^^^\n'
    assert raised_error(f"{frame}CheckpointError: 9 tensors, then 5.\n\nTip: see\n  there for examples.\n") == (
        "CheckpointError: 9 tensors, then 5."
    )
    assert raised_error(f"{frame}RuntimeError: Error(s) in loading Net:\n\tmissing keys: a\n\tmore") == (
        "RuntimeError: Error(s) in loading Net: missing keys: a"
    )
    assert raised_error(f"{frame}KeyError: 'a'\n\nDuring that:\n\n{frame}ValueError: b\n") == "ValueError: b"
    assert raised_error(f"{frame}KeyError") == "KeyError" and raised_error("") == ""
    assert raised_error("rank 1 left\nno answer for 10 s\n") == "no answer for 10 s"
