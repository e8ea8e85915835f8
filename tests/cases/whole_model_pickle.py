"""torch.save(model): a whole module of somebody's own class. --unsafe-load is for that; it must find the class where --model does."""

import torch.nn.functional as F
from product import *
from torch import nn

NETS = """from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l = nn.Linear(4, 3)
    def forward(self, x):
        return self.l(x)
def net():
    return Net()
"""
import numpy as np

here = folder()
(here / "sub").mkdir()
(here / "sub/ownnets.py").write_text(NETS)
x = np.random.default_rng(0).standard_normal((30, 4)).astype("float32")
np.savez(here / "d.npz", x=x, y=np.arange(30) % 3)
(here / "sub/train.py").write_text(
    NETS
    + "\nif __name__ == '__main__':\n    import torch\n    torch.manual_seed(1)\n    torch.save(net(), 'main.pt')\n"
)
(here / "save.py").write_text(
    "import sys, torch\nsys.path.insert(0, 'sub')\nimport ownnets\ntorch.manual_seed(1)\nm = ownnets.net()\ntorch.save(m, 'whole.pt')\ntorch.save(m.state_dict(), 'plain.pt')\ntorch.save({'model': m, 'epoch': 2}, 'under.pt')\n"
)
for script in ("save.py", "sub/train.py"):
    assert program(script, cwd=here)[0] == 0
torch.manual_seed(1)
l = nn.Linear(4, 3)
true = float(F.cross_entropy(l(torch.tensor(x)), torch.arange(30) % 3))
rows = []
for name, file, flags, model in (
    ("a state dict", "plain.pt", (), "sub/ownnets.py:net"),
    ("the whole module, without the flag: refused, nothing run", "whole.pt", (), "sub/ownnets.py:net"),
    ("the whole module", "whole.pt", ("--unsafe-load",), "sub/ownnets.py:net"),
    ("the module under a key", "under.pt", ("--unsafe-load",), "sub/ownnets.py:net"),
    ("a module saved from a script, class __main__.Net", "main.pt", ("--unsafe-load",), "sub/train.py:net"),
):
    code, out = command(
        "surface",
        "--model",
        model,
        "--model-file",
        file,
        *flags,
        "--dataset",
        "npz:d.npz",
        "--x=-1:1:3",
        "--surf-file",
        "s.h5",
        "--overwrite",
        cwd=here,
    )
    got = float(read(here / "s.h5")["train_loss"][1]) if code == 0 else out.strip().split("\n")[-1]
    if not flags and "whole" in file:
        rows.append((name, got, "--unsafe-load is named", code == 2 and "--unsafe-load" in out))
    else:
        rows.append((name, got, true, code == 0 and abs(got - true) < 1e-5))
judged(rows)
