"""nobody_catches.py: rank 1 raises before the survey begins; nobody must wait for it."""

from landscape import Bowl, Grid, World, survey

world = World.start()
if world.rank == 1:
    raise RuntimeError("a fault of the program's own")
survey(Bowl(), Grid.line(), world=world)
