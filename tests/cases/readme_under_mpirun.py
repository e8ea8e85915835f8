"""The README's snippet under mpirun: every rank gets the Surface and can print it; one of them draws.

`python readme_under_mpirun.py` starts `mpirun -n 2` itself (it must be on the PATH or beside the interpreter); by hand:
mpirun -n 2 python readme_under_mpirun.py on-ranks
"""

import shutil
import subprocess

from product import *

if sys.argv[1:] == ["on-ranks"]:
    from torch import nn

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.randn(40, 5), torch.randint(0, 2, (40,))), batch_size=20
    )
    import lossmap

    problem = lossmap.Problem.supervised(model, nn.CrossEntropyLoss(), loader)
    plane = lossmap.random_plane(model, seed=0)
    surface = lossmap.survey(lossmap.losses(problem, plane), lossmap.Grid.square(-1, 1, 3))
    print(surface)
    lossmap.draw(surface).savefig(
        f"surface-{os.environ.get('OMPI_COMM_WORLD_RANK', os.environ.get('PMI_RANK', '0'))}.pdf"
    )
    print("RANK DONE", float(surface["train_loss"][1, 1]), flush=True)
    sys.exit(0)
mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
if mpirun is None:
    print("no mpirun here: start it by hand on a machine that has one")
    sys.exit(1)
here = folder()
flags = (
    ["--oversubscribe"]
    if "Open" in subprocess.run([mpirun, "--version"], capture_output=True, text=True).stdout
    else []
)
try:
    r = subprocess.run(
        [mpirun, "-n", "2", *flags, sys.executable, str(Path(__file__).resolve()), "on-ranks"],
        capture_output=True,
        text=True,
        cwd=here,
        timeout=60,
    )
    done, code, last = r.stdout.count("RANK DONE"), r.returncode, ([*(r.stderr.strip() or " ").split("\n"), ""])
except subprocess.TimeoutExpired:
    done, code, last = 0, "hung", [""]
said = next((l for l in last if "Error" in l), "")[:120]
judged(
    [
        (
            "ranks that got the Surface, printed and drew it",
            f"{done}, exit {code} {said}",
            "2, exit 0",
            done == 2 and code == 0,
        )
    ]
)
