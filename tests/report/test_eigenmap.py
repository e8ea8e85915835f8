"""What is said of a map of eigenvalues beside its numbers: signs, and where rounding was measured."""

from __future__ import annotations

import numpy as np

from lossmap.report.eigenmap import eigenmap_lines

LOW, ERROR = np.array([-1.0, 1.0, 0.01, -1e-9, np.nan]), np.array([0.1, 0.1, 0.1, 1e-8, np.nan])


def test_signs_are_counted_and_what_the_precision_hides_is_named() -> None:
    fields = {"min_eig": LOW, "min_eig_error": ERROR, "eigen_rounding": np.array([0.0, 0.0, 1e-6, 1e-8, np.nan])}
    (line,) = eigenmap_lines(fields)
    assert line == (
        "smallest eigenvalue: negative at 1, positive at 1, zero within its error at 1, it cannot be told from zero in "
        "this precision at 1 of 4 points"
    )


def test_where_rounding_was_measured_is_one_line() -> None:
    for measured, text in (
        (
            [1.0, 0.0, 0.0, np.nan],
            "measured at 1 of 3 points by float64 products (over 16 to 128 samples, or over all where",
        ),
        ([1.0, 0.0, 0.0, np.nan], "), estimated at the others from what was measured where the products were planned"),
        ([1.0, 1.0], "measured at each of 2 points by float64 products"),
        ([0.0, 0.0], "estimated at all 2 points"),
    ):
        (line,) = eigenmap_lines({"eigen_rounding_measured": np.array(measured)})
        assert line.startswith("rounding: ") and text in line


def test_files_of_earlier_versions_have_less_to_say() -> None:
    assert eigenmap_lines({"train_loss": LOW}) == eigenmap_lines({"min_eig": LOW}) == []
    assert eigenmap_lines({"eigen_rounding_measured": np.array([np.nan])}) == []
    (line,) = eigenmap_lines({"test_min_eig": LOW, "test_min_eig_error": ERROR})
    assert line.startswith("test samples: smallest eigenvalue: negative at 1") and "precision" not in line


def test_a_matrix_of_zeros_has_no_curvature_only_where_its_bar_says_so():
    from lossmap.report.definiteness import definiteness_of_ends

    assert definiteness_of_ends((0.0, 0.0), (0.0, 0.0)) == "zero: no curvature at all"
    assert definiteness_of_ends((0.0, 0.54), (0.0, 0.54)).startswith("zero as far as is known")
