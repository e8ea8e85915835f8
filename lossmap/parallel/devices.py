"""Which GPU a rank takes, decided before CUDA starts. Pure functions: no GPU is needed to know.

A rank's place on its node comes from MPI's shared-memory split (`World.node_rank`), or from the launcher's
variables where there is no MPI. CUDA_VISIBLE_DEVICES is respected: a launcher that hands one GPU to each task shows
each a single one; a launcher that shows all GPUs to every task leaves it to the ranks to divide them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

# (rank on the node, ranks on the node), in the order in which they are believed: SLURM's last, since under
# mpirun inside a job it is the place of the daemon, 0 for all
_PLACES = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("SLURM_LOCALID", ""),
)


def place_on_node(environ: Mapping[str, str]) -> tuple[int, int]:
    """Find the rank's place on its node and the ranks there in the launcher's variables; (0, 1) without a launcher."""
    for rank, size in _PLACES:
        if not environ.get(rank, "").isdigit():
            continue
        if rank == "SLURM_LOCALID":
            here = environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0]
            tasks = int(here) if here.isdigit() else 1
        else:
            tasks = int(environ[size]) if environ.get(size, "").isdigit() else 1
        return int(environ[rank]), max(tasks, int(environ[rank]) + 1)
    return 0, 1


def visible(environ: Mapping[str, str], count: int) -> tuple[str, ...]:
    """The names of the devices that this rank may use, in the order of their numbers within it.

    count  how many CUDA says there are, with CUDA_VISIBLE_DEVICES taken into account (torch.cuda.device_count())
    """
    shown = environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return tuple(str(i) for i in range(count))
    names = [name.strip() for name in shown.split(",") if name.strip()]
    return tuple(names[:count])


def assigned(masks: Sequence[tuple[str, ...]], per_gpu: int = 1) -> list[int]:
    """For each rank of a node, which of the devices that it sees it takes; -1 for ranks that see none.

    masks    what each rank sees, in the order of the ranks; ranks that want no device show ()
    per_gpu  ranks that may share one device; they are spread out first

    Raises ValueError where there are fewer devices than that allows.
    """
    wanting = [rank for rank, mask in enumerate(masks) if mask]
    taken: dict[tuple[str, int], int] = {}  # (device, seat on it) -> rank

    def find(rank: int, tried: set[tuple[str, int]]) -> bool:
        """Take a free seat, or one whose holder can move to another (an augmenting path)."""
        seats = [(name, number) for number in range(per_gpu) for name in masks[rank]]
        for seat in sorted(seats, key=lambda seat: seat in taken):
            if seat not in tried:
                tried.add(seat)
                if seat not in taken or find(taken[seat], tried):
                    taken[seat] = rank
                    return True
        return False

    if not all(find(rank, set()) for rank in wanting):
        devices = len({name for mask in masks for name in mask})
        need = -(-len(wanting) // devices)
        raise ValueError(
            f"{len(wanting)} ranks on this node want {devices} GPU{'s' if devices > 1 else ''}: start fewer ranks, "
            f"or let several share one with --ranks-per-gpu {need}"
        )
    chosen = {rank: masks[rank].index(name) for (name, _), rank in taken.items()}
    return [chosen.get(rank, -1) for rank in range(len(masks))]


def device_for(masks: Sequence[tuple[str, ...]], rank: int, per_gpu: int = 1, asked: str = "auto") -> str:
    """The device of one rank of a node, as torch names it: `cpu`, `cuda:0`, ...

    asked  what --device says: `auto`, `cpu`, `cuda`, or `cuda:1` for one device that all ranks of the node take

    Raises ValueError where `cuda` is asked for and there is none, and as `assigned`.
    """
    kind, _, number = asked.partition(":")
    if asked not in ("auto", "cpu", "cuda") and not (kind == "cuda" and number.isdigit()):
        raise ValueError(f"--device wants auto, cpu, cuda, or cuda:0, cuda:1 and so on; got {asked!r}")
    mask = masks[rank]
    if asked == "cpu" or (asked == "auto" and not mask):
        return "cpu"
    if not mask:
        raise ValueError(
            f"--device {asked}, but this rank sees no GPU: look at CUDA_VISIBLE_DEVICES, and whether torch has CUDA"
        )
    if number == "":
        return f"cuda:{assigned(masks, per_gpu)[rank]}"
    if int(number) >= len(mask):
        raise ValueError(f"--device {asked}, but this rank sees {len(mask)} GPU{'s' if len(mask) > 1 else ''}")
    same = [other for other, theirs in enumerate(masks) if theirs[int(number) :][:1] == (mask[int(number)],)]
    if len(same) > per_gpu:
        raise ValueError(
            f"--device {asked} puts {len(same)} ranks on one GPU: use --device cuda, or --ranks-per-gpu {len(same)}"
        )
    return asked
