"""Singular values of grouped, depthwise and transposed convolutions.

Truth: the matrix that maps what lies under the kernel, all channels, to the outputs of one place is block diagonal by groups.
"""

from product import *
from torch import nn

torch.manual_seed(9)
layers = nn.ModuleDict({
    "plain": nn.Conv2d(3, 5, 3), "grouped": nn.Conv2d(8, 12, 3, groups=4), "depthwise": nn.Conv2d(10, 10, 5, groups=10),
    "multiplier": nn.Conv2d(6, 12, 3, groups=6), "grouped_1d": nn.Conv1d(4, 6, 7, groups=2), "transposed": nn.ConvTranspose2d(5, 4, 3),
    "transposed_grouped": nn.ConvTranspose1d(6, 4, 4, groups=2), "transposed_depthwise": nn.ConvTranspose2d(7, 7, 3, groups=7),
})  # fmt: skip
told = singular_values(layers)
rows = []
for name, layer in layers.items():
    w, g = layer.weight.detach().double(), layer.groups
    if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d)):
        w = w.view(g, w.shape[0] // g, *w.shape[1:]).transpose(1, 2).reshape(-1, w.shape[0] // g, *w.shape[2:])
    s = torch.cat([torch.linalg.svdvals(b) for b in w.flatten(1).chunk(g)]).sort(descending=True).values
    got = torch.as_tensor(told[f"{name}.weight"].values)
    got = got[got > 1e-12]
    right = len(got) == len(s) and float((got - s).abs().max()) < 1e-9
    rows.append(
        (
            f"{name}: (how many, largest, smallest)",
            (len(got), float(got[0]), float(got[-1])),
            (len(s), float(s[0]), float(s[-1])),
            right,
        )
    )
judged(rows)
