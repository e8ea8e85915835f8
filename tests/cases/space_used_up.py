"""A Lanczos search that goes on until the whole space is used up must end with what it has, not with an IndexError."""

import numpy as np
from product import *


class Known:
    """A matrix known by its products, in float32, slightly unsymmetric as rounding (or a faulty operation) makes them."""

    def __init__(self, values, noise, seed):
        r = np.random.default_rng(seed)
        q, _ = np.linalg.qr(r.standard_normal((len(values), len(values))))
        self.true = (q * values) @ q.T
        self.a = torch.tensor(
            self.true + noise * np.abs(values).max() * r.standard_normal(self.true.shape), dtype=torch.float32
        )
        self.size, self.dtype, self.device = len(values), torch.float32, torch.device("cpu")

    def __matmul__(self, v):
        return self.a @ v


rows = []
for n in (1, 2, 5, 40, 150):
    for noise in (0.0, 1e-7, 1e-5, 1e-3):
        matrix = Known(np.linspace(-1.0, 1.2, n) if n > 1 else np.array([1.2]), noise, n)
        e = np.linalg.eigvalsh(matrix.true)
        p, error = attempt(lambda: extremes(matrix, tol=1e-6, certify=True, seed=0))
        bar = max(noise, 1e-6) * np.sqrt(n) * 4 + 1e-4
        gives = error or (float(p.values[0]), float(p.values[-1]))
        right = error is None and abs(p.values[0] - e[-1]) < bar and abs(p.values[-1] - e[0]) < bar
        rows.append(
            (
                f"n = {n}, unsymmetric by {noise:g}",
                gives,
                (float(e[-1]), float(e[0])),
                right or refused(error, "symmetric"),
            )
        )
judged(rows)
