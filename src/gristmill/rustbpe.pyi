"""Byte-pair encoding in Rust: learns merges from text, and turns text into token ids and back.

Text is cut into pretokens by the successive matches of a `fancy-regex` pattern, and no merge
crosses two of them. Text that no match covers is an error, as is any input that would otherwise be
dropped or changed. Results depend on the inputs alone, not on threads or on the order of texts.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

class ArrowStream(Protocol):
    """What can be read as an Arrow C stream, such as a `pyarrow.Table` or `RecordBatchReader`."""

    def __arrow_c_stream__(self, requested_schema: object | None = None, /) -> object:
        """A capsule named `arrow_array_stream`."""

def train(
    texts: Iterable[str] | ArrowStream,
    *,
    vocab_size: int,
    pattern: str,
) -> list[tuple[int, int]]:
    """The merges of `texts`, in order: pairs of ids, left then right.

    Merge i makes id 256 + i out of two smaller ids, where ids below 256 are the single bytes. At
    most `vocab_size` - 256 merges come back, fewer where no pair is left. Each merge takes the pair
    with the most occurrences (overlapping, within pretokens, over all texts), of equally frequent
    ones the smallest left id, then the smallest right id (Sennrich et al. 2016 on bytes; the loop
    follows karpathy/rustbpe). `texts` are strings in any order, or an Arrow stream of one column of
    type string, large_string or string_view without nulls; they are read in batches of about 8 MiB,
    between which Ctrl-C is honoured. Raises ValueError for a vocab_size below 256, a pattern that
    does not compile, leaves text out or exceeds the engine's limits, a lone surrogate, and any
    other Arrow stream; TypeError for items that are no `str`.
    """

def ranks(merges: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each id of a merge list: the 256 single bytes in order, then one per merge.

    Raises ValueError for a merge that names an id which is not made before it, and for merges whose
    tokens exceed 256 MiB in all.
    """

@final
class Encoder:
    """A vocabulary that encodes text and decodes ids; it may be used from many threads at once."""

    def __new__(
        cls,
        ranks: Sequence[bytes],
        *,
        pattern: str,
        special_tokens: Mapping[str, int],
    ) -> Encoder:
        """`ranks[i]` are the bytes of id i, and a lower id is merged first.

        Every single byte must be among the ranks, in any place. Special tokens have ids from
        len(ranks) on. Raises ValueError for empty or equal ranks, a missing byte, a special token
        that is empty, shares its id or has one of the ranks', and a pattern that does not compile.
        """

    @property
    def vocab_size(self) -> int:
        """How many ranks and special tokens there are: the largest id + 1, if none is left out."""

    def encode(self, text: str, *, allowed_special: Collection[str] = ()) -> NDArray[np.uint32]:
        """The ids of `text`, of shape (ids,).

        Each pretoken that is a rank becomes its id; in any other, the two neighbours whose joined
        bytes have the lowest rank are merged, the leftmost first, until none join: `tiktoken`'s
        rule. Special tokens are ordinary text, except those in `allowed_special`, of which the
        longest at a place counts. Raises ValueError for an unknown name in `allowed_special` and
        for a pattern that leaves text out or exceeds the engine's limits, and UnicodeEncodeError
        for a lone surrogate.
        """

    def encode_batch(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """The ids of all texts in one row, of shape (ids,), and offsets of shape (len(texts) + 1,).

        The ids of text i are ids[offsets[i]:offsets[i + 1]], what `encode(texts[i])` gives. Texts
        are encoded in parallel, on RAYON_NUM_THREADS threads or one per core. Raises as `encode`,
        and names the first text concerned.
        """

    def decode_bytes(self, ids: Sequence[int] | NDArray[np.integer]) -> bytes:
        """The bytes of `ids`, of shape (ids,), special tokens included.

        Raises ValueError for an id that is not in the vocabulary.
        """

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of `ids`, of shape (ids,), with U+FFFD for bytes that are no UTF-8.

        Exact for whole encodings; ids that were cut inside a character lose it. Raises as
        `decode_bytes`.
        """
