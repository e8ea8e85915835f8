"""The bars of negative, zero and positive eigenvalues on the sheet of layers: what is not known is not drawn as known.

Truth: all eigenvalues of each block of a float64 Hessian. A bar of a sign may be short by what the sheet marks as undecided, never long.
"""

import torch.nn.functional as F
from product import *
from torch import nn
from truth import dense

torch.manual_seed(2)
net = nn.Sequential(nn.Linear(12, 14), nn.ReLU(), nn.Linear(14, 10), nn.Tanh(), nn.Linear(10, 3)).eval()
x, y = torch.randn(60, 12), torch.randint(0, 3, (60,))
rows = []
for dense_up_to in (300, 20):
    L = layer_spectra(
        Problem.supervised(net, nn.CrossEntropyLoss(), (x, y)),
        "tensor",
        dense=dense_up_to,
        probes=2,
        density_error=0.2,
        seed=0,
    )
    figure = draw_layers(L)
    names = [t.get_text().split(" ")[0] for t in figure.axes[0].get_yticklabels()]
    bars = {c.get_label(): [r.get_width() for r in c] for a in figure.axes for c in a.containers}
    for i, name in enumerate(names):
        w = torch.linalg.eigvalsh(dense(net, lambda f: F.cross_entropy(f(x.double()), y), name))
        floor = max(float(L[name].floor), 1e-12)
        true = {
            "negative": 100 * float((w < -floor).double().mean()),
            "zero": 100 * float((w.abs() <= floor).double().mean()),
            "positive": 100 * float((w > floor).double().mean()),
        }
        got = {k: bars[k][i] for k in true if k in bars}
        right = all(got[k] <= true[k] + 5 for k in got) and (len(bars) > 3 or all(got[k] >= true[k] - 5 for k in got))
        rows.append(
            (
                f"{name} ({len(w)}), made whole up to {dense_up_to}: percent negative, zero, positive",
                tuple(round(v, 1) for v in got.values()),
                tuple(round(v, 1) for v in true.values()),
                right,
            )
        )
judged(rows)
