"""the_store_raises.py: rank 0 cannot record a reading; every rank raises what it raised."""

import json
import sys

from landscape import Bowl, Grid, World, survey

from lossmap.io.memory_store import MemoryStore


class Full(MemoryStore):
    def record(self, *args, **kwargs):
        raise OSError("the store is full")


world, grid, measure = World.start(), Grid.square(count=4), Bowl(0.002)
store = Full(grid, {"loss": (measure.fields, measure.settings)}) if world.rank == 0 else None
try:
    survey(measure, grid, world=world, store=store)
    raised = None
except OSError as error:
    raised = (type(error).__name__, str(error))
every = world.gather(raised)
if world.rank == 0:
    print(json.dumps(every), flush=True)
sys.exit(world.leave())
