"""a_member_hangs.py FOLDER: a campaign in which the first rank at one point of the second member never comes back."""

import json
import sys
from dataclasses import dataclass

from campaign import Build, Costly, Member, World, os, run_campaign, time

from lossmap.parallel import dispatcher

dispatcher.MIN_TIMEOUT = 1.0  # seconds, not a minute


@dataclass(frozen=True)
class Hanging(Costly):
    """What hangs once."""

    def __call__(self, point):
        """As of the others."""
        if self.depth == 1 and tuple(point) == (1.0, 1.0):
            try:
                os.close(os.open(f"{self.log}.hung", os.O_CREAT | os.O_EXCL))
                time.sleep(1000)
            except FileExistsError:
                pass
        return super().__call__(point)


if __name__ == "__main__":
    folder = sys.argv[1]
    world = World.start()
    log = os.path.join(folder, "log")
    members = [Member(f"depth {i}", Build(Hanging(float(i), 0.01, log)), {"depth": float(i)}) for i in range(3)]
    table = run_campaign(members, folder, world=world, progress=False, rank_0="deals")
    if world.rank == 0:
        print(json.dumps({"outcomes": table["outcome"], "done": table["done"]}), flush=True)
    sys.exit(world.leave(0))
