"""Packing: every token but a document's first is a target exactly once, and nothing else is."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gristmill.data.packing import Batch, Row, batch, decode_row, encode_row, id_dtype, pack

BOS, EOS = 1, 2
documents = st.lists(st.lists(st.integers(3, 60_000), max_size=40).map(lambda ids: np.array([BOS, *ids, EOS], np.uint32)), max_size=12)


def targets(packed: Batch) -> Counter[tuple[int, int]]:
    """How often each pair of an input and its target is trained on."""
    weighed = packed.weights_BT == 1
    return Counter(zip(packed.inputs_BT[weighed].tolist(), packed.targets_BT[weighed].tolist(), strict=True))


@given(documents, st.integers(2, 17))
def test_every_token_but_the_first_of_a_document_is_a_target_exactly_once(texts: list[NDArray[np.uint32]], row_tokens: int) -> None:
    rows = list(pack(texts, row_tokens))
    expected = Counter(pair for text in texts for pair in zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
    assert targets(batch(rows, row_tokens - 1, count=len(rows))) == expected


@given(documents, st.integers(2, 17))
def test_the_end_of_every_document_is_a_target(texts: list[NDArray[np.uint32]], row_tokens: int) -> None:
    rows = list(pack(texts, row_tokens))
    packed = batch(rows, row_tokens - 1, count=len(rows))
    assert np.sum((packed.targets_BT == EOS) * packed.weights_BT) == len(texts)


@given(documents, st.integers(2, 17))
def test_only_the_last_row_has_room_for_another_piece(texts: list[NDArray[np.uint32]], row_tokens: int) -> None:
    assert all(row_tokens - row.ids.size <= 1 for row in list(pack(texts, row_tokens))[:-1])


@given(documents, st.integers(2, 17), st.sampled_from([2**16, 2**16 + 1]))
def test_a_record_gives_back_its_row(texts: list[NDArray[np.uint32]], row_tokens: int, vocab_size: int) -> None:
    dtype = id_dtype(vocab_size)
    for row in pack(texts, row_tokens):
        back = decode_row(encode_row(row, row_tokens, dtype), row_tokens, dtype)
        np.testing.assert_array_equal(back.ids, row.ids)
        np.testing.assert_array_equal(back.segment_lengths, row.segment_lengths)


def test_the_drawing_in_the_docstring_is_what_happens() -> None:
    a, b = np.arange(10, 16, dtype=np.uint32), np.arange(20, 25, dtype=np.uint32)
    first, second = pack([a, b], 8)
    assert (first.ids.tolist(), first.segment_lengths.tolist()) == ([10, 11, 12, 13, 14, 15, 20, 21], [6, 2])
    assert (second.ids.tolist(), second.segment_lengths.tolist()) == ([21, 22, 23, 24], [4])


def test_segments_and_positions_begin_anew_with_each_piece_and_padding_weighs_nothing() -> None:
    row = Row(np.array([1, 5, 2, 1, 2], np.uint16), np.array([3, 2], np.uint16))
    packed = batch([row], 7, count=2)
    assert packed.segment_ids_BT.tolist() == [[1, 1, 1, 2, 2, 0, 0], [0] * 7]
    assert packed.positions_BT.tolist() == [[0, 1, 2, 0, 1, 0, 0], [0] * 7]
    assert packed.weights_BT.tolist() == [[1, 1, 0, 1, 0, 0, 0], [0] * 7]


def test_ids_take_two_bytes_while_the_vocabulary_fits() -> None:
    assert (id_dtype(2**16).itemsize, id_dtype(2**16 + 1).itemsize) == (2, 4)
