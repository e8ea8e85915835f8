"""A result that the same process has open through xarray, h5py or netCDF is read and drawn; no error advises to overwrite it."""

import h5py
from product import *

here = folder()
NET = "from torch import nn\ndef net():\n    return nn.Linear(4, 3)\n"
(here / "mynet.py").write_text(NET)
torch.manual_seed(1)
import numpy as np

np.savez(here / "d.npz", x=np.random.default_rng(0).standard_normal((20, 4)).astype("float32"), y=np.arange(20) % 3)
code, out = command(
    "surface",
    "--model",
    "mynet.py:net",
    "--dataset",
    "npz:d.npz",
    "--x=-1:1:3",
    "--y=-1:1:3",
    "--surf-file",
    "s.h5",
    cwd=here,
)
assert code == 0, out
path, rows = here / "s.h5", []
true = read(path)["train_loss"].copy()


def looked(what, error):
    rows.append((what, error or "read", "read", error is None and True))


try:
    import xarray

    held = xarray.open_dataset(path, engine="h5netcdf")
    float(held["train_loss"][0, 0])
    s, error = attempt(lambda: read(path))
    rows.append(
        (
            "open in xarray: read",
            error or "the values",
            "the values",
            error is None and np.array_equal(s["train_loss"], true),
        )
    )
    _, error = attempt(lambda: draw(str(path)))
    looked("open in xarray: draw", error)
    held.close()
except ImportError:
    print("without xarray and h5netcdf that part is left out")
with h5py.File(path, "r"):
    s, error = attempt(lambda: read(path))
    rows.append(
        (
            "open in h5py: read",
            error or "the values",
            "the values",
            error is None and np.array_equal(s["train_loss"], true),
        )
    )
    rows.append(
        (
            "open in h5py: no word of overwriting or damage",
            error or "none",
            "none",
            not any(w in str(error).lower() for w in ("overwrite", "damaged")),
        )
    )

    _, error = attempt(lambda: draw(str(path)))
    looked("open in h5py: draw", error)
with h5py.File(path, "a"):
    s, error = attempt(lambda: read(path))
    rows.append(
        (
            "open for writing in h5py: read, or a sentence without `overwrite`",
            error or "read",
            "either",
            error is None or "overwrite" not in str(error).lower(),
        )
    )
judged(rows)
