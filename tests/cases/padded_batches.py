"""Batches that a loader pads each to its own width, as every text or detection loader does: they are read as they are, or padded."""

import torch.nn.functional as F
from product import *
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from truth import dense, ends


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(8, 5), nn.Linear(5, 4)

    def forward(self, ids):
        return self.o(torch.tanh(self.e(ids)))


torch.manual_seed(23)
texts = [torch.randint(1, 8, (n,)) for n in (3, 9, 5, 5, 11, 4, 7, 2)]
collate = lambda rows: {
    "ids": pad_sequence(rows, batch_first=True),
    "labels": pad_sequence([r % 4 for r in rows], batch_first=True, padding_value=-100),
}
net = Tagger().eval()
batches = list(DataLoader(texts, 2, collate_fn=collate))


def loss(model, b):
    return F.cross_entropy(model(b["ids"]).flatten(0, 1), b["labels"].flatten()), int((b["labels"] >= 0).sum())


everything = collate(texts)
with torch.no_grad():
    true = float(loss(net, everything)[0])  # the mean over all tokens: the padding counts nothing
top = ends(dense(net, lambda f: loss(f, everything)[0]))[0]
rows = []
for name, make in (
    (
        "a DataLoader with its own collate_fn",
        lambda: Problem.custom(net, loss, DataLoader(texts, 2, collate_fn=collate)),
    ),
    ("a list of padded batches", lambda: Problem.custom(net, loss, batches)),
):
    got, error = attempt(lambda: centre(make()))
    rows.append((f"{name}: surface", error or got, true, error is None and abs(got - true) < 1e-5))
    s, error = attempt(lambda: spectrum(make(), top=1, bottom=1, trace_products=0, density_error=None))
    rows.append(
        (f"{name}: spectrum, largest", error or largest(s), top, error is None and honest(largest(s), top, top))
    )
judged(rows)
