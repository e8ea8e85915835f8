"""The question about a run, answered in words, with the numbers that each word rests on.

    related      are successive snapshots nearer than chance at all?
    stable       one subspace for the whole run?
    dimension    do all eigenvectors together live in few dimensions?
    clustered    do the steps fall into phases, alike within and different between?
    course       does the subspace turn continuously or in jumps?

The thresholds are ours, chosen so that the words mean what they say on runs constructed to be one thing or
the other (tests), and stand in `Thresholds`; no paper fixes them. An answer is `cannot say` where there are
too few snapshots for it. Overlaps are those of `subspaces`: squared cosines, so .5 is a turn by 45 degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from lossmap.dynamics.eigenspaces import EigenspaceDynamics
from lossmap.linalg import subspaces

Array = np.ndarray


@dataclass(frozen=True)
class Thresholds:
    """Where one word ends and another begins."""

    chance: float = 4.0  # standard deviations above chance that count as related
    stable: float = 0.8  # mean overlap of all pairs of snapshots
    partly: float = 0.5
    few: float = 2.0  # participation ratio, in subspaces of r, up to which a run is low-dimensional
    jump: float = 6.0  # robust standard deviations above the usual change ...
    jump_least: float = 0.2  # ... and at least so much loss of overlap in excess of the usual
    phases: float = 0.2  # overlap within phases above that between
    snapshots: int = 5  # fewer cannot tell a jump from a turn


@dataclass(frozen=True)
class Answer:
    """One question, its answer in a word, in a sentence, and in numbers."""

    question: str
    answer: str
    words: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """All answers; `print` shows them."""

    answers: tuple[Answer, ...]

    def __getitem__(self, question: str) -> Answer:
        for answer in self.answers:
            if answer.question == question:
                return answer
        raise KeyError(f"{question!r}; asked were {', '.join(a.question for a in self.answers)}")

    def __str__(self) -> str:
        return "\n".join(f"{a.question + ':':<11} {a.words}" for a in self.answers)

    def to_dict(self) -> dict[str, dict[str, object]]:
        """For JSON and attributes."""
        return {a.question: {"answer": a.answer, "words": a.words, "numbers": a.numbers} for a in self.answers}


def summarize(run: EigenspaceDynamics, thresholds: Thresholds | None = None) -> Summary:
    """The answers for a run. They rest on the overlaps and the uncentred PCA, which no sign changes."""
    limits = thresholds or Thresholds()
    s, r = len(run.steps), int(np.isfinite(run.values).sum(axis=1).max())
    if s < 2:
        nothing = Answer("related", "cannot say", "one snapshot alone says nothing about a run")
        return Summary((nothing,))
    related = _related(run, limits)
    if related.answer == "no":
        blank = "successive snapshots are as far apart as chance puts them: nothing turns here, each is new"
        rest = [
            Answer("stable", "no", blank),
            _dimension(run, r, limits),
            Answer("clustered", "no", blank),
            Answer("course", "random", blank),
        ]
        return Summary((related, *rest))
    jumps = jumps_of(run, limits)
    answers: list[Callable[[], Answer]] = [
        lambda: _stable(run, r, limits),
        lambda: _dimension(run, r, limits),
        lambda: _clustered(run, jumps, limits),
        lambda: _course(run, r, jumps, limits),
    ]
    return Summary((related, *(answer() for answer in answers)))


def _expected(run: EigenspaceDynamics) -> tuple[Array, Array]:
    """(s - 1,) mean and standard deviation of successive overlaps by chance."""
    held = np.isfinite(run.values).sum(axis=1)
    pairs = [subspaces.chance_overlap(run.size, int(p), int(q)) for p, q in pairwise(held)]
    return np.array([mean for mean, _ in pairs]), np.array([deviation for _, deviation in pairs])


def _related(run: EigenspaceDynamics, limits: Thresholds) -> Answer:
    successive = np.diag(run.overlaps, 1)
    mean, deviation = _expected(run)
    if not deviation.all():
        return Answer("related", "cannot say", "the subspaces fill the whole space: they always overlap")
    above = float(((successive - mean) / deviation).sum() / np.sqrt(len(successive)))
    yes = above > limits.chance
    numbers = {"overlap": float(successive.mean()), "chance": float(mean.mean()), "deviations": above}
    words = (
        f"{'yes' if yes else 'no'}: successive snapshots overlap {successive.mean():.3g} on average; chance gives "
        f"{mean.mean():.2g} ({above:,.0f} standard deviations off, together)"
    )
    return Answer("related", "yes" if yes else "no", words, numbers)


def _stable(run: EigenspaceDynamics, r: int, limits: Thresholds) -> Answer:
    s = len(run.steps)
    pairs = run.overlaps[np.triu_indices(s, 1)]
    mean, ends, least = float(pairs.mean()), float(run.overlaps[0, -1]), float(pairs.min())
    chance = subspaces.chance_overlap(run.size, r, r)[0]
    answer = "yes" if mean >= limits.stable else "in part" if mean >= limits.partly else "no"
    said = {"yes": "one stable subspace", "in part": "a subspace that stays in part", "no": "no stable subspace"}
    words = (
        f"{said[answer]}: any two of {s} snapshots overlap {mean:.3g} on average ({least:.3g} at least), first and "
        f"last {ends:.3g}; chance gives {chance:.2g}"
    )
    held = float(run.pca.cumulative[min(r, len(run.pca.explained)) - 1])
    numbers = {"overlap": mean, "first_to_last": ends, "least": least, "chance": chance, "held_by_r": held}
    return Answer("stable", answer, words, numbers)


def _dimension(run: EigenspaceDynamics, r: int, limits: Thresholds) -> Answer:
    s, m = len(run.steps), len(run.owner)
    sizes = subspaces.participation(run.pca.explained)
    chance = subspaces.chance_participation(run.size, s, max(m // s, 1))
    numbers = {
        "participation": sizes,
        "chance": chance,
        "for_90_percent": float(run.pca.needed(0.9)),
        "first_component": float(run.pca.explained[0]),
        "first_by_chance": subspaces.chance_largest(run.size, s, max(m // s, 1)) / m,
    }
    tail = (
        f"{m} eigenvectors spread over {sizes:.3g} directions (participation ratio; {r} is the least for {r} at a "
        f"time, chance gives {chance:.3g}); {run.pca.needed(0.9)} components hold 90 % of the variance"
    )
    if chance <= 2 * limits.few * r:
        return Answer("dimension", "cannot say", f"too few snapshots to tell: {tail}", numbers)
    few = sizes <= limits.few * r and sizes < chance / 2
    answer = "low" if few else "medium" if sizes < chance / 2 else "high"
    said = {"low": "low-dimensional", "medium": "neither low-dimensional nor random", "high": "not low-dimensional"}
    return Answer("dimension", answer, f"{said[answer]}: {tail}", numbers)


def jumps_of(run: EigenspaceDynamics, thresholds: Thresholds | None = None) -> list[int]:
    """Indices t after which the subspace jumped: its loss of overlap from t to t + 1 stands out of the run's."""
    limits = thresholds or Thresholds()
    loss = 1.0 - np.diag(run.overlaps, 1)
    if len(run.steps) < limits.snapshots:
        return []
    usual = float(np.median(loss))
    deviation = 1.4826 * float(np.median(np.abs(loss - usual)))
    bar = usual + max(limits.jump * deviation, limits.jump_least)
    return [int(t) for t in np.nonzero(loss > bar)[0]]


def _clustered(run: EigenspaceDynamics, jumps: list[int], limits: Thresholds) -> Answer:
    s = len(run.steps)
    if s < limits.snapshots:
        return Answer("clustered", "cannot say", f"{s} snapshots are too few; {limits.snapshots} at least")
    phase = np.cumsum([0, *(int(t in jumps) for t in range(s - 1))])
    share, chance = picture_share(run)
    numbers = {"phases": float(phase[-1] + 1), "picture_share": share, "picture_probability": chance}
    picture = (
        f"in the plane of the first two components steps explain {100 * share:.0f} % of where eigenvectors lie "
        f"(p = {chance:.2g} by permutation)"
    )
    if not jumps:
        return Answer("clustered", "no", f"not clustered by step: no jump parts the run; {picture}", numbers)
    pairs = np.triu_indices(s, 1)
    same = phase[pairs[0]] == phase[pairs[1]]
    within = float(run.overlaps[pairs][same].mean()) if same.any() else float("nan")
    between = float(run.overlaps[pairs][~same].mean())
    numbers |= {"within": within, "between": between}
    yes = within - between > limits.phases
    words = (
        f"{'clustered' if yes else 'not clustered'} by step: {phase[-1] + 1} phases, overlap {within:.3g} within, "
        f"{between:.3g} between; {picture}"
    )
    return Answer("clustered", "yes" if yes else "no", words, numbers)


def picture_share(run: EigenspaceDynamics, tries: int = 999, seed: int = 0) -> tuple[float, float]:
    """How far steps explain places in the plane of the first two components: share of variance, and its p.

    Signs count for nothing: places are |projections|. p by permutation of the steps (Anderson, 2001,
    doi:10.1111/j.1442-9993.2001.01070.pp.x).
    """
    places = np.abs(run.pca.projection[:, :2])
    places = places - places.mean(axis=0)
    whole = float(np.square(places).sum())
    if whole <= 0 or len(places) == len(run.steps):
        return float("nan"), float("nan")
    member = np.eye(len(run.steps))[run.owner]  # (m, s)
    held = member.sum(axis=0)

    def share(order: Array) -> float:
        return float((np.square(member.T @ places[order]) / held[:, None]).sum() / whole)

    found = share(np.arange(len(places)))
    chance = np.random.default_rng(seed)
    beaten = sum(share(chance.permutation(len(places))) >= found - 1e-12 for _ in range(tries))
    return found, (beaten + 1) / (tries + 1)


def _course(run: EigenspaceDynamics, r: int, jumps: list[int], limits: Thresholds) -> Answer:
    s, loss = len(run.steps), 1.0 - np.diag(run.overlaps, 1)
    if s < limits.snapshots:
        return Answer("course", "cannot say", f"{s} snapshots are too few; {limits.snapshots} at least")
    left = (run.cosines**2 < 0.5).sum(axis=1)  # NaN compares as false
    numbers = {"usual_loss": float(np.median(loss)), "largest_loss": float(loss.max()), "jumps": float(len(jumps))}
    usual = f"successive snapshots usually lose {np.median(loss):.2g} of their overlap"
    if jumps:
        told = []
        for t in jumps[:5]:
            back = bool(t + 2 < s and run.overlaps[t, t + 2] > 1 - loss[t] + limits.jump_least)
            told.append(
                f"{run.steps[t]:g} to {run.steps[t + 1]:g}: {loss[t]:.2g} lost, {left[t]} of {r} directions left"
                + (", and back again" if back else "")
            )
        more = f", and {len(jumps) - 5} more" if len(jumps) > 5 else ""
        numbers["first_jump"] = float(run.steps[jumps[0]])
        return Answer("course", "jumping", f"jumping: {usual}, but from {'; '.join(told)}{more}", numbers)
    if np.median(loss) > 0.5 or np.median(left) >= 1:
        words = (
            f"cannot say: {usual} and {np.median(left):g} of {r} directions: snapshots lie too far apart to tell a "
            "turn from jumps"
        )
        return Answer("course", "cannot say", words, numbers)
    if 1 - float(run.overlaps[0, -1]) < 0.02 and loss.max() < 0.02:
        return Answer("course", "still", f"still: {usual}, {loss.max():.2g} at most", numbers)
    return Answer("course", "continuous", f"continuous: {usual}, {loss.max():.2g} at most", numbers)
