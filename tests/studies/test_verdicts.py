"""What studies say: of numbers that are made up, so that the sentence is known."""

from __future__ import annotations

import numpy as np
import pytest

from lossmap.plotting.studies import draw_neurons, draw_study
from lossmap.studies import verdicts
from lossmap.studies.designs import DEFAULTS, DESIGNS, QUICK, Size
from lossmap.studies.net import NORMALISED, RAW, SHARPNESS
from lossmap.studies.neurons import projected
from lossmap.studies.statistics import Interval


def flat_nets(raw, normalised, seeds=4):
    """Large batches have `raw` and `normalised` times the numbers of small ones, exactly."""
    nets = []
    for member in DESIGNS["flatness"](Size(seeds=seeds)):
        labels = dict(member.labels)
        seed = labels["seed_of_net"] + 1.0
        large = labels["batch"] == 512
        net = {**labels, "name": member.name, "train_loss": 0.1 * seed}
        net |= dict.fromkeys(RAW, seed * (raw if large else 1.0))
        net |= dict.fromkeys(NORMALISED, seed * (normalised if large else 1.0))
        nets.append(net)
    return nets


@pytest.mark.parametrize(
    ("raw", "normalised", "words"),
    [
        (2.0, 2.0, "survives normalisation: raw numbers: 5 of 5 larger"),
        (2.0, 1.0, "not shown to survive normalisation"),
        (2.0, 0.5, "contradict each other"),
        (1.0, 1.0, "no difference is shown"),
        (1.0, 2.0, "shown by normalised numbers alone"),
    ],
)
def test_flatness_says_what_survives(raw, normalised, words):
    lines = verdicts.flatness(flat_nets(raw, normalised))
    assert words in lines[1 + len(SHARPNESS) + 1]
    if raw == 2.0:
        assert "2 times (2 to 2)" in lines[1]
    draw_study("flatness", flat_nets(raw, normalised))


def test_arms_that_are_not_trained_alike_are_named():
    nets = [{**net, "train_loss": net["train_loss"] * (1 + (net["batch"] == 512))} for net in flat_nets(2.0, 2.0)]
    lines = verdicts.flatness(nets)
    assert "not trained equally far" in lines[1 + len(SHARPNESS) + 1]
    assert "not trained equally far" not in "".join(verdicts.flatness(flat_nets(2.0, 2.0)))
    for net in nets:  # by 0.03 %, beyond the interval: "1 times (1 to 1)"
        net["train_loss"] = 0.1 * (net["seed_of_net"] + 1) * (1.0003 if net["batch"] == 512 else 1.0)
    assert "not trained equally far" not in "".join(verdicts.flatness(nets))


def test_pairs_that_have_no_ratio_are_counted():
    nets = flat_nets(2.0, 2.0)
    for net in nets:
        net["average_filter"] = -1.0 if net["seed_of_net"] == 0 else net["average_filter"]
        net["worst_filter"] = 0.0
    text = "\n".join(verdicts.flatness(nets))
    assert text.count("2 times (2 to 2); 3 of 4 pairs, in which both are > 0") == 2  # of two batches, by two decays
    assert "worst rise, filter ball      not known: in no pair are both numbers > 0" in text
    assert "(2 to 2); 4 of 4" not in text


def test_one_pair_says_nothing():
    lines = verdicts.flatness(flat_nets(2.0, 2.0, seeds=1))
    assert "1 pair: no interval" in lines[1] and "no difference is shown" in lines[1 + len(SHARPNESS) + 1]


def test_arms_that_lost_nets_are_paired_by_seed():
    nets = [net for net in flat_nets(2.0, 1.0) if not (net["batch"] == 512 and net["seed_of_net"] == 0)]
    assert verdicts.paired(nets, "batch", 512, 16, "trace", {"decay": 0.0}).count == 3


def test_without_a_finite_number_that_is_said():
    nets = [{**net, "test_loss": float("nan"), "rate_of_net": 0.1} for net in flat_nets(2.0, 2.0)]
    assert verdicts.generalisation(nets) == ["of none of the 16 nets is the gap of test over training loss finite"]
    assert np.isnan(verdicts.median_of(np.zeros(0)))


def test_generalisation_names_what_goes_with_the_gap():
    generator = np.random.default_rng(0)
    nets = []
    for member in DESIGNS["generalisation"](Size(seeds=3)):
        gap = float(generator.uniform(0.1, 1.0))
        net = {**member.labels, "name": member.name, "train_loss": 0.1, "test_loss": 0.1 + gap, "weight_norm": 1.0}
        net |= {name: float(generator.uniform()) for name in SHARPNESS}
        nets.append({**net, "trace": gap**3, "worst_filter": -gap, "critical": float("nan")})
    assert len(nets) >= 20
    text = "\n".join(verdicts.generalisation(nets))
    assert "trace                        +1.00 (+1.00 to +1.00)" in text
    larger = next(line for line in text.splitlines() if line.startswith("larger where"))
    smaller = next(line for line in text.splitlines() if line.startswith("smaller where"))
    assert "trace" in larger and "worst rise, filter ball" in smaller
    assert "critical sharpness           not known, 0 nets" in text
    draw_study("generalisation", nets)


def test_depth_counts_what_is_stuck_and_pairs_by_depth_and_seed():
    nets = []
    for member in DESIGNS["depth"](Size(seeds=2, depths=(8, 14))):
        labels = dict(member.labels)
        ratio = {"skip": 0.05, "no skip": 0.35, "vgg": 0.2}[labels["kind"]]
        low = -ratio * (1 + 0.01 * labels["seed_of_net"])
        net = {**labels, "name": member.name, "minima": 1.0, "train_acc": 99.0, "retrained_acc": 98.0}
        nets.append({**net, "max_eig": np.ones(5), "min_eig": np.full(5, low)})
    nets[0]["retrained_acc"] = 20.0
    text = "\n".join(verdicts.depth(nets))
    assert f"{nets[0]['net']} (seed 0) (1 of 10 nets)" in text
    assert "+0.301" in text and "4 pairs of depth and seed: less convex without skip connections" in text
    assert nets[0]["net"] == "resnet8 skip" and "0 %" in next(
        x for x in text.splitlines() if x.startswith("resnet8 skip")
    )
    figure = draw_study("depth", nets)  # every plane has one minimum, about which ticks of a half would fit
    (panel,) = [axes for axes in figure.axes if axes.get_xlabel() == "minima of the plane"]
    figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in panel.get_xticks())


def test_positive_and_unknown_eigenvalues_are_no_negative_curvature():
    net = {"max_eig": np.array([2.0, 1.0, np.nan, -1.0]), "min_eig": np.array([0.5, -0.5, -1.0, -2.0])}
    assert verdicts.ratio_of(net).tolist() == [0.0, 0.5]


def test_planes_say_whether_the_mean_is_that_of_all_eigenvalues():
    base = {
        "name": "seed 0",
        "smallest": -1.0,
        "largest": 10.0,
        "trace": 100.0,
        "trace_error": 0.0,
        "parameters": 1000.0,
    }
    near, far = np.linspace(0.09, 0.11, 20), np.linspace(0.29, 0.31, 20)
    net = base | {"gaussian_low": near, "gaussian_high": near, "filter_low": far, "filter_high": far}
    text = "\n".join(verdicts.planes([net]))
    assert "trace/n lies within the interval" in text and "3 times trace/n, beyond the interval" in text
    assert text.count("20 of 20 of them show no negative curvature") == 2
    draw_study("plane-curvature", [net])


@pytest.mark.parametrize(
    "interval, words",
    [
        ((0.0180, 0.0433), "trace/n lies within the interval"),
        ((0.0195, 0.0433), "trace/n agrees with it within their errors"),
        ((0.0150, 0.0187), "trace/n agrees with it within their errors"),
        ((0.0199, 0.0433), "1.65 times trace/n, beyond the interval"),
    ],
)
def test_trace_over_n_lies_within_an_interval_only_where_it_does(interval, words):
    seen = Interval(sum(interval) / 2, *interval, 20)
    assert verdicts._against(seen, 0.0191, 0.00027) == words


def test_an_interval_that_holds_one_says_nothing():
    nothing, up = Interval(0.1, -0.1, 0.3, 5), Interval(0.3, 0.1, 0.5, 5)
    assert "no difference is shown" in verdicts.survival([nothing], [nothing])
    assert "survives normalisation" in verdicts.survival([up], [up])
    assert "survives normalisation" not in verdicts.survival([up, nothing], [up]).split(":")[0]


def test_sizes_that_cannot_be_are_refused():
    for wrong in ({"seeds": 0}, {"ticks": 4}, {"depths": (9,)}, {"depths": ()}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Size(**wrong)
    assert all(len(DESIGNS[kind](QUICK)) < len(DESIGNS[kind](size)) for kind, size in DEFAULTS.items())


def test_neurons_that_move_in_a_plane_are_drawn_as_they_move():
    generator = np.random.default_rng(0)
    flat = generator.normal(size=(4, 3, 2))  # steps, neurons
    rows = flat @ np.linalg.qr(generator.normal(size=(7, 2)))[0].T
    found = projected("layer", np.arange(4.0), rows)
    np.testing.assert_allclose(found.shares.sum(), 1.0)
    between = [np.linalg.norm(p[:, None] - p[None], axis=-1) for p in (found.paths.reshape(12, 2), flat.reshape(12, 2))]
    np.testing.assert_allclose(*between, atol=1e-12)
    np.testing.assert_allclose(found.moved, np.linalg.norm(np.diff(flat, axis=0), axis=2).sum(axis=0))
    still = projected("still", np.arange(2.0), np.ones((2, 3, 1)))
    assert "none moved" in str(still) and still.shares.tolist() == [0.0, 0.0]
    draw_neurons([found, still])
    with pytest.raises(ValueError, match="not finite"):
        projected("layer", np.arange(2.0), np.full((2, 1, 2), np.nan))
