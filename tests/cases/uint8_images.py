"""Images as uint8, 0 to 255, as most arrays on disk are, for a net that was trained on x / 255: ToTensor of torchvision divides.

Right is the loss of the divided images, or the loss of the raw ones with a sentence that they are taken as 0..255.
"""

import numpy as np
import torch.nn.functional as F
from product import *
from torch import nn

NET = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.ReLU(), nn.Linear(12, 3))\n"
here = folder()
(here / "mynet.py").write_text(NET)
scope = {}
exec(NET, scope)
torch.manual_seed(2)
r = np.random.default_rng(4)
y = r.integers(0, 3, 120)
images = r.integers(0, 120, (120, 1, 6, 6))
for i, k in enumerate(y):
    images[i, 0, 2 * k : 2 * k + 2] += 130
images = images.astype(np.uint8)
y[::7] = (y[::7] + 1) % 3  # some labels are wrong, so that confidence costs
net, x, t = scope["net"](), torch.tensor(images).float() / 255, torch.tensor(y)
o = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(120):
    o.zero_grad()
    F.cross_entropy(net(x), t).backward()
    o.step()
net.eval()
with torch.no_grad():
    true, raw = float(F.cross_entropy(net(x), t)), float(F.cross_entropy(net(x * 255), t))
torch.save(net.state_dict(), here / "net.pt")
np.savez(here / "data.npz", x=images, y=y)
code, out = command(
    "surface",
    "--model",
    "mynet.py:net",
    "--model-file",
    "net.pt",
    "--dataset",
    "npz:data.npz",
    "--x=-1:1:3",
    "--surf-file",
    "s.h5",
    cwd=here,
)
said = any(w in out for w in ("uint8", "0..255", "0 to 255", "/255", "/ 255", "divided"))
got = float(read(here / "s.h5")["train_loss"][1]) if code == 0 else None
rows = [
    (
        "npz of uint8, by the command line",
        got if code == 0 else out[-150:],
        f"{true:.5f}; or {raw:.3f} with a word of uint8",
        (code != 0 and said) or (got is not None and (abs(got - true) < 1e-5 or (abs(got / raw - 1) < 1e-4 and said))),
    )
]
before = len(logged())
got, error = attempt(lambda: centre(Problem.supervised(net, nn.CrossEntropyLoss(), (torch.tensor(images), t))))
said = any(w in str(error) + logged()[before:] for w in ("uint8", "Byte", "0..255", "/ 255"))
rows.append(
    (
        "a tuple of a uint8 tensor, in Python",
        error or got,
        f"{true:.5f}, or a sentence that names uint8",
        said if error else abs(got - true) < 1e-5 or said,
    )
)
judged(rows)
