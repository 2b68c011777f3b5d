"""How many values a sweep draws, in amounts that the ledger asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from ledger import Ledger

LENGTHS = (1, 7, 15, 64, 65, 129, 1000, 4099)


def chunks(ledger: Ledger, short: int = 20_000, full: int = 10_000_000) -> Iterator[Any]:
    """Yield a generator, a length and whether the reference takes part, until that is enough.

    First lengths around the vector widths, then, in a sweep, chunks of a million.
    """
    rng = np.random.default_rng(11)
    done = count = 0
    while done < ledger.size(short, full):
        n = int(rng.choice(LENGTHS)) if done < short else 1_000_003
        yield rng, n, n < 1_000_000 or count % 10 == 0
        done += n
        count += n > 1_000_000
