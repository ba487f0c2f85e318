"""Documents of one source into rows of equal length, and rows into training arrays.

A row holds `sequence_length + 1` ids; the model reads row[:-1] and predicts row[1:]. Documents follow one another; the one that does not
fit is cut, and its next piece begins with the last token of the piece before, so that every token of a document but its first is a target
exactly once. With rows of eight ids, and documents A (6 ids) and B (5 ids):

    row 0   A0 A1 A2 A3 A4 A5 B0 B1      segment lengths 6 2
    row 1   B1 B2 B3 B4  -  -  -  -      segment lengths 4

Ours, as grain's and others' packers cut at row borders and lose the prediction across the cut.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LENGTH_DTYPE = np.dtype("<u2")


class Row(NamedTuple):
    """Segments that follow one another from the row's start; what is left of the row is padding."""

    ids: NDArray[np.unsignedinteger]
    """[tokens], the segments' ids without padding."""
    segment_lengths: NDArray[np.uint16]
    """[segments], their sum is the number of ids."""


class Batch(NamedTuple):
    """Rows as a model takes them; B sequences of T tokens."""

    inputs_BT: NDArray[np.int32]
    targets_BT: NDArray[np.int32]
    segment_ids_BT: NDArray[np.int32]
    """Document piece of each input, counted from 1 in each row; 0 is padding."""
    positions_BT: NDArray[np.int32]
    """Index of each input in its piece."""
    weights_BT: NDArray[np.float32]
    """1 where the target continues the input's piece, 0 elsewhere."""


def id_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest little-endian integer that holds every id of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 2**16 else np.dtype("<u4")


def pack(documents: Iterable[NDArray[np.unsignedinteger]], row_tokens: int) -> Iterator[Row]:
    """Rows of at most `row_tokens` ids; each document is its [tokens] ids with BOS and EOS."""
    pieces: list[NDArray[np.unsignedinteger]] = []
    room = row_tokens
    for document in documents:
        rest = document
        while rest.size > 1:
            if room <= 1:  # one id alone would predict nothing
                yield _row(pieces)
                pieces, room = [], row_tokens
            piece = rest[:room]
            pieces.append(piece)
            room -= piece.size
            rest = rest[piece.size - 1 :]
    if pieces:
        yield _row(pieces)


def _row(pieces: list[NDArray[np.unsignedinteger]]) -> Row:
    return Row(np.concatenate(pieces), np.array([piece.size for piece in pieces], LENGTH_DTYPE))


def encode_row(row: Row, row_tokens: int, dtype: np.dtype[np.unsignedinteger]) -> bytes:
    """A record: `row_tokens` ids, zeros as padding, then the segment lengths."""
    ids = np.zeros(row_tokens, dtype)
    ids[: row.ids.size] = row.ids
    return ids.tobytes() + row.segment_lengths.astype(LENGTH_DTYPE).tobytes()


def decode_row(record: bytes, row_tokens: int, dtype: np.dtype[np.unsignedinteger]) -> Row:
    """The row of a record."""
    lengths = np.frombuffer(record, LENGTH_DTYPE, offset=row_tokens * dtype.itemsize)
    return Row(np.frombuffer(record, dtype, count=int(lengths.sum(dtype=np.int64))), lengths)


def batch(rows: Sequence[Row], sequence_length: int, *, count: int) -> Batch:
    """The arrays that rows stand for, each [count, sequence_length]; where rows are fewer, the rest is padding."""
    shape = (count, sequence_length + 1)
    ids, segment_ids, positions = (np.zeros(shape, np.int32) for _ in range(3))
    for index, row in enumerate(rows):
        used = row.ids.size
        ids[index, :used] = row.ids
        lengths = row.segment_lengths.astype(np.int64)
        segment_ids[index, :used] = np.repeat(np.arange(1, lengths.size + 1), lengths)
        positions[index, :used] = np.arange(used) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    weights = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    return Batch(ids[:, :-1], ids[:, 1:], segment_ids[:, :-1], positions[:, :-1], weights.astype(np.float32))
