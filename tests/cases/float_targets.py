"""Cross entropy over targets that are no class probabilities: regression targets pass in silence, whole labels as floats fail in PyTorch's words."""

import numpy as np
import torch.nn.functional as F
from product import *
from torch import nn

torch.manual_seed(13)
x, values = torch.randn(60, 4), torch.randn(60, 3)
net = nn.Linear(4, 3).eval()
soft, labels = values.softmax(1), values.argmax(1)
with torch.no_grad():
    hard, right_soft = float(F.cross_entropy(net(x), labels)), float(F.cross_entropy(net(x), soft))
rows = []
words = ("probabilit", "--loss", "'mse'", "whole numbers", "class")
for name, t, true in (
    ("regression targets (N, 3), the loss forgotten", values, None),
    ("smoothed labels, rows that sum to 1", soft, right_soft),
    ("whole labels as float32", labels.float(), hard),
    ("whole labels as int32", labels.int(), hard),
    ("whole labels as uint8", labels.to(torch.uint8), hard),
):
    got, error = attempt(lambda: centre(Problem.supervised(net, "crossentropy", (x, t))))
    right = (
        (refused(error, *words) if error else False)
        if true is None
        else (
            (error is not None and t.is_floating_point() and refused(error, "whole", "long", "int64"))
            or (error is None and abs(got - true) < 1e-5)
        )
    )
    rows.append((f"Python: {name}", error or got, "refused: no class probabilities" if true is None else true, right))
NET = "from torch import nn\ndef net():\n    return nn.Linear(4, 3)\n"
here = folder()
(here / "mynet.py").write_text(NET)
torch.save(net.state_dict(), here / "net.pt")
for name, t, true in (
    ("regression targets", values.numpy(), None),
    ("whole labels as float64, as np.loadtxt reads them", labels.double().numpy(), hard),
    ("labels 1 to 3", labels.numpy() + 1, None),
):
    np.savez(here / "data.npz", x=x.numpy(), y=t)
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
        "--overwrite",
        cwd=here,
    )
    got = float(read(here / "s.h5")["train_loss"][1]) if code == 0 else out.strip().split("\n")[-1]
    sentence = code == 2 and any(w in out for w in (*words, "labels", "0 to 2", "classes")) and "scalar type" not in out
    rows.append(
        (
            f"npz: {name}",
            got,
            "a refusal that says what is wanted" if true is None else true,
            sentence if true is None or code else abs(got - true) < 1e-5,
        )
    )
judged(rows)
