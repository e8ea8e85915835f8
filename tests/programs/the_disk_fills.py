"""the_disk_fills.py FILE: another program fills the disk in the middle of the survey."""

import os
import sys

from landscape import Bowl, World, run


def act(number, point):
    if World.start().rank == 0 and number == 10:
        with open(os.path.join(os.path.dirname(sys.argv[1]), "ballast"), "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                pass


try:
    run(Bowl(0.005, act), sys.argv[1], count=40)
except OSError as error:
    print(error, file=sys.stderr, flush=True)
    sys.exit(World.start().leave(2))
