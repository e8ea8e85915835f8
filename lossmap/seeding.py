"""Chance as a generator made from what it is for: the same numbers on every rank, device and machine."""

from __future__ import annotations

import hashlib

import torch


def generator(*what: str | int) -> torch.Generator:
    """A CPU generator seeded by its purpose, such as ("direction", seed, axis, tensor name)."""
    text = "\x1f".join(str(part) for part in what).encode()
    return torch.Generator("cpu").manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def normal(n: int, *what: str | int) -> torch.Tensor:
    """(n,) standard normal numbers, float32 on the CPU, made from their purpose alone."""
    return torch.randn(n, generator=generator(*what), dtype=torch.float32)


def signs(n: int, *what: str | int) -> torch.Tensor:
    """(n,) numbers +1 or -1 with equal chance, float32 on the CPU."""
    return torch.randint(0, 2, (n,), generator=generator(*what)).to(torch.float32).mul_(2).sub_(1)
