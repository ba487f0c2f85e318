"""Which row stands at a position of training: a pure function of the seed and the position, whatever reads it.

Grain's own mix rounds weights, refuses a weight of 0 and may change with its version; a checkpoint's position must mean the same rows
forever, so the rule is spelt out here and a golden test pins it.
"""

import hashlib
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_ROUNDS = 6
_MASK = 2**64 - 1


class Place(NamedTuple):
    """A row of a source, and how often the source was read through before."""

    source: str
    epoch: int
    row: int


@dataclass(frozen=True)
class Mixture:
    """Sources in name order with exact shares that sum to one."""

    weights: dict[str, Fraction]
    rows: dict[str, int]
    """Training rows of each source."""


def row_at(mixture: Mixture, seed: int, position: int) -> Place:
    """The row at a position, where position = step * sequences_per_step + place in the global batch.

    After any number of positions each source stands at its exact share, to within the number of sources; inside a source, each epoch reads
    every row once in an order of its own.
    """
    source, index = _source_at(mixture.weights, position)
    epoch, place = divmod(index, mixture.rows[source])
    return Place(source, epoch, _permuted(place, mixture.rows[source], _keys(seed, source, epoch)))


def step_digest(mixture: Mixture, seed: int, step: int, sequences: int, shards_digest: str) -> str:
    """The ledger's sha256 of one step: its ordered places and the shards they point into."""
    places = (row_at(mixture, seed, step * sequences + index) for index in range(sequences))
    lines = "".join(f"{place.source} {place.epoch} {place.row}\n" for place in places)
    return hashlib.sha256(f"{shards_digest}\n{lines}".encode()).hexdigest()


def _source_at(weights: dict[str, Fraction], position: int) -> tuple[str, int]:
    """The source of a position and how many positions before it are the same source's.

    Source after source, in name order, takes floor(n * share) of the first n positions that the sources before it left.
    """
    left, rest = position, Fraction(1)
    for source, weight in weights.items():
        share = weight / rest
        before = left * share.numerator // share.denominator
        if (left + 1) * share.numerator // share.denominator > before:
            return source, before
        left -= before
        rest -= weight
        if not rest:
            break
    raise AssertionError("the last source with a weight takes every position that is left")


def _keys(seed: int, source: str, epoch: int) -> tuple[int, ...]:
    digest = hashlib.sha512(f"{seed}/{source}/{epoch}".encode()).digest()
    return struct.unpack(f"<{_ROUNDS}Q", digest[: 8 * _ROUNDS])


def _permuted(index: int, size: int, keys: tuple[int, ...]) -> int:
    """A bijection of range(size): a Feistel network over the next power of four, walked until it lands inside (Black and Rogaway 2002)."""
    half_bits = max((size - 1).bit_length() + 1, 2) // 2
    mask = (1 << half_bits) - 1
    while True:
        left, right = index >> half_bits, index & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        index = left << half_bits | right
        if index < size:
            return index


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31
