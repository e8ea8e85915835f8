"""What a study says: sentences made of numbers and their 95 % intervals, never stronger than these.

A net is a mapping with the labels of a member and the numbers of its reading, as `study.studied` makes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, isfinite
from typing import Any

import numpy as np

from lossmap.report.text import value_with_error
from lossmap.studies.designs import LARGE_BATCH, SMALL_BATCH
from lossmap.studies.net import NORMALISED, RAW, SHARPNESS
from lossmap.studies.statistics import Interval, log_ratio, mean_interval, rank_correlation

Net = Mapping[str, Any]
Nets = Sequence[Net]
TITLES = {
    "largest": "largest eigenvalue",
    "trace": "trace",
    "critical": "critical sharpness",
    **{
        f"{what}_{ball}": f"{words} rise, {ball} ball"
        for what, words in (("average", "average"), ("worst", "worst"))
        for ball in ("filter", "adaptive", "absolute")
    },
}
CONVEX = 0.1  # |smallest| / largest eigenvalue, from which on a point counts as clearly not convex
ALIKE = 0.01  # relative difference of training losses up to which two arms count as trained equally far
STUCK = 10.0  # percentage points of training accuracy below the first training


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if isfinite(value) else "not known"


def factor(ratio: Interval, pairs: int = 0) -> str:
    """`2.1 times (1.5 to 2.9)` of a logarithm's interval; of fewer than all pairs that is said."""
    if ratio.count == 0:
        return "not known: in no pair are both numbers > 0"
    left = f"; {ratio.count} of {pairs} pairs, in which both are > 0" if ratio.count < pairs else ""
    if not isfinite(ratio.low):
        return f"{number(exp(ratio.value))} times ({ratio.count} pair: no interval){left}"
    return f"{exp(ratio.value):.3g} times ({exp(ratio.low):.3g} to {exp(ratio.high):.3g}){left}"


def paired(nets: Nets, arm: str, above: Any, below: Any, column: str, within: Mapping[str, Any]) -> Interval:
    """The log ratio of a number between two values of an arm, paired by all other labels; within a part of the nets."""
    chosen = [net for net in nets if all(net[name] == value for name, value in within.items())]

    def key(net: Net) -> tuple[Any, ...]:
        return tuple(net[name] for name in ("batch", "decay", "seed_of_net") if name != arm)

    high, low = ({key(n): float(n[column]) for n in chosen if n[arm] == value} for value in (above, below))
    both = sorted(set(high) & set(low))
    return log_ratio(np.array([high[k] for k in both]), np.array([low[k] for k in both]))


def flatness(nets: Nets) -> list[str]:
    """Which statements about sharpness survive normalisation."""
    lines: list[str] = []
    contrasts: list[tuple[str, str, Any, Any, Mapping[str, Any]]] = [
        (f"batch {LARGE_BATCH} against {SMALL_BATCH}, decay {d:g}", "batch", LARGE_BATCH, SMALL_BATCH, {"decay": d})
        for d in (0.0, 5e-4)
    ]
    contrasts += [
        (f"decay 0.0005 against 0, batch {b}", "decay", 5e-4, 0.0, {"batch": b}) for b in (SMALL_BATCH, LARGE_BATCH)
    ]
    for title, arm, above, below, within in contrasts:
        ratios = {name: paired(nets, arm, above, below, name, within) for name in SHARPNESS}
        lines.append(f"{title}, ratios paired by seed, 95 % intervals:")
        quality = paired(nets, arm, above, below, "train_loss", within)
        pairs = max(ratio.count for ratio in (*ratios.values(), quality))
        lines += [f"  {TITLES[name]:<28} {factor(ratio, pairs)}" for name, ratio in ratios.items()]
        lines.append(f"  {'training loss':<28} {factor(quality, pairs)}")
        if quality.sign and abs(quality.value) > ALIKE:
            lines.append("  the arms are not trained equally far, so that this is a contrast of that, too")
        lines.append(f"  {survival([ratios[n] for n in RAW], [ratios[n] for n in NORMALISED])}")
    return lines


def survival(raw: Sequence[Interval], normalised: Sequence[Interval]) -> str:
    """What the signs of both kinds of numbers say together; an interval that holds 1 says nothing."""
    words = [_direction(part) for part in (raw, normalised)]
    told = f"raw numbers: {words[0]}; filter-normalised and adaptive ones: {words[1]}"
    signs = [{r.sign for r in part} for part in (raw, normalised)]
    if signs[0] == signs[1] and len(signs[0]) == 1 and 0 not in signs[0]:
        return f"survives normalisation: {told}"
    if {1, -1} <= signs[0] | signs[1]:
        return f"does not survive as one statement, numbers contradict each other: {told}"
    if signs[0] - {0} and signs[1] == {0}:
        return f"not shown to survive normalisation: {told}"
    if not (signs[0] | signs[1]) - {0}:
        return f"no difference is shown: {told}"
    if signs[0] == {0}:
        return f"shown by normalised numbers alone: {told}"
    return f"survives for some of the numbers: {told}"


def _direction(part: Sequence[Interval]) -> str:
    up, down = (sum(r.sign == sign for r in part) for sign in (1, -1))
    return f"{up} of {len(part)} larger, {down} smaller, {len(part) - up - down} undecided"


def generalisation(nets: Nets) -> list[str]:
    """The rank correlation of every number with the gap between test and training loss."""
    gap = column(nets, "test_loss") - column(nets, "train_loss")
    finite = gap[np.isfinite(gap)]
    if not len(finite):
        return [f"of none of the {len(nets)} nets is the gap of test over training loss finite"]
    recipes = [(net["batch"], net["decay"], net["rate_of_net"]) for net in nets]
    every = sorted(set(recipes))
    groups = np.array([every.index(recipe) for recipe in recipes])
    lines = [
        f"rank correlation (Spearman) with the gap of test over training loss, {number(finite.min())} to "
        f"{number(finite.max())} nats over {len(nets)} nets; 95 % intervals by resampling the {len(every)} "
        "recipes, whose seeds are no independent nets:"
    ]
    names = (*SHARPNESS, "weight_norm", "train_loss")
    found = {name: rank_correlation(column(nets, name), gap, groups) for name in names}
    for name, r in found.items():
        title = TITLES.get(name, name.replace("_", " "))
        kind = "normalised" if name in NORMALISED else "raw"
        if name not in SHARPNESS:
            kind = "for comparison"
        text = f"{r.value:+.2f} ({r.low:+.2f} to {r.high:+.2f})"
        if not isfinite(r.low):
            text = f"{r.value:+.2f} (no interval)"
        if not isfinite(r.value):
            text = f"not known, {r.count} nets or no spread"
        lines.append(f"  {title:<28} {text:<26} {kind}")
    shown = [name for name in SHARPNESS if found[name].sign]
    if not shown:
        lines.append("no number of sharpness is shown to go with the gap")
    for sign, words in ((1, "larger where the gap is larger"), (-1, "smaller where the gap is larger")):
        those = [TITLES[name] for name in shown if found[name].sign == sign]
        if those:
            lines.append(f"{words}: {', '.join(those)}")
    lines.append(
        "nets differ by recipe, and recipes change sharpness and gap together: a correlation here is no cause; of "
        f"{len(SHARPNESS)} intervals one in twenty misses zero by chance"
    )
    return lines


def column(nets: Nets, name: str) -> np.ndarray:
    """One number of all nets."""
    return np.array([float(net[name]) for net in nets])


def depth(nets: Nets) -> list[str]:
    """Convexity, minima and bad starts, by net."""
    titles = (
        f"{'net':<20} {'convexity':>10} {'not convex':>11} {'minima':>7} {'accuracy, %':>12} {'from bad start':>15}"
    )
    lines = [titles]
    for name in dict.fromkeys(str(net["net"]) for net in nets):
        own = [net for net in nets if net["net"] == name]
        ratios = np.concatenate([ratio_of(net) for net in own])
        share = float(np.mean(ratios > CONVEX)) if len(ratios) else float("nan")
        minima = "/".join(f"{net['minima']:.0f}" for net in own)
        first, again = (np.mean(column(own, c)) for c in ("train_acc", "retrained_acc"))
        lines.append(
            f"{name:<20} {median_of(ratios):>10.3g} {100 * share:>9.0f} % {minima:>7} {first:>12.1f} {again:>15.1f}"
        )
    lines.append(
        "convexity: median of |smallest| / largest eigenvalue at the net and four points around; not convex: share of "
        f"these points above {CONVEX:g}; minima of the plane, by seed"
    )
    stuck = [f"{net['net']} (seed {net['seed_of_net']})" for net in nets if is_stuck(net)]
    lines.append(
        f"stuck after a bad start, {STUCK:g} points of accuracy or more below the first training: "
        f"{', '.join(stuck) or 'none'} ({len(stuck)} of {len(nets)} nets)"
    )
    lines.append(skip_text(nets))
    return lines


def ratio_of(net: Net) -> np.ndarray:
    """|smallest| / largest eigenvalue where the smallest is negative, else 0, at each place where both are known."""
    high, low = np.asarray(net["max_eig"], float), np.asarray(net["min_eig"], float)
    good = np.isfinite(high) & np.isfinite(low) & (high > 0)
    ratios: np.ndarray = np.maximum(-low[good], 0.0) / high[good]
    return ratios


def median_of(ratios: np.ndarray) -> float:
    """The median; NaN of none."""
    return float(np.median(ratios)) if len(ratios) else float("nan")


def is_stuck(net: Net) -> bool:
    """Whether training from the bad start ends below the first training."""
    return float(net["retrained_acc"]) < float(net["train_acc"]) - STUCK


def skip_text(nets: Nets) -> str:
    """The difference of convexity without skip connections and with, paired by depth and seed."""
    medians = {(n["kind"], n["depth_of_net"], n["seed_of_net"]): median_of(ratio_of(n)) for n in nets}
    differences = [
        value - medians["skip", deep, seed]
        for (kind, deep, seed), value in medians.items()
        if kind == "no skip" and ("skip", deep, seed) in medians
    ]
    found = mean_interval(np.array(differences))
    if found.count < 2:
        return "with or without skip connections: too few pairs for an interval"
    words = {1: "less convex without skip connections", -1: "more convex without", 0: "no difference is shown"}
    return (
        f"without skip connections a net's median ratio changes by {found.value:+.3g} ({found.low:+.3g} to "
        f"{found.high:+.3g}), the mean over {found.count} pairs of depth and seed: {words[found.sign]}"
    )


def planes(nets: Nets) -> list[str]:
    """What a random plane shows of the curvature."""
    lines = []
    for net in nets:
        mean = float(net["trace"]) / float(net["parameters"])
        error = float(net["trace_error"]) / float(net["parameters"])
        lines.append(
            f"{net['name']}: eigenvalues {number(net['smallest'])} to {number(net['largest'])}, their mean trace/n "
            f"{value_with_error(mean, error)}"
        )
        for kind in ("gaussian", "filter"):
            low, high = np.asarray(net[f"{kind}_low"]), np.asarray(net[f"{kind}_high"])
            seen = mean_interval((low + high) / 2)
            share = 100 * high.max() / net["largest"]
            lines.append(
                f"  {kind} planes show {number(seen.value)} ({number(seen.low)} to {number(seen.high)}) on average "
                f"over {seen.count} planes, {number(high.max())} at most: {share:.2g} % of the "
                f"largest eigenvalue; {_against(seen, mean, error)}"
            )
            hidden = int((low > 0).sum())
            if net["smallest"] < 0:
                lines.append(f"  {hidden} of {len(low)} of them show no negative curvature, although there is some")
    return lines


def _against(seen: Interval, mean: float, error: float) -> str:
    """How the mean over planes compares with trace/n, whose own error counts with twice its size."""
    if seen.low <= mean <= seen.high:
        return "trace/n lies within the interval"
    if seen.low - 2 * error <= mean <= seen.high + 2 * error:
        return "trace/n agrees with it within their errors"
    if mean == 0:
        return "trace/n is 0"
    return f"{seen.value / mean:.3g} times trace/n, beyond the interval"


VERDICTS: dict[str, Callable[[Nets], list[str]]] = {
    "flatness": flatness,
    "depth": depth,
    "generalisation": generalisation,
    "plane-curvature": planes,
}
