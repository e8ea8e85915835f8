"""memory_runs_out.py FILE: rank 1's allocator says no to large batches; at one point every one says no."""

import sys

from landscape import Bowl, World, run


class OutOfMemoryError(RuntimeError):
    """By this name torch.cuda's is known."""


class Hungry(Bowl):
    batch = 8

    def __call__(self, point):
        if World.start().rank == 1 and self.batch > 2:
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if point == (-1.0, -0.5):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
        return super().__call__(point)

    def smaller(self):
        if self.batch == 1:
            return None
        self.batch //= 2
        return f"batches of {self.batch} from here on"


run(Hungry(0.005), sys.argv[1])
