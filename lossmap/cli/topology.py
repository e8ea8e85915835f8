"""`lossmap topology FILE ...`: the minima of computed surfaces, their basins and saddles, and how they merge.

Of each file the minima of one field, with the saddle at which each meets a lower one, its persistence beside the error
of the two losses, the area of its basin, and what the network's own Hessian says there where the file holds an
eigenmap. Minima that errors explain are not counted; where every second tick gives another number, the report says so.
Several files (random seeds, say) are counted side by side. Neither the model nor torch is needed, and files of the
original tool will do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from lossmap.cli.command_line import Command
from lossmap.cli.entry_point import guarded
from lossmap.cli.output_path import ENDINGS
from lossmap.cli.settings import UsageError, setting
from lossmap.cli.whole_result import read_whole
from lossmap.io.printable import printable
from lossmap.report.stored import StoredReport
from lossmap.report.topology import counts_table
from lossmap.topology.minima import find_minima
from lossmap.topology.result import Topology

PICTURES = (".pdf", ".png", ".svg")


@dataclass(frozen=True)
class TopologySettings:
    """Topology options."""

    files: tuple[str, ...] = setting((), "surfaces; several are counted side by side", metavar="FILE", positional=True)
    field: str | None = setting(
        None, "quantity whose minima are looked for; by default the training loss, or another loss", metavar="NAME"
    )
    neighbours: int = setting(
        8, "neighbours of a point of a plane: 4, or 8 with those that it touches in a corner", metavar="4|8"
    )
    least: float = setting(
        0.0, "persistence, in the unit of the quantity, from which a minimum counts", metavar="LOSS", minimum=0
    )
    output: tuple[str, ...] = setting(
        (), "files to write, of one surface: h5 (what was found), pdf, png, svg", metavar="FILE", names=("-o",)
    )
    plot: bool = setting(False, "map of the basins, persistence diagram and merge tree, as FILE_topology.pdf and .png")
    json: bool = setting(False, "machine-readable JSON output")
    overwrite: bool = setting(False, "replacement of an .h5 that is there")


COMMAND = Command(
    "topology",
    __doc__ or "",
    (TopologySettings,),
    (
        "lossmap topology surface.h5 --plot",
        "lossmap topology seed*.h5 --least 0.01",
        "lossmap topology surface.h5 --field test_loss -o minima.h5 minima.pdf",
    ),
)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 done, 2 usage error."""
    options = COMMAND.parse(argv).topology
    files = [Path(file) for file in options.files]
    if not files:
        raise UsageError("topology needs a surface, such as lossmap topology surface.h5")
    if options.neighbours not in (4, 8):
        raise UsageError(f"--neighbours must be 4 or 8; got {options.neighbours}")
    outputs = _outputs(options, files)
    found = [_of_file(file, options) for file in files]
    if options.json:
        print(json.dumps([_as_json(file, topology) for file, topology in zip(files, found, strict=True)]))
    else:
        texts = [printable(repr(topology)) for topology in found]
        if len(found) > 1:
            texts.append(counts_table([StoredReport(*topology.stored()) for topology in found]))
        print("\n\n".join(texts))
    for path in _written(options, files, found, outputs):
        if not options.json:
            print(f"written: {path}")
    return 0


def _outputs(options: Any, files: Sequence[Path]) -> list[Path]:
    """The files to write. Raises UsageError where they are none that can be, or are there."""
    outputs = [Path(name) for name in options.output]
    if outputs and len(files) > 1:
        raise UsageError("--output is of one surface; with several, --plot writes a picture beside each")
    for path in outputs:
        if path.suffix not in (*ENDINGS, *PICTURES):
            kinds = ", ".join(ending[1:] for ending in (*ENDINGS, *PICTURES))
            raise UsageError(f"--output must end in one of {kinds}; got {path}")
        if path in files:
            raise UsageError(f"{path} is the surface itself; name another file")
        if path.suffix in ENDINGS and path.exists() and not options.overwrite:
            raise UsageError(f"{path} is there already; --overwrite replaces it")
    return outputs


def _of_file(file: Path, options: Any) -> Topology:
    surface = read_whole(file).surface
    try:
        return find_minima(
            surface, field=options.field, diagonal=options.neighbours == 8, least=options.least, label=file.stem
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"{file}: {error.args[0]}") from None


def _written(options: Any, files: Sequence[Path], found: Sequence[Topology], outputs: Sequence[Path]) -> list[Path]:
    """Write what was asked for; returns the paths."""
    from lossmap.plotting.figures import draw, save

    paths = []
    for path in outputs:
        if path.suffix in ENDINGS:
            paths.append(found[0].save(path, overwrite=options.overwrite))
        else:
            paths.append(save(draw(found[0]), path))
    for file, topology in zip(files, found, strict=True) if options.plot else ():
        figure = draw(topology)
        paths += [save(figure, file.with_name(f"{file.stem}_topology{end}")) for end in (".pdf", ".png")]
    return paths


def _as_json(file: Path, topology: Topology) -> dict[str, Any]:
    """One surface as plain values; what is infinite or unknown as null."""
    minima = []
    for i in range(len(topology.minimum)):
        saddle, into = int(topology.saddle[i]), int(topology.into[i])
        minima.append(
            {
                "at": topology.position(topology.minimum[i]),
                "value": _number(topology.values.reshape(-1)[topology.minimum[i]]),
                "persistence": _number(topology.persistence[i]),
                "error": _number(topology.error[i]),
                "counts": bool(topology.is_real[i]),
                "merges_at": topology.position(saddle) if saddle >= 0 else None,
                "into": into if into >= 0 else None,
                "depth": _number(topology.depth[i]),
                "basin": _number(topology.area[i]),
                "at_edge": bool(topology.at_edge[i]),
                "hessian": (topology.sign[i] or None) if topology.sign else None,
                "hessian_at_saddle": (topology.saddle_sign[i] or None) if topology.sign else None,
            }
        )
    return {
        "file": str(file),
        "field": topology.field,
        "unit": topology.unit,
        "error_kind": topology.error_kind,
        "precision": topology.precision or None,
        "count": topology.count,
        "every_second_tick": list(topology.coarse),
        "missing": topology.missing,
        "minima": minima,
    }


def _number(value: Any) -> float | None:
    return float(value) if isfinite(value) else None
