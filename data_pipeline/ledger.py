"""An order-free digest of the samples that were consumed: equal digests, equal samples and places, in whatever order.

Digests of parts add up: that of a batch is the sum, mod 2^64, of those that its ranks and micro-batches made.
"""

import hashlib
from collections.abc import Iterable

DIGEST_LIMIT = 2**64


def batch_digest(keys: Iterable[str], places: Iterable[int]) -> int:
    """The sum mod 2^64 of a 64-bit BLAKE2b over each (SHARD/KEY, place)."""
    return combine(_digest(key, int(place)) for key, place in zip(keys, places, strict=True))


def combine(digests: Iterable[int]) -> int:
    """The digest of a whole from the digests of its parts."""
    return sum(digests) % DIGEST_LIMIT


def _digest(key: str, place: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{key}\0{place}".encode(), digest_size=8).digest(), "big")
