"""The one-letter flags of the original tool (tomgoldstein/loss-landscape), for the scripts that bear its names.

There `-m` is --mpi and `-c` is --cuda; in `lossmap`, `-m` is --model-file.
"""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = {"-m": "--mpi", "-c": "--cuda"}


def with_original_letters(words: Sequence[str]) -> list[str]:
    """The words of a command line, with the one-letter flags of the original tool in full; none after two dashes."""
    own = list(words)
    end = own.index("--") if "--" in own else len(own)
    return [*(LETTERS.get(word, word) for word in own[:end]), *own[end:]]
