"""How often stated intervals hold the truth, over seeds, on spectra like those of networks; dense reference.

    python benchmarks/coverage.py [--quick] [--seeds 200] [parts ...]

density    the error that a density states against its Wasserstein distance to the true spectrum, and whether its band
           holds the true cumulative density at all of its ticks together; both at 95 %; and the intervals of the share
           below -t and above t, each by itself, at 95 %
trace      the 95 % intervals of XTrace, Hutch++ and Hutchinson
energy     the 95 % interval of the off-diagonal energy, 4 products a block
limits     beyond the upper and the lower limit of a search lies no eigenvalue, stated with 90 %: cold, and warm from
           vectors of a neighbouring matrix; and beyond the limit on all others none but the five that were requested
counts     the law behind the band, without any Lanczos run: counts of n eigenvalues seen by s probes, all together
audit      the upper bound of the share of missed points, at 95 %, for points drawn without replacement
sampling   value +- 1.96 standard errors of numbers that are means over samples, at 95 %, against those of the pool that
           the samples are drawn from; of numbers whose mean depends on how many samples there are (*), and whose error
           is a jackknife over ten groups, value +- 2.26 (Student's t, 9 degrees of freedom) against their mean

losses     loss +- 1.96 standard errors of `--loss-error`, at 95 %, against the loss over all samples: of the rounds as
           they end, at each of 23 points around a fitted network; 2,000 repeats or more

Probes are rotation invariant, so that density and limits are measured on diagonal matrices; traces and energies on
rotated ones and on the Hessians of two small fitted networks as they are. An interval of exactly 95 % covers 180 or
fewer of 200 in 1 of 500 trials: where one covers fewer, the script says so and ends with 1.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binom
from torch import nn

from lossmap import Grid, Problem, random_plane
from lossmap.curvature.build import build_operator
from lossmap.curvature.per_sample_gradients import gradient_covariance
from lossmap.data import datasets
from lossmap.diagnostics.label_noise import label_noise
from lossmap.diagnostics.neural_collapse import neural_collapse
from lossmap.io.sampled import relative_error
from lossmap.landscape.audit import upper_bound
from lossmap.landscape.loss_sampling import standard_error, width_of
from lossmap.landscape.sampling_rounds import FIRST_READ, corners_of, middle_of, next_size
from lossmap.linalg.block_norms import off_diagonal_energy
from lossmap.linalg.deflation import successive
from lossmap.linalg.dense import DenseMatrix
from lossmap.linalg.eigenvalue_counts import count_ranges, simultaneous_tail
from lossmap.linalg.lanczos import lanczos
from lossmap.linalg.spectral_density import spectral_density
from lossmap.linalg.trace import METHODS, trace


class Matrix:
    """A float64 matrix, diagonal where its entries are (n,)."""

    def __init__(self, entries):
        self.entries = torch.as_tensor(np.ascontiguousarray(entries))
        self.size, self.dtype, self.device = len(self.entries), torch.float64, torch.device("cpu")

    def __matmul__(self, v):
        if self.entries.dim() == 2:
            return self.entries @ v
        return self.entries.view(-1, *[1] * (v.dim() - 1)) * v


@dataclass
class Tally:
    """How often intervals of one kind held the truth, and which did so too rarely."""

    seeds: int
    failed: list = field(default_factory=list)

    def line(self, name, rate, hits, more=""):
        """Print the numbers of hits, by what was counted, and note those below what chance explains at this rate."""
        least = int(binom.ppf(0.002, self.seeds, rate))
        low = [f"{name}: {what}" for what, count in hits.items() if count < least]
        self.failed += low
        text = ", ".join(f"{what} {count}" for what, count in hits.items())
        print(f"{name}: {text} of {self.seeds} at {rate:g}{more}{'  TOO FEW' * bool(low)}", flush=True)


def fitted(net, x, y, steps):
    """A network after some steps of Adam, and its problem in float64."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return Problem.supervised(net.double().eval(), "crossentropy", (x.double(), y))


@functools.cache
def networks():
    """The Hessians of two small networks fitted to digits, over all parameters of dimension > 1, dense, by name."""
    (images, labels), *_ = datasets.load("digits", "train", samples=300).rebatched(300)
    x, y = images.float(), labels.long()
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Tanh(), nn.Linear(6, 10))
    conv = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6, 10)
    )
    problems = {"digits, mlp": fitted(mlp, x, y, 300), "digits, conv": fitted(conv, x, y, 300)}
    made = {name: DenseMatrix.of(build_operator(p, "hessian", "weights")).entries for name, p in problems.items()}
    return {name: (m + m.T) / 2 for name, m in made.items()}


def spectra():
    """Spectra like those of networks, and those of two networks, by name."""
    r = np.random.default_rng(7)
    bulk, near_zero = 0.03 * r.standard_normal(95), 1e-6 * r.standard_normal(100)
    return {
        "outliers, bulk": np.r_[12, 7, 4, 2, -1, bulk, near_zero],
        "two clusters": np.r_[np.linspace(0.9, 1, 90), np.linspace(-0.3, -0.2, 90)],
        "spikes above zero": np.r_[1e-7 * r.standard_normal(290), np.geomspace(0.1, 20, 10)],
        "rank-deficient": np.r_[np.zeros(150), np.geomspace(1e-3, 10, 40)],
        "small": np.r_[np.zeros(8), -0.1, 0.5, 3.0],
        "large": np.r_[np.geomspace(0.5, 30, 10), 0.05 * r.standard_normal(1500), 1e-5 * r.standard_normal(1490)],
        **{name: np.linalg.eigvalsh(m) for name, m in networks().items()},
    }


SETTINGS = ({"steps": 30, "probes": 1}, {"steps": 20, "probes": 3}, {"steps": 15, "probes": 10}, {"error": 0.03})


def densities(tally, quick):
    """Coverage of errors, bands and masses."""
    for name, values in spectra().items():
        for settings in SETTINGS[: 1 if quick else None]:
            hits, t = dict.fromkeys(("error", "band", "mass below", "mass above"), 0), 1e-2 * np.abs(values).max()
            stated = []
            for seed in range(tally.seeds):
                result = spectral_density(Matrix(values), seed=seed, **settings)
                stated.append(result.error)
                hits["error"] += result.wasserstein(values) <= result.error * (result.range[1] - result.range[0])
                ticks, _, low, high = result.band
                truth = np.searchsorted(np.sort(values), ticks, side="right") / len(values)
                hits["band"] += bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())
                below, above = result.below(-t), result.above(t)
                hits["mass below"] += below.low - 1e-9 <= (values < -t).mean() <= below.high + 1e-9
                hits["mass above"] += above.low - 1e-9 <= (values > t).mean() <= above.high + 1e-9
            words = ", ".join(f"{k} {v}" for k, v in settings.items())
            more = f"; median error stated {100 * np.median(stated):.2g} %"
            tally.line(f"density, {name}, {words}", 0.95, hits, more)


def traces(tally, quick):
    """Coverage of the traces' intervals on rotated matrices, and on those of networks as they are."""
    for name, values in spectra().items():
        if len(values) > 1000:
            continue
        if name in networks():
            matrix = Matrix(networks()[name])
        else:
            q = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))[0]
            matrix = Matrix((q * values) @ q.T)
        for method in METHODS:
            hits, widths = {}, []
            for products in (6, 10, 20, 50)[: 1 if quick else None]:
                if products >= len(values):
                    continue
                ends = [trace(matrix, method, products=products, seed=s).interval() for s in range(tally.seeds)]
                hits[f"{products}"] = sum(low <= values.sum() <= high for low, high in ends)
                widths.append(np.median([high - low for low, high in ends]) / np.abs(values).sum())
            more = f"; median widths over the sum of |lambda| {', '.join(f'{w:.2g}' for w in widths)}"
            tally.line(f"trace, {name}, {method}, products", 0.95, hits, more)


def limits(tally, quick):
    """Coverage of the limits of extreme eigenvalues, of cold and warm searches, and of the limit on all others."""
    for name, values in list(spectra().items())[: 2 if quick else None]:
        hits = dict.fromkeys(("cold above", "cold below", "warm above", "warm below", "others"), 0)
        n, order = len(values), np.sort(values)
        near = torch.zeros(n, 2, dtype=torch.float64)
        near[int(np.argsort(values)[-2]), 0] = near[int(np.argsort(values)[1]), 1] = 1.0  # of the second ones alone
        for seed in range(tally.seeds):
            for kind, start in (("cold", None), ("warm", near)):
                pairs = lanczos(Matrix(values), seed=seed, start=start, confidence=0.9, tol=1e-2, extra_steps=0)
                hits[f"{kind} above"] += order[-1] <= pairs.limits[0]
                hits[f"{kind} below"] += order[0] >= pairs.limits[1]
            count = min(5, n - 1)
            others = successive(Matrix(values), f"top:{count}", seed=seed, confidence=0.9, tol=1e-2).others
            hits["others"] += not others < order[-1 - count]
        tally.line(f"limits, {name}", 0.9, hits)


def audits(tally):
    """Coverage of the audit's upper bound, for populations of points of which some are missed."""
    for points, audited, missed in ((3, 3, 1), (25, 20, 2), (225, 20, 11), (2601, 53, 130), (2601, 53, 1)):
        draws = [
            np.random.default_rng(seed).hypergeometric(missed, points - missed, audited) for seed in range(tally.seeds)
        ]
        hits = sum(missed / points <= upper_bound(int(m), audited, points) + 1e-12 for m in draws)
        tally.line(f"audit, {audited} of {points} points, {missed} missed", 0.95, {"bound": hits})


def sampling(tally):
    """Coverage of standard errors that come from the samples: 256 of a pool of 4,000 with noisy labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 10, generator=generator)
    y = (x[:, :3] + 0.7 * torch.randn(4000, 3, generator=generator)).argmax(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3))
    fitted(net, x[:1000], y[:1000], 200)

    def measured(rows):
        problem = Problem.supervised(net, "crossentropy", (x[rows].double(), y[rows]))
        gradients, labels = gradient_covariance(problem), label_noise(problem)
        collapse = neural_collapse(problem)
        return {
            "noise scale": gradients.noise_scale,
            "coherence": gradients.coherence,
            "negative alignment*": gradients.against,
            "top-eigenvalue share*": gradients.concentrated,
            "accuracy": labels.accuracy_estimate,
            "log-likelihood": labels.negative_log_likelihood,
            **{f"{k}*": (getattr(collapse, k), collapse.errors[k]) for k in ("nc1", "nc2", "nc2_norms", "nc3", "nc4")},
        }

    truth, hits = {name: value for name, (value, _) in measured(torch.arange(4000)).items()}, {}
    draws = {name: [] for name in truth}
    for seed in range(tally.seeds):
        rows = torch.randperm(4000, generator=torch.Generator().manual_seed(seed))[:256]
        for name, estimate in measured(rows).items():
            draws[name].append(estimate)
    for name, estimates in draws.items():
        values, errors = np.array(estimates).T
        width = 1.96
        if name.endswith("*"):
            truth[name], width = values.mean(), 2.26
        hits[name] = int((np.abs(values - truth[name]) <= width * errors).sum())
    tally.line("sampling", 0.95, hits)


def energies(tally):
    """Coverage of the off-diagonal energy's interval: few eigenvectors spread unevenly over blocks, above a bulk."""
    for outliers in (1, 10, 30):
        for rows in ((100, 100), (190, 10), (60, 20, 100, 10, 10), (10,) * 20):
            r = np.random.default_rng(outliers)
            uneven = np.repeat(r.lognormal(size=len(rows)), rows)[:, None]
            v = np.linalg.qr(r.standard_normal((200, outliers)) * uneven)[0]
            noise = 1e-3 * r.standard_normal((200, 200))
            a = (v * 10.0 / np.arange(1, outliers + 1)) @ v.T + noise + noise.T
            blocks = {str(b): at for b, at in enumerate(torch.arange(200).split(rows))}
            truth = 1 - sum((a[np.ix_(at, at)] ** 2).sum() for at in blocks.values()) / (a**2).sum()
            ends = [off_diagonal_energy(Matrix(a), blocks, seed=s).interval() for s in range(tally.seeds)]
            hits = sum(low <= truth <= high for low, high in ends)
            width = np.median([high - low for low, high in ends])
            tally.line(
                f"energy, {outliers} outliers, {len(rows)} blocks", 0.95, {"share": hits}, f"; median width {width:.2g}"
            )
    for name, a in networks().items():
        cuts = torch.arange(len(a)).split([len(a) // 2, len(a) // 3, len(a) - len(a) // 2 - len(a) // 3])
        blocks = {str(b): at for b, at in enumerate(cuts)}
        truth = 1 - sum((a[np.ix_(at, at)] ** 2).sum() for at in blocks.values()) / (a**2).sum()
        ends = [off_diagonal_energy(Matrix(a), blocks, seed=s).interval() for s in range(tally.seeds)]
        hits = sum(low <= truth <= high for low, high in ends)
        width = np.median([high - low for low, high in ends])
        tally.line(f"energy, {name}, 3 blocks", 0.95, {"share": hits}, f"; median width {width:.2g}")


def losses(repeats):
    """Coverage of the errors of losses that are read of a part of the samples, whose number follows from them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 10, generator=generator)
    y = (x[:, 0] * x[:, 1] + 0.7 * torch.randn(len(x), generator=generator) > 0).long()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    plane, grid = random_plane(model, seed=1), Grid(np.linspace(-1, 1, 5), np.linspace(-1, 1, 5))
    with torch.no_grad():
        outputs = [torch.func.functional_call(model, plane.at(grid.point(i)), (x,)) for i in range(len(grid))]
        each = torch.stack([nn.functional.cross_entropy(o.double(), y, reduction="none") for o in outputs]).numpy()
    coverage_of_rounds("losses", each, grid, repeats)
    chance = np.random.default_rng(1)
    distance = np.array([np.hypot(*grid.point(i)) for i in range(len(grid))])[:, None]
    base, other = chance.lognormal(0, 0.5, (2, each.shape[1]))
    for name, tail in (
        ("log-normal, sigma 1", chance.lognormal(0, 1.0, each.shape[1])),
        ("log-normal, sigma 1.25", chance.lognormal(0, 1.25, each.shape[1])),
        ("Pareto, exponent 3", chance.pareto(3.0, each.shape[1])),
    ):
        heavy = base + distance**2 * tail + 0.3 * distance * (other - other.mean())
        skewness = float(np.mean(((tail - tail.mean()) / tail.std()) ** 3))
        coverage_of_rounds(f"losses, {name} (skewness {skewness:.0f})", heavy, grid, repeats)


def coverage_of_rounds(name, each, grid, repeats):
    """Coverage at the points that are read in part; each: the loss of each sample at each point, (points, samples)."""
    middle = middle_of(grid)
    complete, spreads = (middle, *corners_of(grid)), each.std(1, ddof=1)
    whole = np.isin(np.arange(len(each)), complete)  # read over all samples
    differences, ends = (each - each[middle])[~whole], each[whole].mean(1)
    truth, every = each[middle].mean() + differences.mean(1), each.shape[1]
    for tolerance in (0.05, 0.02, 0.01):
        hits, reads = np.zeros(len(truth), dtype=int), []
        for seed in range(repeats):
            order, count = np.random.default_rng(seed).permutation(every), FIRST_READ
            while True:
                drawn = differences[:, order[:count]]
                totals, squares = drawn.sum(1), np.square(drawn).sum(1)
                width = max(width_of(spreads[i], each[i, order[:count]].std(ddof=1)) for i in complete)
                errors = [width * standard_error(count, every, *s) for s in zip(totals, squares, strict=True)]
                errors = np.array(errors)
                values = each[middle].mean() + totals / count
                error = relative_error(np.append(values, ends), np.append(errors, np.zeros(len(ends))))
                if error <= tolerance or count == every:
                    break
                count = next_size(count, every, error, tolerance)
            hits += np.abs(values - truth) <= 1.96 * errors
            reads.append(count)
        low, high = binom.interval(0.99, repeats, 0.95)
        inside = int(((low <= hits) & (hits <= high)).sum())
        print(
            f"{name}, at {tolerance:.0%}: {np.mean(hits) / repeats:.2%} of {repeats} at {len(hits)} points, "
            f"{hits.min() / repeats:.2%} to {hits.max() / repeats:.2%}; {inside} of them within the 99 % interval "
            f"{low / repeats:.2%} to {high / repeats:.2%}; {np.mean(reads):.0f} of {every} samples read",
            flush=True,
        )


def counts(tally):
    """Coverage of all counts together, from shares drawn by their law."""
    for n in (5, 30, 300, 3000):
        for s in (1, 10):
            hits, k = 0, np.arange(1, n)
            for seed in range(tally.seeds):
                lengths = np.random.default_rng(seed).chisquare(s, size=n)
                seen = np.cumsum(lengths)[:-1] / lengths.sum()
                fewest, most = count_ranges(seen, seen, n, s, simultaneous_tail(n, 0.95))
                hits += bool(((fewest <= k) & (k <= most)).all())
            tally.line(f"counts, n {n}, {s} probes", 0.95, {"all": hits})


PARTS = ("counts", "audit", "energy", "sampling", "losses", "limits", "trace", "density")


def main():
    """Print a line for each spectrum and setting."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("parts", nargs="*", help=f"which: {', '.join(PARTS)}; all by default")
    flags.add_argument("--quick", action="store_true", help="few seeds and settings, as a smoke test")
    flags.add_argument("--seeds", type=int, default=200)
    options = flags.parse_args()
    began, tally = time.perf_counter(), Tally(5 if options.quick else options.seeds)
    torch.set_num_threads(1)
    run = {
        "counts": lambda: counts(tally),
        "audit": lambda: audits(tally),
        "energy": lambda: energies(tally),
        "sampling": lambda: sampling(tally),
        "losses": lambda: losses(5 if options.quick else max(options.seeds, 2000)),
        "limits": lambda: limits(tally, options.quick),
        "trace": lambda: traces(tally, options.quick),
        "density": lambda: densities(tally, options.quick),
    }
    for part in options.parts or PARTS:
        run[part]()
    print(f"{time.perf_counter() - began:.0f} s")
    if tally.failed:
        sys.exit("covered less often than stated: " + "; ".join(tally.failed))


if __name__ == "__main__":
    main()
