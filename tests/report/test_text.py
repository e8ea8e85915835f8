"""Sentences of reports: none may contradict its own numbers."""

from math import inf

import pytest

from lossmap.report.blocks import BlockSummary, block_text
from lossmap.report.text import percent_with_error


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


def test_negative_counts_beside_a_smallest_eigenvalue_that_is_not_resolved_from_them():
    """A density sees negative eigenvalues where the extreme one found lies within its error of zero."""
    block = BlockSummary(
        "1.weight", "1", 1536, 4e-5, 9e-10, 4e-5, inf, 2e-8, 4e-11, 2e-7, True, (515, 1533), (2, 922), (0, 1019),
        "indefinite", "",
    )  # fmt: skip
    text = block_text(block)
    assert "2-922 eigenvalues negative (the smallest found, 9e-10 +- 2e-08, is not resolved from them)" in text
