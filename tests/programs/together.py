"""together.py: what ranks do together at the start; each line that rank 0 prints is looked at by the test."""

import sys

import numpy as np
from landscape import World

world = World.start()
calls = []


def read():
    calls.append(world.rank)
    return {"weights": np.arange(100_000)}


def failing(rank, error):
    def make():
        if world.rank == rank:
            raise error
        return world.rank

    return make


def caught(call):
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def say(*what):
    every = world.gather(what)
    if world.rank == 0:
        print(*every, sep="\n", flush=True)


data = world.once_per_node(read)
say("read", len(calls), int(data["weights"].sum()))
say("broadcast", world.broadcast(f"from {world.rank}"))
say("sum", world.sum(world.rank + 1), world.sum(np.full(3, 0.5)).tolist())
say("together", caught(lambda: world.together(failing(7, ValueError()))))
say("first fails", caught(lambda: world.together(failing(0, FileNotFoundError("no such checkpoint")))))
say("last fails", caught(lambda: world.together(failing(world.size - 1, KeyError("lost")))))
say("node fails", caught(lambda: world.once_per_node(failing(0, OSError("the disk is gone")))))
say("same", caught(lambda: world.check_same("abc")))
say("other", caught(lambda: world.check_same("abc" if world.rank else "xyz")))
say("node", world.node_rank, world.node_size, world.threads)
sys.exit(world.leave())
