"""The arithmetic of the estimate: where it looks, how it weighs, how many ranks it finds fitting."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lossmap.parallel import cost_model
from lossmap.parallel.cost_model import Estimate, Sample

WHOLE = Estimate(
    points=1000,
    seconds=2.0,
    least=1.0,
    most=4.0,
    first=3.0,
    setup=5.0,
    products=10.0,
    memory=300_000_000,
    gpu_memory=0,
    file_size=100_000,
    per_node=4,
)


class Clock:
    """Time that passes only while a point is measured, and once for a set-up; 4 products a second."""

    def __init__(self, cost, setup=0.0, counts=True):
        self.now, self.cost, self.setup, self.counts, self.asked = 0.0, cost, setup, counts, []

    def __call__(self):
        return self.now

    def measured(self, index):
        before = self.asked[-1] if self.asked else None
        self.asked.append(index)
        cost = self.cost(index, before)
        self.now += cost + (self.setup if before is None else 0.0)
        return {"products": 4 * cost} if self.counts else {}


def test_the_sample_is_center_corners_and_points_between_from_outside_inwards():
    outer, halfway = cost_model.sample_sites((5, 9))
    assert [walk[0] for walk in outer] == [22, 0, 8, 36, 44]
    assert outer[1] == [0, 1, 2]
    assert outer[2] == [8, 7, 6]
    assert outer[0] == [22, 23, 24]
    assert [walk[0] for walk in halfway] == [11, 15, 29, 33]


@given(st.integers(1, 6), st.integers(1, 40))
def test_every_sampled_point_is_on_the_grid_and_no_corner_comes_twice(rows, columns):
    for shape in ((columns,), (rows, columns)):
        outer, halfway = cost_model.sample_sites(shape)
        starts = [walk[0] for walk in outer + halfway]
        assert len(set(starts)) == len(starts)
        if rows > 2 and len(shape) == 2 and columns > 4:
            indices = [index for walk in outer for index in walk]
            assert len(set(indices)) == len(indices)
        for walk in outer + halfway:
            assert 0 <= min(walk) <= max(walk) < math.prod(shape)
            assert len({index // columns for index in walk}) == 1
            assert all(abs(a - b) == 1 for a, b in pairwise(walk))


def test_slow_points_are_looked_at_as_seldom_as_can_be():
    clock = Clock(lambda index, before: 10.0)
    samples = cost_model.sample_points(clock.measured, (51, 51), clock)
    assert len(samples) == 11
    assert [s.warm for s in samples] == [False, True] * 5 + [False]
    assert samples[0].index == samples[-1].index


def test_quick_points_are_looked_at_more_often():
    clock = Clock(lambda index, before: 0.001)
    assert len(cost_model.sample_points(clock.measured, (51, 51), clock)) == 9 * (1 + cost_model.MAX_NEIGHBOURS) + 1


@pytest.mark.parametrize("shape", [(41,), (41, 41)])
def test_a_cost_that_grows_with_the_squared_distance_is_met(shape):
    side = np.linspace(-1, 1, 41)
    square = side**2 if len(shape) == 1 else (side[:, None] ** 2 + side**2)
    costs = 1 + square.reshape(-1)
    clock = Clock(lambda index, before: float(costs[index]))
    found = cost_model.fit_estimate(cost_model.sample_points(clock.measured, shape, clock), shape)
    assert found.seconds == pytest.approx(costs.mean(), rel=1e-6)
    assert found.least <= found.seconds <= found.most
    assert found.products == pytest.approx(4 * costs.mean())


@pytest.mark.parametrize("counts", [True, False])
def test_setup_and_points_without_a_near_start_are_separated_from_the_others(counts):
    def cost(index, before):
        return 1.0 if before is not None and abs(index - before) == 1 else 3.0

    clock = Clock(cost, 5.0, counts)
    found = cost_model.fit_estimate(cost_model.sample_points(clock.measured, (11, 11), clock), (11, 11), again=20)
    assert (found.setup, found.first, found.seconds) == pytest.approx((5.0, 3.0, 1.0))
    assert found.rank_seconds == pytest.approx(121 * 1.0 + 20 * 3.0)
    assert math.isnan(found.products) is not counts


def test_a_start_at_a_point_that_is_known_does_not_make_up_a_set_up():
    clock = Clock(lambda index, before: 1.0 if index in clock.asked[:-1] else 3.0)
    assert cost_model.fit_estimate(
        cost_model.sample_points(clock.measured, (11, 11), clock), (11, 11)
    ).setup == pytest.approx(0.0)


def test_a_grid_of_one_point_has_an_estimate():
    clock = Clock(lambda index, before: 2.0)
    found = cost_model.fit_estimate(cost_model.sample_points(clock.measured, (1,), clock), (1,))
    assert (found.seconds, found.setup, found.wall(1)) == pytest.approx((2.0, 0.0, 2.0))


def test_the_mean_over_the_grid_is_exact_for_equal_costs_and_within_the_measured_range():
    samples = [Sample(i, 0, False, 2.0) for i in (0, 4, 12, 20, 24)]
    assert cost_model.grid_means(samples, lambda s: s.seconds, (5, 5)) == pytest.approx((2.0, 2.0))
    assert cost_model.grid_means(samples[:1], lambda s: s.seconds, (5, 5)) == pytest.approx((2.0, 2.0))
    steep = [Sample(0, 1, False, 9.0), Sample(1, 1, True, 1.0)]
    assert all(1.0 <= mean <= 9.0 for mean in cost_model.grid_means(steep, lambda s: s.seconds, (5, 5)))
    assert all(math.isnan(mean) for mean in cost_model.grid_means(samples, lambda s: s.products, (5, 5)))


def test_more_ranks_end_sooner_and_never_before_their_slowest_point():
    walls = [WHOLE.wall(n) for n in (1, 2, 4, 8, 16, 10_000)]
    assert walls == sorted(walls, reverse=True)
    assert walls[0] == pytest.approx(5 + 1 + 2000)
    assert walls[-1] >= WHOLE.setup + WHOLE.most
    assert [replace(WHOLE, beside=7.0).wall(n) for n in (1, 8)] == pytest.approx([walls[0] + 7.0, walls[3] + 7.0])


def test_the_fitting_number_of_ranks_ends_in_time_and_a_smaller_one_does_not():
    for goal in (100.0, 300.0, 1000.0, 1e6):
        ranks = WHOLE.ranks_for(goal)
        step = 1 if ranks <= WHOLE.per_node else WHOLE.per_node
        assert WHOLE.wall(ranks) * cost_model.LIMIT_MARGIN <= goal
        assert ranks == 1 or WHOLE.wall(ranks - step) * cost_model.LIMIT_MARGIN > goal


def test_no_more_ranks_are_proposed_than_the_points_keep_busy():
    assert WHOLE.ranks_for(1.0) == WHOLE.points // cost_model.MIN_POINTS_PER_RANK


def test_the_time_limit_is_longer_than_the_estimate_and_in_fives():
    for ranks in (1, 7, 100):
        assert WHOLE.limit(ranks) % 5 == 0
        assert WHOLE.limit(ranks) * 60 >= WHOLE.wall(ranks) * cost_model.LIMIT_MARGIN


def test_node_hours_count_whole_nodes():
    assert WHOLE.node_hours(5) == pytest.approx(2 * WHOLE.wall(5) / 3600)


def test_an_estimate_is_kept_beside_its_result_one_for_each_measure(tmp_path):
    result = tmp_path / "s.h5"
    assert cost_model.stored_estimate(result) is None
    cost_model.write_estimate(result, "loss", WHOLE)
    cost_model.write_estimate(result, "eigen", Estimate(**{**vars(WHOLE), "products": math.nan}))
    found = cost_model.stored_estimate(result)
    assert found["loss"]["seconds"] == 2.0
    assert found["eigen"].get("products") is None
    cost_model.estimate_path(result).write_text("[")
    assert cost_model.stored_estimate(result) is None


def test_what_was_taken_is_set_beside_what_was_estimated():
    seconds = np.array([[1.0, 3.0], [np.nan, 2.0]])
    took = cost_model.measured_cost(seconds, np.array([[8.0, 12.0], [np.nan, 10.0]]), memory=310_000_000)
    assert (took["points"], took["seconds"], took["rank_seconds"], took["products"]) == (3, 2.0, 6.0, 10.0)
    lines = cost_model.side_by_side(vars(WHOLE), took)
    assert [line.split("  ")[0] for line in lines] == [
        "seconds a point",
        "products a point",
        "all points, over all ranks",
        "memory of a rank",
    ]
    assert "33.3 min" in lines[2]
    assert lines[2].endswith("6 s")
    assert cost_model.side_by_side(vars(WHOLE), took, whole=False) == [lines[0], lines[1], lines[3]]
    assert cost_model.measured_cost(np.full(3, np.nan), None) == {}
    assert cost_model.side_by_side(vars(WHOLE), {}) == []


def test_a_table_is_read_as_dict_or_as_text():
    assert cost_model.decode_cost('{"a": 1}') == cost_model.decode_cost({"a": 1}) == {"a": 1}
    assert cost_model.decode_cost(None) == {}
    assert json.loads(json.dumps(cost_model.decode_cost({"a": 1}))) == {"a": 1}


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.5, "0.5 s"), (90, "90 s"), (600, "10 min"), (3 * 3600, "3 h"), (4 * 86400, "4 days")]
)
def test_spans_are_said_as_people_say_them(seconds, text):
    assert cost_model.span_text(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (3.1e8, "310 MB"), (5e15, "5e+03 TB")]
)
def test_sizes_are_said_as_people_say_them(size, text):
    assert cost_model.size_text(size) == text
