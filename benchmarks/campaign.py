"""What a campaign costs beside its measures: seconds of one process a member, and of plan, status and collect.

python benchmarks/campaign.py [members]

Members of 25 points whose measure costs nothing; then `states` and the table of all, from the index and without it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import lossmap
from lossmap.campaign.folder import CampaignFolder
from lossmap.campaign.table import collected
from lossmap.geometry.grid import Field, Grid


@dataclass(frozen=True)
class Free:
    """A measure that costs nothing."""

    number: int
    name = "loss"
    fields = (Field("train_loss", "nats", "mean loss"),)

    @property
    def settings(self) -> dict[str, Any]:
        """What tells it from others."""
        return {"number": self.number}

    def __call__(self, point: Any = None) -> Any:
        if point is None:
            return self, Grid.square(count=5)
        return {"train_loss": float(self.number)}


def timed(what: str, act: Any, count: int) -> Any:
    """Call it, and print seconds of wall clock and processor for each member."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = act()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:28} {1e3 * wall / count:8.2f} ms {1e3 * cpu / count:8.2f} ms of the processor a member", flush=True)
    return value


def main() -> None:
    """Run and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    members = [lossmap.Member(f"member {i}", Free(i), {"number": i}) for i in range(count)]
    with tempfile.TemporaryDirectory() as name:
        folder = CampaignFolder(name)
        timed("run, 25 points each", lambda: lossmap.run_campaign(members, name, progress=False), count)
        timed("run again, all there", lambda: lossmap.run_campaign(members, name, progress=False), count)
        timed("table, by the index", lambda: collected(members, folder), count)
        folder.index.unlink()
        timed("table, by the results", lambda: collected(members, folder), count)


if __name__ == "__main__":
    main()
