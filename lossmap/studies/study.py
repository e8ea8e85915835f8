"""A study: its members computed as a campaign, and what they say together, as report and table.

The folder holds members/DIGEST.h5, one net each, as that of any campaign: nothing is computed twice, and killed runs go
on; beside them report.txt and table.csv.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lossmap.campaign.run import run_campaign
from lossmap.campaign.table import CampaignTable
from lossmap.io.read import read
from lossmap.parallel.shutdown import Stop
from lossmap.parallel.world import World
from lossmap.studies.designs import DESIGNS, Size
from lossmap.studies.verdicts import VERDICTS

COMPLETE = "complete"


@dataclass(frozen=True)
class Study:
    """What a study found.

    kind      flatness, depth, generalisation or plane-curvature
    nets      labels and numbers of each net that is complete
    failures  a sentence for each net that failed
    left      nets that are not at their end
    report    the answers in words; empty while nets are left
    """

    kind: str
    nets: tuple[dict[str, Any], ...]
    failures: tuple[str, ...]
    left: int
    report: str

    @property
    def outcome(self) -> str:
        """complete, failed (some nets) or unfinished."""
        if self.left:
            return "unfinished"
        return "failed" if self.failures else COMPLETE


def run_study(
    kind: str,
    size: Size,
    folder: str | os.PathLike[str],
    *,
    world: World | None = None,
    stop: Stop | Callable[[], bool] | None = None,
    retry_failed: bool = False,
    progress: bool | None = False,
) -> Study:
    """Train and measure the nets of a study, and compare them. Every rank calls it alike.

    Raises ValueError for a study that there is not, OSError where the folder cannot be written to.
    """
    if kind not in DESIGNS:
        raise ValueError(f"there is no study {kind!r}; there are {', '.join(DESIGNS)}")
    world = world or World.start()
    table = run_campaign(
        DESIGNS[kind](size), folder, world=world, stop=stop, retry_failed=retry_failed, progress=progress
    )
    study = studied(kind, table)
    if world.rank == 0 and study.report:
        table.to_csv(Path(folder) / "table.csv")
        part = Path(folder) / "report.txt.part"
        part.write_text(study.report + "\n", encoding="utf-8")
        part.replace(part.with_suffix(""))
    return study


def studied(kind: str, table: CampaignTable) -> Study:
    """The study of the nets that a campaign's table names, from their files."""
    nets, failures, left = [], [], 0
    for row in table.rows:
        if row["outcome"] == COMPLETE:
            fields = read(row["file"]).fields
            numbers = {name: values[0] if values.ndim > 1 else float(values[0]) for name, values in fields.items()}
            nets.append({**row, **numbers})
        elif row["outcome"] == "failed":
            failures.append(f"{row['name']}: {str(row.get('reason') or 'no reason is recorded').splitlines()[-1]}")
        else:
            left += 1
    lines: list[str] = []
    if not left:
        lines = VERDICTS[kind](nets) if nets else ["no net was measured"]
    if lines and failures:
        lines.append(f"{len(failures)} of {len(table)} nets failed and are left out: {'; '.join(failures)}")
    return Study(kind, tuple(nets), tuple(failures), left, "\n".join(lines))
