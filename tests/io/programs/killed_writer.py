"""Kills a writer at random moments, again and again, and looks whether a recorded point was ever lost.

Each round forks a writer that opens the file, records points as fast as it can, takes a snapshot every dozen, and
tells each index through a pipe once `record` has returned. Prints one line: rounds, kills, points told, points lost.
"""

import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np

from lossmap.geometry.grid import Field, Grid
from lossmap.io.read import Failure, SurfaceFile, read

FIELDS = (Field("train_loss", "nats", "mean loss"), Field("train_acc", "percent", "accuracy"))
GRID = Grid(np.linspace(-1, 1, 20), np.linspace(0, 1, 15))


def value(index):
    return {"train_loss": np.nan if index % 17 == 0 else index / 7, "train_acc": -float(index)}


def write(path, pipe):
    store = SurfaceFile.open(path, GRID, identity={"model": "m"}, measures={"loss": (FIELDS, {"split": "train"})})
    for count, index in enumerate(map(int, store.todo("loss"))):
        if count % 12 == 11:
            store.snapshot()
        if index % 101 == 100:
            store.fail("loss", index, Failure(index, 0, "here", "ValueError: on purpose"))
        else:
            store.record("loss", index, value(index), 0.001, 0)
        os.write(pipe, index.to_bytes(4, "little"))
    store.close()
    os.write(pipe, b"\xff\xff\xff\xff")


def main(folder, rounds, seed):
    chance = random.Random(seed)
    kills = told_in_all = lost = finished = 0
    path, told = Path(folder) / "surface.h5", set()
    for _ in range(rounds):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                write(path, writer)
            finally:
                os._exit(0)
        os.close(writer)
        if chance.random() < 0.6:  # else the blow may fall while the file is being opened
            select.select([reader], [], [], 5)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        with os.fdopen(reader, "rb") as pipe:
            data = pipe.read()
        news = [int.from_bytes(data[i : i + 4], "little") for i in range(0, len(data) - len(data) % 4, 4)]
        complete = 0xFFFFFFFF in news
        told |= {i for i in news if i != 0xFFFFFFFF}
        told_in_all += len(news)
        if path.exists():
            with h5py.File(path, "r") as file:
                assert file["train_loss"].shape == GRID.shape
        if not told and not path.exists() and not Path(f"{path}.journal").exists():
            continue
        try:
            surface = read(path)
        except FileNotFoundError:
            assert not told
            continue
        status = surface.status["loss"].reshape(-1)
        for index in told:
            wanted = 2 if index % 101 == 100 else 1
            same = wanted == 2 or np.array_equal(
                [surface["train_loss"].reshape(-1)[index], surface["train_acc"].reshape(-1)[index]],
                list(value(index).values()),
                equal_nan=True,
            )
            lost += status[index] != wanted or not same
        if complete:
            assert surface.outcome == "failed" and not Path(f"{path}.journal").exists()
            finished += 1
        if surface.outcome != "unfinished":
            for leftover in Path(folder).iterdir():
                leftover.unlink()
            told = set()
    print(f"{rounds} rounds, {kills} kills, {told_in_all} points told, {finished} finished, {lost} lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
