"""Which GPU a rank uses, decided before it starts. Pure functions, which need neither a GPU nor torch.

A rank's number on its node comes from MPI's shared-memory split (`World.node_rank`), or from the launcher's
variables where there is no MPI. CUDA_VISIBLE_DEVICES is respected: a launcher that hands one GPU to each task shows
each a single one; a launcher that shows all GPUs to every task leaves it to the ranks to divide them. GPUs are told
apart by their UUIDs and PCI addresses: under `--gpus-per-task=1` with control groups each task sees another card as
number 0, and "0" and "GPU-..." may be one card; AMD's cards without a serial number all have one UUID.

AMD's GPUs, which are `cuda` to torch, have two masks: the driver leaves those of ROCR_VISIBLE_DEVICES, and of these, by
their numbers among them, HIP those of HIP_VISIBLE_DEVICES, or of CUDA_VISIBLE_DEVICES where that is not set.

Intel's GPUs, `xpu` to torch, are shown by ZE_AFFINITY_MASK: numbers of cards, or of tiles as `0.1`; in their own order,
whatever the mask's. A card of which several tiles are shown may count as one. What SYCL leaves of them is that of
ONEAPI_DEVICE_SELECTOR, as far as that lists numbers. Apple's, `mps`, are one to a machine.

Sources: "GPU isolation techniques" in the documentation of ROCm; "Affinity Mask" in the specification of Level Zero;
"Environment Variables" of oneAPI's DPC++ compiler.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from lossmap import accelerators

# kind of GPU, as torch names it: where to look if a rank sees none; ROCm's are `cuda` to torch
_UNSEEN = {
    "cuda": "look at CUDA_VISIBLE_DEVICES (AMD's: ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES), and whether torch has "
    "CUDA or ROCm",
    "xpu": "look at ZE_AFFINITY_MASK and ONEAPI_DEVICE_SELECTOR, and whether torch has XPU",
    "mps": "it is for Apple's, where torch has MPS",
}
_SELECTED = re.compile(r"(?:level_zero|\*):(\d+(?:,\d+)*)")  # of ONEAPI_DEVICE_SELECTOR
# (rank on the node, ranks on the node), the most trustworthy first: SLURM's last, since under mpirun inside a job they
# are those of the daemon, 0 for all
_NODE_VARIABLES = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"),
    ("SLURM_LOCALID", ""),
)


def node_rank(environ: Mapping[str, str]) -> tuple[int, int]:
    """(the rank's number on its node, the ranks there) by the launcher's variables; (0, 1) without a launcher."""
    for rank, size in _NODE_VARIABLES:
        if not environ.get(rank, "").isdigit():
            continue
        if rank == "SLURM_LOCALID":
            here = environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split(",")[0].split("(")[0]
            tasks = int(here) if here.isdigit() else 1
        else:
            tasks = int(environ[size]) if environ.get(size, "").isdigit() else 1
        return int(environ[rank]), max(tasks, int(environ[rank]) + 1)
    return 0, 1


def visible_devices(
    environ: Mapping[str, str], count: int, *, rocm: bool = False, kind: str = "cuda"
) -> tuple[str, ...]:
    """The names of the devices that this rank may use, in the order of their numbers within it.

    environ  the process's variables
    count    how many torch says there are, with the masks taken into account (torch.cuda.device_count())
    rocm     whether they are AMD's, which have masks of their own
    kind     as torch names them
    """
    if kind != "cuda":
        return _shown_by_level_zero(environ, count) if kind == "xpu" else tuple(str(i) for i in range(count))
    shown = _listed(environ, "CUDA_VISIBLE_DEVICES")
    if rocm:
        below, above = _listed(environ, "ROCR_VISIBLE_DEVICES"), _listed(environ, "HIP_VISIBLE_DEVICES")
        above = shown if above is None else above
        shown = below if above is None else above
        if below is not None and above is not None:  # numbers among those that the driver shows
            shown = [below[int(i)] if i.isdigit() and int(i) < len(below) else i for i in above]
    if shown is None:
        return tuple(str(i) for i in range(count))
    return tuple(shown[:count])


def _shown_by_level_zero(environ: Mapping[str, str], count: int) -> tuple[str, ...]:
    """The names of Intel's GPUs: as the mask has them, of a card of which several tiles are one device `0.0+0.1`."""
    shown = _listed(environ, "ZE_AFFINITY_MASK")
    if not shown or not all(re.fullmatch(r"\d+(\.\d+)?", name) for name in shown):
        shown = [str(i) for i in range(count)] if _selected(environ) is None else None
    else:
        shown = sorted(set(shown), key=lambda name: tuple(map(int, name.split("."))))
        cards = list(dict.fromkeys(name.partition(".")[0] for name in shown))
        if len(shown) > count >= len(cards):
            shown = ["+".join(n for n in shown if n.partition(".")[0] == card) for card in cards]
    chosen = _selected(environ)
    if chosen is not None:
        shown = [str(i) if shown is None else shown[i] for i in chosen if shown is None or i < len(shown)]
    return tuple((shown or [])[:count])


def _selected(environ: Mapping[str, str]) -> list[int] | None:
    """The numbers of the devices that SYCL leaves, in their order; None where it leaves all, or does not list them."""
    listed = _SELECTED.fullmatch(environ.get("ONEAPI_DEVICE_SELECTOR", "").strip().lower())
    return None if listed is None else sorted({int(number) for number in listed.group(1).split(",")})


def _listed(environ: Mapping[str, str], name: str) -> list[str] | None:
    """The names that a mask lists; None where it is not set."""
    if name not in environ:
        return None
    return [part.strip() for part in environ[name].split(",") if part.strip()]


def pci_address(properties: object) -> str | None:
    """Domain, bus and device of a GPU's slot, as `0000:c1:00`; None where this torch does not say.

    properties  as of torch.cuda.get_device_properties
    """
    numbers = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if not all(isinstance(number, int) for number in numbers):
        return None
    domain, bus, slot = numbers
    return f"{domain:04x}:{bus:02x}:{slot:02x}"


def identities(
    names: Sequence[str], uuids: Sequence[str | None], addresses: Sequence[str | None] | None = None
) -> tuple[str, ...]:
    """What tells each GPU that a rank sees from every other of its node.

    names      as of `visible_devices`
    uuids      what the driver says of each, or None where it says nothing
    addresses  as of `pci_address`, by default unknown; where neither is known the name has to do

    A part of a card (MIG) goes by the name under which it was handed out, since drivers differ in whether such a part
    has a UUID of its own.
    """
    places = [None] * len(names) if addresses is None else addresses
    return tuple(
        name if name.startswith("MIG-") else _identity(uuid, place) or name
        for name, uuid, place in zip(names, uuids, places, strict=True)
    )


def _identity(uuid: str | None, address: str | None) -> str:
    """UUID and address, as far as they are known: two cards may have one UUID, parts of a card share the address."""
    parts = []
    if uuid is not None and set(uuid) - set("0-"):
        parts.append(f"GPU-{uuid.removeprefix('GPU-')}")
    if address is not None:
        parts.append(f"PCI-{address}")
    return " ".join(parts)


def shown_names(seen: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """For each rank of a node: by identity how a GPU is called in the log, the same on all ranks that see it.

    seen  for each rank the name of each GPU by its identity

    By its number where that means the same card to all, else by the first 12 letters of the identity, or by all of it
    where these are the same of several.
    """
    meant: dict[str, set[str]] = {}
    called: dict[str, set[str]] = {}
    for names in seen:
        for identity, name in names.items():
            meant.setdefault(name, set()).add(identity)
            called.setdefault(identity, set()).add(name)
    plain = all(len(cards) == 1 for cards in meant.values()) and all(len(names) == 1 for names in called.values())
    if plain:
        return [dict(names) for names in seen]
    short = {identity: identity[:12] for identity in called}
    if len(set(short.values())) < len(short):
        short = {identity: identity for identity in called}
    return [{identity: short[identity] for identity in names} for names in seen]


def assign_devices(masks: Sequence[tuple[str, ...]], per_gpu: int = 1) -> list[int]:
    """For each rank of a node, the number of the device that it uses among those it sees; -1 where it sees none.

    masks    the identities of the devices that each rank sees, in the order of the ranks; () for ranks that need none
    per_gpu  ranks that may share one device; they are spread out first

    Raises ValueError where there are fewer devices than that allows.
    """
    needing = [rank for rank, mask in enumerate(masks) if mask]
    rank_at: dict[tuple[str, int], int] = {}  # (device, slot on it) -> rank

    def find(rank: int, tried: set[tuple[str, int]]) -> bool:
        """Assign a free slot, or one whose rank can move to another (bipartite matching by augmenting paths)."""
        slots = [(name, number) for number in range(per_gpu) for name in masks[rank]]
        for slot in sorted(slots, key=lambda slot: slot in rank_at):
            if slot not in tried:
                tried.add(slot)
                if slot not in rank_at or find(rank_at[slot], tried):
                    rank_at[slot] = rank
                    return True
        return False

    if not all(find(rank, set()) for rank in needing):
        devices = len({name for mask in masks for name in mask})
        need = -(-len(needing) // devices)
        raise ValueError(
            f"{len(needing)} ranks on this node need a GPU, and it has {_count(devices)}: start fewer ranks, "
            f"or let several share one with --ranks-per-gpu {need}"
        )
    chosen = {rank: masks[rank].index(name) for (name, _), rank in rank_at.items()}
    return [chosen.get(rank, -1) for rank in range(len(masks))]


def kind_of(device: str) -> str:
    """The kind of GPU that `--device` names; `auto` and `cpu` name none, and are returned as they are.

    Raises ValueError for what is no device.
    """
    kind, _, number = device.partition(":")
    if device in ("auto", "cpu") or (kind in accelerators.KINDS and (device == kind or number.isdigit())):
        return kind
    raise ValueError(f"--device must be auto, cpu, cuda, xpu, mps, or cuda:0, cuda:1 and so on; got {device!r}")


def device_for(
    masks: Sequence[tuple[str, ...]], rank: int, per_gpu: int = 1, device: str = "auto", kind: str = "cuda"
) -> str:
    """The device of one rank of a node, as torch names it: `cpu`, `cuda:0`, ...

    masks, per_gpu  as for `assign_devices`
    rank            the rank's number on its node
    device          `auto`, `cpu`, `cuda` or another kind, or `cuda:1` for one device that all ranks of the node use
    kind            of the GPUs that the rank sees, which `auto` takes

    Raises ValueError where a GPU is requested and there is none, for what is no device, and as `assign_devices`.
    """
    asked, number = kind_of(device), device.partition(":")[2]
    mask = masks[rank]
    if device == "cpu" or (device == "auto" and not mask):
        return "cpu"
    if not mask:
        raise ValueError(f"--device {device}, but this rank sees no GPU: {_UNSEEN.get(asked, 'look at its masks')}")
    if number == "":
        return f"{kind if asked == 'auto' else asked}:{assign_devices(masks, per_gpu)[rank]}"
    if int(number) >= len(mask):
        raise ValueError(f"--device {device}, but this rank sees {_count(len(mask))}")
    same = [other for other, theirs in enumerate(masks) if theirs[int(number) :][:1] == (mask[int(number)],)]
    if len(same) > per_gpu:
        raise ValueError(
            f"--device {device} puts {len(same)} ranks on one GPU: use --device {asked}, or --ranks-per-gpu {len(same)}"
        )
    return device


def _count(devices: int) -> str:
    return f"{devices} GPUs" if devices > 1 else f"{devices} GPU"
