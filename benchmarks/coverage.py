"""How often stated intervals hold the truth, over seeds, on spectra like those of networks; dense reference.

    python benchmarks/coverage.py [--quick] [--seeds 200]

density    the error that a density states against its Wasserstein distance to the true spectrum, and whether its band
           holds the true cumulative density at all of its ticks together; both at 95 %
masses     the intervals of the share below -t and above t, each by itself, at 95 %
trace      the 95 % intervals of XTrace, Hutch++ and Hutchinson
energy     the 95 % interval of the off-diagonal energy, 4 products a block
counts     the law behind the band, without any Lanczos run: counts of n eigenvalues seen by s probes, all together

Probes are rotation invariant, so that density and masses are measured on diagonal matrices; the rest on rotated ones.
With 200 seeds, an interval of exactly 95 % covers 181 or fewer in 1 of 200 trials.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from lossmap.linalg.block_norms import off_diagonal_energy
from lossmap.linalg.eigenvalue_counts import count_ranges, simultaneous_tail
from lossmap.linalg.spectral_density import density
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


def spectra():
    """Spectra like those of networks, by name."""
    r = np.random.default_rng(7)
    bulk, near_zero = 0.03 * r.standard_normal(95), 1e-6 * r.standard_normal(100)
    return {
        "outliers, bulk": np.r_[12, 7, 4, 2, -1, bulk, near_zero],
        "two clusters": np.r_[np.linspace(0.9, 1, 90), np.linspace(-0.3, -0.2, 90)],
        "spikes above zero": np.r_[1e-7 * r.standard_normal(290), np.geomspace(0.1, 20, 10)],
        "rank-deficient": np.r_[np.zeros(150), np.geomspace(1e-3, 10, 40)],
        "small": np.r_[np.zeros(8), -0.1, 0.5, 3.0],
        "large": np.r_[np.geomspace(0.5, 30, 10), 0.05 * r.standard_normal(1500), 1e-5 * r.standard_normal(1490)],
    }


SETTINGS = ({"steps": 30, "probes": 1}, {"steps": 20, "probes": 3}, {"steps": 15, "probes": 10}, {"error": 0.03})


def densities(seeds, quick):
    """Coverage of errors, bands and masses."""
    for name, values in spectra().items():
        for settings in SETTINGS[: 1 if quick else None]:
            near, inside, masses, t = 0, 0, np.zeros(2, dtype=int), 1e-2 * np.abs(values).max()
            stated = []
            for seed in range(seeds):
                result = density(Matrix(values), seed=seed, **settings)
                stated.append(result.error)
                near += result.wasserstein(values) <= result.error * (result.range[1] - result.range[0])
                ticks, _, low, high = result.band
                truth = np.searchsorted(np.sort(values), ticks, side="right") / len(values)
                inside += bool(((low <= truth + 1e-9) & (truth <= high + 1e-9)).all())
                sides = ((result.below(-t), (values < -t).mean()), (result.above(t), (values > t).mean()))
                masses += np.array([m.low - 1e-9 <= true <= m.high + 1e-9 for m, true in sides])
            text = f"error {near}, band {inside}, mass below {masses[0]}, above {masses[1]} of {seeds}"
            print(f"{name:20} {settings}: {text}; median error stated {100 * np.median(stated):.2g} %", flush=True)


def traces(seeds, quick):
    """Coverage of the traces' intervals on rotated matrices."""
    for name, values in spectra().items():
        if len(values) > 400:
            continue
        q = np.linalg.qr(np.random.default_rng(1).standard_normal((len(values), len(values))))[0]
        matrix, hits = Matrix((q * values) @ q.T), {}
        for method in METHODS[: 1 if quick else None]:
            for products in (10, 60):
                ends = [trace(matrix, method, products=products, seed=s).interval() for s in range(seeds)]
                hits[f"{method} {products}"] = sum(low <= values.sum() <= high for low, high in ends)
        print(f"trace, {name}: {', '.join(f'{k} {v}' for k, v in hits.items())} of {seeds}", flush=True)


def energies(seeds):
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
            ends = [off_diagonal_energy(Matrix(a), blocks, seed=s).interval() for s in range(seeds)]
            hits = sum(low <= truth <= high for low, high in ends)
            width = np.median([high - low for low, high in ends])
            print(f"energy, {outliers} outliers, {len(rows)} blocks: {hits} of {seeds}; median width {width:.2g}")


def counts(seeds):
    """Coverage of all counts together, from shares drawn by their law."""
    for n in (5, 30, 300, 3000):
        for s in (1, 10):
            hits, k = 0, np.arange(1, n)
            for seed in range(seeds):
                lengths = np.random.default_rng(seed).chisquare(s, size=n)
                seen = np.cumsum(lengths)[:-1] / lengths.sum()
                fewest, most = count_ranges(seen, seen, n, s, simultaneous_tail(n, 0.95))
                hits += bool(((fewest <= k) & (k <= most)).all())
            print(f"counts, n {n}, {s} probes: {hits} of {seeds}", flush=True)


def main():
    """Print a line for each spectrum and setting."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="few seeds and settings, as a smoke test")
    flags.add_argument("--seeds", type=int, default=200)
    options = flags.parse_args()
    seeds, began = (5 if options.quick else options.seeds), time.perf_counter()
    counts(seeds)
    energies(seeds)
    traces(seeds, options.quick)
    densities(seeds, options.quick)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
