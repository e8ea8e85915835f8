"""The audit: its choice, its count, its bound, and what becomes of a miss."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from lossmap.geometry.grid import Grid
from lossmap.landscape import audit
from lossmap.landscape.audit import Audit, better, excess, neighbours, sample, sentence, upper_bound


def test_no_miss_in_52_points_of_2601_still_allows_5_5_percent():
    assert round(100 * upper_bound(0, 52, 2601), 1) == 5.5
    assert upper_bound(0, 52, 10**8) == pytest.approx(1 - 0.05 ** (1 / 52), rel=1e-6)  # Clopper and Pearson's
    assert upper_bound(3, 3, 10**8) == 1.0 and upper_bound(0, 0, 9) == 1.0 and upper_bound(0, 0, 0) == 1.0


@given(st.integers(1, 60), st.integers(1, 59), st.integers(0, 400))
def test_at_the_bound_so_few_misses_have_a_chance_above_five_percent_and_beyond_it_none(audited, misses, others):
    """By counting: of all choices of the audited points, those with so few of the missed ones."""
    misses, points = min(misses, audited), audited + others
    bound = round(upper_bound(misses, audited, points) * points)

    def chance(total):
        ways = sum(comb(total, k) * comb(points - total, audited - k) for k in range(misses + 1))
        return ways / comb(points, audited)

    assert misses <= bound <= points - (audited - misses)
    assert chance(bound) > 0.05 - 1e-12
    assert bound == points - (audited - misses) or chance(bound + 1) <= 0.05 + 1e-12


@pytest.mark.parametrize("missed", [0, 1, 3])
def test_where_all_points_were_audited_the_count_is_exact(missed):
    assert upper_bound(missed, 3, 3) == missed / 3
    survey = Survey(Grid.line(count=3), range(missed))
    survey.solve(survey.audit().pending())
    report = survey.audit().report()
    assert (report["audited"], report["candidates"], report["misses"]) == (3, 3, missed)
    assert report["upper_bound"] == missed / 3
    assert sentence(report) == (
        f"audit: {missed} of all 3 points with eigenvalues missed an end by more than 0.001 of max(abs): "
        "each was solved again"
    )


def test_the_bound_holds_at_its_rate():
    """200 choices of 20 of 60 points, 9 of which are missed."""
    hits = 0
    for seed in range(200):
        misses = int((sample(np.arange(60), 60, seed) < 9).sum())
        hits += upper_bound(misses, 20, 60) >= 9 / 60
    assert hits >= binom.ppf(0.0005, 200, 0.95)


def test_two_percent_are_chosen_and_twenty_at_least_and_all_of_a_few():
    assert [len(sample(np.arange(n), n, 0)) for n in (7, 100, 1000, 2601)] == [7, 20, 20, 53]
    chosen = sample(np.arange(2601), 2601, 0)
    assert (np.diff(chosen) > 0).all() and not np.array_equal(chosen, sample(np.arange(2601), 2601, 1))
    assert np.array_equal(chosen, sample(np.arange(2601), 2601, 0))


def test_points_that_come_in_later_leave_the_others_choice_alone():
    every = np.arange(400)
    without = np.setdiff1d(every, sample(every, 400, 0)[3:6])
    assert len(np.intersect1d(sample(every, 400, 0), sample(without, 400, 0))) == 17


def test_a_point_has_eight_neighbors_in_a_plane_and_two_on_a_line():
    grid = Grid(np.arange(5.0), np.arange(4.0))
    assert neighbours(grid, [7]).tolist() == [1, 2, 3, 6, 8, 11, 12, 13]
    assert neighbours(grid, [0, 19]).tolist() == [1, 5, 6, 13, 14, 18]
    assert neighbours(Grid(np.arange(5.0)), [4, 1]).tolist() == [0, 2, 3]
    assert neighbours(grid, []).size == 0


def test_an_excess_is_how_much_further_out_the_second_look_was():
    cheap = {"max_eig": np.array([4.0, 4.0, 0.0, np.nan]), "min_eig": np.array([-1.0, -5.0, 0.0, np.nan])}
    second = {"max_eig": np.array([5.0, 3.0, 0.0, 1.0]), "min_eig": np.array([-2.0, -5.0, 0.0, 1.0])}
    far = excess(cheap, second)
    assert far["max_eig"][:3] == pytest.approx([0.2, -0.2, 0.0]) and np.isnan(far["max_eig"][3])
    assert far["min_eig"][:3] == pytest.approx([0.2, 0.0, 0.0])
    rows = {"abs_eig": np.array([[-5.0, 3.0]]), "test_top_eig": np.array([[1.0, 0.5]])}
    other = {"abs_eig": np.array([[-5.0, 4.0]]), "test_top_eig": np.array([[1.0, 0.4]])}
    assert excess(rows, other)["abs_eig"] == pytest.approx([0.2])
    assert excess(rows, other)["test_top_eig"] == pytest.approx([0.0])


class Survey:
    """A map whose cheap look is wrong at some points, and its audit, played through."""

    def __init__(self, grid, wrong, seed=0, dead=()):
        n = len(grid)
        truth = np.linspace(2.0, 3.0, n)
        self.grid, self.seed, self.truth = grid, seed, {"max_eig": truth, "min_eig": -0.1 * truth}
        self.cheap = {k: v.copy() for k, v in self.truth.items()}
        self.cheap["max_eig"][list(wrong)] *= 0.9
        for v in self.cheap.values():
            v[list(dead)] = np.nan
        self.second = {k: np.full(n, np.nan) for k in self.cheap}
        self.status = np.zeros(n, dtype=np.uint8)

    def audit(self):
        return Audit(self.grid, self.cheap, self.second, self.status, np.arange(len(self.grid)), 1e-3, self.seed)

    def solve(self, points):
        for k, v in self.second.items():
            v[points] = self.truth[k][points]
        self.status[points] = 1


def test_around_a_miss_the_audit_spreads_until_no_neighbour_shows_one():
    grid = Grid.square(-1, 1, 20)
    found = int(sample(np.arange(400), 400, 0)[10])
    row, column = divmod(found, 20)
    wrong = [r * 20 + c for r in range(20) for c in range(max(column - 1, 0), min(column + 2, 20)) if abs(r - row) < 3]
    survey = Survey(grid, wrong)
    rounds = []
    while (points := survey.audit().pending()).size:
        rounds.append(len(points))
        survey.solve(points)
    report = survey.audit().report()
    chosen = np.intersect1d(sample(np.arange(400), 400, 0), wrong)
    assert rounds[0] == 20 and len(rounds) >= 3
    assert set(wrong) <= set(np.flatnonzero(survey.status)) and report["points"] == sorted(wrong)
    assert (report["audited"], report["misses"]) == (20, len(chosen))
    assert report["misses_by_field"] == {"max_eig": len(chosen), "min_eig": 0}
    assert report["missed_beside"] == len(wrong) - len(chosen)
    assert report["solved_again"] == survey.status.sum() - 20
    assert report["worst"] == pytest.approx(0.1 / 1e-3) and report["upper_bound"] == upper_bound(len(chosen), 20, 400)
    assert "solved again" in sentence(report)


def test_a_map_without_a_miss_is_audited_once():
    survey = Survey(Grid.line(count=51), [], dead=range(5))
    points = survey.audit().pending()
    assert len(points) == 20 and points.min() >= 5
    survey.solve(points)
    assert survey.audit().pending().size == 0
    assert sentence(survey.audit().report()) == (
        "audit: 0 of 20 points missed an end by more than 0.001 of max(abs); "
        "with 95 % confidence at most 8.7 % of all points do"
    )


def test_an_audit_that_failed_at_a_point_does_not_count_it():
    survey = Survey(Grid.line(count=30), [])
    points = survey.audit().pending()
    survey.solve(points[1:])
    survey.status[points[0]] = 2
    assert survey.audit().pending().size == 0 and survey.audit().report()["audited"] == 19


def test_a_map_where_nothing_is_known_has_nothing_to_audit():
    survey = Survey(Grid.line(count=9), [], dead=range(9))
    assert survey.audit().pending().size == 0
    assert survey.audit().report()["upper_bound"] == 1.0
    assert sentence(survey.audit().report()) == "audit: there was no point to be solved again"


def test_the_more_extreme_answer_is_kept_with_its_error_and_the_nearer_limit():
    names = ["max_eig", "max_eig_error", "max_eig_limit", "min_eig", "min_eig_error", "min_eig_limit", "products"]
    cheap = dict(zip(names, [2.0, 0.1, 9.0, -3.0, 0.2, -9.0, 5.0], strict=True))
    second = dict(zip(names, [2.5, 0.3, 2.6, -2.0, 0.4, -2.1, 9.0], strict=True))
    cheap |= {"top_eig": np.array([2.0, 1.0]), "top_eig_error": np.zeros(2)}
    second |= {"top_eig": np.array([2.5, 1.0]), "top_eig_error": np.ones(2)}
    kept = better(cheap, second)
    assert [kept[f"max_eig{k}"] for k in ("", "_error", "_limit")] == [2.5, 0.3, 2.6]
    assert [kept[f"min_eig{k}"] for k in ("", "_error", "_limit")] == [-3.0, 0.2, -9.0]  # -2.1 contradicts -3
    assert kept["top_eig"].tolist() == [2.5, 1.0] and kept["top_eig_error"].tolist() == [1.0, 1.0]
    assert kept["products"] == 5.0
    again = better(kept, second)
    assert all(np.array_equal(again[k], kept[k]) for k in kept)
    agreed = better(cheap | {"min_eig": -2.05}, second)
    assert agreed["min_eig"] == -2.05 and agreed["min_eig_limit"] == -2.1


def test_the_audit_marks_its_points_as_the_store_does():
    from lossmap.io.surface import DONE, TO_DO

    assert (audit.TO_DO, audit.DONE) == (TO_DO, DONE)
