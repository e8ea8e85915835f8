"""Questions about the leading eigenspace along a run, answered in words, with the numbers that each rests on.

    related      are successive snapshots nearer than chance at all?
    stable       one subspace for the whole run?
    dimension    do all eigenvectors together live in few dimensions?
    clustered    do the steps fall into phases, alike within and different between?
    course       does the subspace rotate continuously or in jumps?
    null         how do the overlaps compare with two halves of the samples at one checkpoint, and with a net of another
                 seed (`nulls`)? Asked only where that was measured
    zero         which of the eigenvalues cannot be told from zero? Asked only where there are any
    converged    are the eigenpairs as exact as was asked for? Said only where some are not, as within a short budget

The thresholds are ours, chosen so that the words mean what they say on runs constructed to be one thing or
the other (tests), and stand in `Thresholds`; no paper fixes them. An answer is `cannot say` where there are
too few snapshots for it. Overlaps are those of `subspaces`: squared cosines, so .5 is a rotation by 45 degrees.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from math import inf, isnan, nan

import numpy as np

from lossmap.dynamics.eigenspaces import EigenspaceDynamics
from lossmap.dynamics.nulls import CONFIDENCE, InformedNull
from lossmap.linalg import subspaces
from lossmap.report.text import WIDTH, filled, value_with_error

Array = np.ndarray
STILL = 0.02  # loss of overlap, over the whole run and per step, below which nothing rotates
MAX_JUMPS_NAMED = 5
SLACK = 2.0  # an eigenpair counts as exact enough up to this many tolerances: rounding alone may exceed one
INDENT = 12  # characters of a question's column


@dataclass(frozen=True)
class Thresholds:
    """Where one word ends and another begins."""

    chance: float = 4.0  # standard deviations above chance that count as related
    stable: float = 0.8  # mean overlap of all pairs of snapshots
    partly: float = 0.5
    low_dimensional: float = 2.0  # participation ratio, in subspaces of r, up to which a run is low-dimensional
    jump: float = 6.0  # robust standard deviations above the usual change ...
    min_jump: float = 0.2  # ... and at least this loss of overlap in excess of the usual
    phases: float = 0.2  # overlap within phases above that between
    min_snapshots: int = 5  # fewer cannot distinguish a jump from a rotation


@dataclass(frozen=True)
class Answer:
    """One question, its answer in a word, in a sentence, and in the numbers that both rest on."""

    question: str
    answer: str
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """All answers; `print` shows them."""

    answers: tuple[Answer, ...]

    def __getitem__(self, question: str) -> Answer:
        for answer in self.answers:
            if answer.question == question:
                return answer
        raise KeyError(f"{question!r}; there are {', '.join(a.question for a in self.answers)}")

    def __str__(self) -> str:
        lines: list[str] = []
        for answer in self.answers:
            first, *rest = filled(answer.sentence, WIDTH - INDENT)
            lines += [f"{answer.question + ':':<{INDENT}}{first}", *(" " * INDENT + line for line in rest)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, object]]:
        """For JSON and attributes; the keys stand in files."""
        return {a.question: {"answer": a.answer, "words": a.sentence, "numbers": a.numbers} for a in self.answers}


def summarize(
    run: EigenspaceDynamics,
    thresholds: Thresholds | None = None,
    null: InformedNull | None = None,
    tolerance: float = inf,
) -> Summary:
    """The answers for a run. They rest on the overlaps and the uncentred PCA, which no sign changes.

    tolerance  the error of an eigenvalue, as a share of the largest of its snapshot, to which they were to be computed
    """
    limits = thresholds or Thresholds()
    s, r = len(run.steps), int(np.isfinite(run.values).sum(axis=1).max())
    if s < 2:
        nothing = Answer("related", "cannot say", "a single snapshot says nothing about a run")
        return Summary((nothing,))
    related = _related(run, limits)
    if related.answer == "no":
        blank = "successive snapshots overlap no more than random subspaces: no rotation can be followed"
        rest = [
            Answer("stable", "no", blank),
            _dimension(run, r, limits),
            Answer("clustered", "no", blank),
            Answer("course", "random", blank),
        ]
        return Summary((related, *_null(run, null), *rest, *_zero(run), *_converged(run, tolerance)))
    jumps = jumps_of(run, limits)
    answers = (
        _stable(run, r, limits),
        _dimension(run, r, limits),
        _clustered(run, jumps, limits),
        _course(run, r, jumps, limits),
    )
    return Summary((related, *_null(run, null), *answers, *_zero(run), *_converged(run, tolerance)))


def _null(run: EigenspaceDynamics, null: InformedNull | None) -> tuple[Answer, ...]:
    """Overlaps beside the informed nulls. The words follow from the order of the numbers, those of halves with bars."""
    if null is None or not (len(null.steps) or len(null.seed)):
        return ()
    successive = float(np.diag(run.overlaps, 1).mean())
    pairs = run.overlaps[np.triu_indices(len(run.steps), 1)]
    numbers, parts, answer = {"overlap": successive}, [], "cannot say"
    if len(null.steps):
        answer, words, found = _beside_halves(successive, null)
        numbers |= found
        parts.append(words)
    if len(null.seed):
        mean, most = float(null.seed.mean()), float(null.seed.max())
        numbers |= {"seed": mean, "seed_most": most, "least": float(pairs.min())}
        words = "some snapshots of the run are no nearer to each other than to it"
        if pairs.min() > most:
            words = f"any two snapshots of the run are nearer to each other ({pairs.min():.3g} at least)"
        parts.append(f"a network of another seed overlaps {mean:.3g} ({most:.3g} at most): {words}")
    return (Answer("null", answer, "; ".join(parts), numbers),)


def _beside_halves(successive: float, null: InformedNull) -> tuple[str, str, dict[str, float]]:
    """Successive overlaps beside those of halves: a word, a sentence, and numbers."""
    divisions = null.halves.shape[1]
    widths = null.half_width if divisions > 1 else np.zeros(len(null.steps))  # of one division nothing is known
    low, high = float((null.mean - widths).min()), float((null.mean + widths).max())
    means = [value_with_error(m, w) if divisions > 1 else f"{m:.3g}" for m, w in zip(null.mean, widths, strict=True)]
    measured = " and ".join(f"{mean} at step {step:g}" for mean, step in zip(means, null.steps, strict=True))
    how = "one division: no error bar"
    if divisions > 1:
        how = f"means of {divisions} random divisions with their {100 * CONFIDENCE:g} % intervals"
    answer, words = "alike", "about as much as"
    if successive > high:
        answer, words = "less", "less than"
    elif successive < low:
        answer, words = "more", "more than"
    sentence = (
        f"two disjoint halves of the samples at the same weights overlap {measured} ({how}), successive snapshots "
        f"{successive:.3g}: a step of the run moves the subspace {words} the choice of samples does"
    )
    if answer == "alike" and divisions > 1:
        sentence += ", as far as these intervals tell"
    return answer, sentence, {"halves_least": low, "halves_most": high}


def _zero(run: EigenspaceDynamics) -> tuple[Answer, ...]:
    """That some eigenvalues are zero within their errors, where their eigenvectors are any of a null space."""
    if run.residuals is None:
        return ()
    within = np.abs(run.values) <= run.residuals  # NaN compares as false
    snapshots, most = int(within.any(axis=1).sum()), int(within.sum(axis=1).max())
    if not snapshots:
        return ()
    r = int(np.isfinite(run.values).sum(axis=1).max())
    sentence = (
        f"at {snapshots} of {len(run.steps)} snapshots up to {most} of {r} eigenvalues cannot be told from zero within "
        "their errors: their eigenvectors are any of a null space, and what rotates there says nothing; follow fewer "
        "eigenvalues, or use float64"
    )
    return (Answer("zero", "yes", sentence, {"snapshots": float(snapshots), "most": float(most)}),)


def _converged(run: EigenspaceDynamics, tolerance: float) -> tuple[Answer, ...]:
    """That some eigenpairs are less exact than was asked for, whose eigenvectors turn by their errors too."""
    if run.residuals is None:
        return ()
    scale = np.nanmax(np.abs(run.values), axis=1, keepdims=True)
    errors = np.divide(run.residuals, scale, out=np.zeros_like(run.values), where=scale > 0)
    beyond = errors > SLACK * tolerance  # NaN compares as false
    snapshots = int(beyond.any(axis=1).sum())
    if not snapshots:
        return ()
    most = float(errors[beyond].max())
    sentence = (
        f"no: at {snapshots} of {len(run.steps)} snapshots eigenvalues are off by up to {100 * most:.2g} % of the "
        f"largest, where {100 * tolerance:g} % was asked for: their eigenvectors turn by such errors too, which lower "
        "the overlaps above; allow more products (a longer --budget), or follow fewer eigenvalues"
    )
    return (Answer("converged", "no", sentence, {"snapshots": float(snapshots), "most": most}),)


def _expected(run: EigenspaceDynamics) -> tuple[Array, Array]:
    """(s - 1,) mean and standard deviation of successive overlaps by chance."""
    ranks = np.isfinite(run.values).sum(axis=1)
    pairs = [subspaces.chance_overlap(run.size, int(p), int(q)) for p, q in pairwise(ranks)]
    return np.array([mean for mean, _ in pairs]), np.array([deviation for _, deviation in pairs])


def _related(run: EigenspaceDynamics, limits: Thresholds) -> Answer:
    successive = np.diag(run.overlaps, 1)
    mean, deviation = _expected(run)
    if not deviation.all():
        return Answer("related", "cannot say", "the subspaces fill the whole space: they always overlap")
    above = float(((successive - mean) / deviation).sum() / np.sqrt(len(successive)))
    numbers = {"overlap": float(successive.mean()), "chance": float(mean.mean()), "deviations": above}
    answer = _yes_no(above > limits.chance)
    sentence = (
        f"{answer}: successive snapshots overlap {successive.mean():.3g} on average; chance gives "
        f"{mean.mean():.2g} ({above:,.0f} standard deviations off, together)"
    )
    return Answer("related", answer, sentence, numbers)


def _yes_no(truth: bool) -> str:
    return {True: "yes", False: "no"}[bool(truth)]


def _stable(run: EigenspaceDynamics, r: int, limits: Thresholds) -> Answer:
    s = len(run.steps)
    pairs = run.overlaps[np.triu_indices(s, 1)]
    mean, ends, smallest = float(pairs.mean()), float(run.overlaps[0, -1]), float(pairs.min())
    chance = subspaces.chance_overlap(run.size, r, r)[0]
    answer, opening = "no", "no stable subspace"
    if mean >= limits.stable:
        answer, opening = "yes", "one stable subspace"
    elif mean >= limits.partly:
        answer, opening = "in part", "a partly stable subspace"
    sentence = (
        f"{opening}: any two of {s} snapshots overlap {mean:.3g} on average (at least {smallest:.3g}), first and last "
        f"{ends:.3g}; chance gives {chance:.2g}"
    )
    explained = float(run.pca.cumulative[min(r, len(run.pca.explained)) - 1])
    numbers = {"overlap": mean, "first_to_last": ends, "least": smallest, "chance": chance, "held_by_r": explained}
    return Answer("stable", answer, sentence, numbers)


def _dimension(run: EigenspaceDynamics, r: int, limits: Thresholds) -> Answer:
    s, m = len(run.steps), len(run.owner)
    dimension = subspaces.participation(run.pca.explained)
    chance = subspaces.chance_participation(run.size, s, max(m // s, 1))
    numbers = {
        "participation": dimension,
        "chance": chance,
        "for_90_percent": float(run.pca.needed(0.9)),
        "first_component": float(run.pca.explained[0]),
        "first_by_chance": subspaces.chance_largest(run.size, s, max(m // s, 1)) / m,
    }
    tail = (
        f"{m} eigenvectors spread over {dimension:.3g} directions (participation ratio; the minimum for {r} at a time "
        f"is {r}, chance gives {chance:.3g}); {run.pca.needed(0.9)} components hold 90 % of the variance"
    )
    if chance <= 2 * limits.low_dimensional * r:
        return Answer("dimension", "cannot say", f"too few snapshots to say: {tail}", numbers)
    answer, opening = "medium", "neither low-dimensional nor random"
    if dimension >= chance / 2:
        answer, opening = "high", "not low-dimensional"
    elif dimension <= limits.low_dimensional * r:
        answer, opening = "low", "low-dimensional"
    return Answer("dimension", answer, f"{opening}: {tail}", numbers)


def jumps_of(run: EigenspaceDynamics, thresholds: Thresholds | None = None) -> list[int]:
    """Indices t after which the subspace jumped: its loss of overlap from t to t + 1 stands out of the run's.

    None where there are too few snapshots to say (`Thresholds.min_snapshots`).
    """
    limits = thresholds or Thresholds()
    loss = 1.0 - np.diag(run.overlaps, 1)
    if len(run.steps) < limits.min_snapshots:
        return []
    usual = float(np.median(loss))
    deviation = 1.4826 * float(np.median(np.abs(loss - usual)))
    bar = usual + max(limits.jump * deviation, limits.min_jump)
    return [int(t) for t in np.nonzero(loss > bar)[0]]


def _clustered(run: EigenspaceDynamics, jumps: list[int], limits: Thresholds) -> Answer:
    s = len(run.steps)
    if s < limits.min_snapshots:
        return _too_few("clustered", s, limits)
    phase = np.cumsum([0, *(int(t in jumps) for t in range(s - 1))])
    share, chance = picture_share(run)
    numbers = {"phases": float(phase[-1] + 1), "picture_share": share, "picture_probability": chance}
    picture = (
        f"; in the plane of the first two components steps explain {100 * share:.0f} % of the variance of eigenvectors "
        f"(p = {chance:.2g} by permutation)"
    )
    if isnan(share):  # one eigenvector a step
        picture = ""
    if not jumps:
        return Answer("clustered", "no", f"not clustered by step: no jump divides the run{picture}", numbers)
    pairs = np.triu_indices(s, 1)
    same = phase[pairs[0]] == phase[pairs[1]]
    within, between = nan, float(run.overlaps[pairs][~same].mean())
    if same.any():
        within = float(run.overlaps[pairs][same].mean())
    numbers |= {"within": within, "between": between}
    answer = _yes_no(within - between > limits.phases)
    opening = {"yes": "clustered", "no": "not clustered"}[answer]
    sentence = f"{opening} by step: {phase[-1] + 1} phases, overlap {within:.3g} within, {between:.3g} between{picture}"
    return Answer("clustered", answer, sentence, numbers)


def _too_few(question: str, snapshots: int, limits: Thresholds) -> Answer:
    return Answer(question, "cannot say", f"{snapshots} snapshots are too few; {limits.min_snapshots} are required")


def picture_share(run: EigenspaceDynamics, tries: int = 999, seed: int = 0) -> tuple[float, float]:
    """How far steps explain positions in the plane of the first two components: share of variance, and its p.

    Signs count for nothing: positions are |projections|. p by `tries` permutations of the steps, drawn from `seed`
    (Anderson, 2001, doi:10.1111/j.1442-9993.2001.01070.pp.x). NaN where every step has one eigenvector alone.
    """
    positions = np.abs(run.pca.projection[:, :2])
    positions = positions - positions.mean(axis=0)
    total = float(np.square(positions).sum())
    if total <= 0 or len(positions) == len(run.steps):
        return nan, nan
    member = np.eye(len(run.steps))[run.owner]  # (m, s)
    counts = member.sum(axis=0)

    def share(order: Array) -> float:
        return float((np.square(member.T @ positions[order]) / counts[:, None]).sum() / total)

    observed = share(np.arange(len(positions)))
    generator = np.random.default_rng(seed)
    exceeded = sum(share(generator.permutation(len(positions))) >= observed - 1e-12 for _ in range(tries))
    return observed, (exceeded + 1) / (tries + 1)


def _course(run: EigenspaceDynamics, r: int, jumps: list[int], limits: Thresholds) -> Answer:
    s, loss = len(run.steps), 1.0 - np.diag(run.overlaps, 1)
    if s < limits.min_snapshots:
        return _too_few("course", s, limits)
    lost = (run.cosines**2 < 0.5).sum(axis=1)  # directions; NaN compares as false
    median, largest = float(np.median(loss)), float(loss.max())
    numbers = {"usual_loss": median, "largest_loss": largest, "jumps": float(len(jumps))}
    usual = f"successive snapshots usually lose {median:.2g} of their overlap"
    if jumps:
        numbers["first_jump"] = float(run.steps[jumps[0]])
        parts = [_jump_text(run, t, loss[t], int(lost[t]), r, limits) for t in jumps[:MAX_JUMPS_NAMED]]
        more = f", and {len(jumps) - MAX_JUMPS_NAMED} more" * (len(jumps) > MAX_JUMPS_NAMED)
        return Answer("course", "jumping", f"jumping: {usual}, but from {'; '.join(parts)}{more}", numbers)
    if median > 0.5 or np.median(lost) >= 1:
        sentence = (
            f"cannot say: {usual} and {np.median(lost):g} of {r} directions: snapshots are too far apart to "
            "distinguish a rotation from jumps"
        )
        return Answer("course", "cannot say", sentence, numbers)
    answer = "continuous"
    if 1 - float(run.overlaps[0, -1]) < STILL and largest < STILL:
        answer = "still"
    return Answer("course", answer, f"{answer}: {usual}, {largest:.2g} at most", numbers)


def _jump_text(run: EigenspaceDynamics, t: int, loss: float, lost: int, r: int, limits: Thresholds) -> str:
    """`6 to 7: 0.9 lost, 3 of 3 directions left`, and whether the subspace of t comes back behind the jump."""
    text = f"{run.steps[t]:g} to {run.steps[t + 1]:g}: {loss:.2g} lost, {lost} of {r} directions left"
    if t + 2 < len(run.steps) and run.overlaps[t, t + 2] > 1 - loss + limits.min_jump:
        text += ", and back again"
    return text
