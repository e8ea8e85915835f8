"""Checkpoints as people's trainers leave them: Lightning's prefix, a tied head left out, averages under keys of their own."""

import torch.nn.functional as F
from product import *

NETS = """import torch
from torch import nn
def mlp():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.o = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.o.weight = self.e.weight
    def forward(self, ids):
        return self.o(torch.tanh(self.e(ids))).mean(1)
def tied():
    return Tied()
"""
here, scope = folder(), {}
(here / "mynets.py").write_text(NETS)
exec(NETS, scope)
import numpy as np

torch.manual_seed(6)
r = np.random.default_rng(0)
x, ids = r.standard_normal((40, 4)).astype("float32"), r.integers(0, 6, (40, 5))
np.savez(here / "x.npz", x=x, y=np.arange(40) % 3)
np.savez(here / "ids.npz", x=ids, y=np.arange(40) % 6)
mlp, other, tied = scope["mlp"](), scope["mlp"](), scope["tied"]()
sd, bad = mlp.state_dict(), other.state_dict()
true = {
    "mlp": float(F.cross_entropy(mlp(torch.tensor(x)), torch.arange(40) % 3)),
    "tied": float(F.cross_entropy(tied(torch.tensor(ids)), torch.arange(40) % 6)),
}
files = {
    "Lightning: model.* under state_dict": (
        "mlp",
        {
            "epoch": 2,
            "pytorch-lightning_version": "2.4",
            "state_dict": {f"model.{k}": v for k, v in sd.items()},
            "optimizer_states": [],
            "lr_schedulers": [],
        },
    ),
    "Lightning with a criterion beside the net": (
        "mlp",
        {"state_dict": {f"net.{k}": v for k, v in sd.items()} | {"criterion.weight": torch.ones(3)}},
    ),
    "DistributedDataParallel of a compiled net": ("mlp", {f"module._orig_mod.{k}": v for k, v in sd.items()}),
    "swa_utils.AveragedModel": ("mlp", {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in sd.items()}),
    "a tied head left out (safetensors)": ("tied", {k: v for k, v in tied.state_dict().items() if k != "o.weight"}),
    "the net and its average: which one is told": ("mlp", {"state_dict": sd, "state_dict_ema": bad}),
}
rows = []
for name, (net, content) in files.items():
    file = here / ("c.safetensors" if "safetensors" in name else "c.pt")
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({k: v.contiguous() for k, v in content.items()}, file)
    else:
        torch.save(content, file)
    code, out = command(
        "surface",
        "--model",
        f"mynets.py:{net}",
        "--model-file",
        file.name,
        "--dataset",
        f"npz:{'x' if net == 'mlp' else 'ids'}.npz",
        "--x=-1:1:3",
        "--surf-file",
        "s.h5",
        "--overwrite",
        cwd=here,
    )
    got = float(read(here / "s.h5")["train_loss"][1]) if code == 0 else out.strip().split("\n")[-1]
    rows.append((name, got, true[net], code == 0 and abs(got - true[net]) < 1e-5))
torch.save({"model": bad, "model_ema": sd, "epoch": 3}, here / "c.pt")
code, out = command(
    "surface",
    "--model",
    "mynets.py:mlp",
    "--model-file",
    "c.pt",
    "--state-key",
    "model_ema",
    "--dataset",
    "npz:x.npz",
    "--x=-1:1:3",
    "--surf-file",
    "s.h5",
    "--overwrite",
    cwd=here,
)
got = float(read(here / "s.h5")["train_loss"][1]) if code == 0 else out.strip().split("\n")[-1]
rows.append(
    (
        "the average by its key",
        got,
        true["mlp"],
        code == 0 and abs(got - true["mlp"]) < 1e-5,
    )
)
torch.save(sd | {"extra.position_ids": torch.arange(4)}, here / "c.pt")
code, out = command(
    "surface",
    "--model",
    "mynets.py:mlp",
    "--model-file",
    "c.pt",
    "--dataset",
    "npz:x.npz",
    "--x=-1:1:3",
    "--surf-file",
    "s.h5",
    "--overwrite",
    cwd=here,
)
rows.append(
    (
        "a tensor more than the net has: taken aloud, or refused with the flag that goes on",
        code if code == 0 else out.strip().split("\n")[-1],
        "either",
        ("position_ids" in out) if code == 0 else "--" in out.split("position_ids")[-1],
    )
)
judged(rows)
