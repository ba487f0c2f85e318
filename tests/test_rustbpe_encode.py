"""Encoding by `gristmill.rustbpe`: exact ids, and text that comes back."""

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from bpe import BOS, EOS, MIXED_LINES, PATTERN, VOCAB_SIZE, WHOLE_TEXT, bytes_encoder, corpus, encoder, reference
from gristmill import rustbpe


@given(text=st.text(max_size=300))
def test_ids_equal_those_of_tiktoken(text: str) -> None:
    assert encoder().encode(text).tolist() == reference().encode_ordinary(text)


@pytest.mark.parametrize("line", MIXED_LINES)
def test_ids_of_mixed_lines_equal_those_of_tiktoken(line: str) -> None:
    for text in (line, line * 3, f" {line}\n"):
        ids = encoder().encode(text)
        assert ids.dtype == np.uint32
        assert ids.tolist() == reference().encode_ordinary(text)
        assert encoder().decode(ids) == text


@given(text=st.text(alphabet="aab é", min_size=90, max_size=400))
def test_ids_of_long_pieces_equal_those_of_tiktoken(text: str) -> None:
    learned_from = "".join(np.random.default_rng(0).choice(list("aab é"), 2000))
    tokens = rustbpe.ranks(rustbpe.train([learned_from], vocab_size=400, pattern=WHOLE_TEXT))
    long = rustbpe.Encoder(tokens, pattern=WHOLE_TEXT, special_tokens={})
    expected = tiktoken.Encoding(
        "long",
        pat_str=WHOLE_TEXT,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )
    assert long.encode(text).tolist() == expected.encode_ordinary(text)


def test_ids_of_a_real_corpus_equal_those_of_tiktoken() -> None:
    texts = [*corpus(), *MIXED_LINES]
    ids, offsets = encoder().encode_batch(texts)
    assert (ids.dtype, offsets.dtype, offsets.shape) == (np.uint32, np.uint64, (len(texts) + 1,))
    assert (offsets[0], offsets[-1]) == (0, len(ids))
    found = [part.tolist() for part in np.split(ids, offsets[1:-1].astype(np.int64))]
    assert found == [reference().encode_ordinary(text) for text in texts]


def test_a_long_run_of_one_letter_is_not_quadratic() -> None:
    run = "a" * 20_000
    assert encoder().encode(run).tolist() == reference().encode_ordinary(run)
    assert encoder().decode(encoder().encode("a" * 1_000_000)) == "a" * 1_000_000


def test_long_runs_of_blanks_are_within_the_engine_limits() -> None:
    for text in (" " * 500_000, " " * 500_000 + "x", "\n" * 500_000, "\t" * 500_000 + "\n"):
        assert encoder().decode(encoder().encode(text)) == text


def test_a_pattern_may_backtrack_more_than_the_engine_allows_by_default() -> None:
    blanks = bytes_encoder(r"\s+(?=x)|\s+(?=y)|\s+(?=z)|\s+")
    assert len(blanks.encode(" " * 500_000)) == 500_000


def test_single_bytes_need_not_come_in_order() -> None:
    tokens = [*(bytes([byte]) for byte in reversed(range(256))), b"ab"]
    turned = rustbpe.Encoder(tokens, pattern=PATTERN, special_tokens={})
    assert turned.encode("abc").tolist() == [256, 255 - ord("c")]
    assert turned.decode(turned.encode("abc ß")) == "abc ß"


@given(text=st.text(max_size=200))
def test_decoding_an_encoding_gives_the_text(text: str) -> None:
    assert encoder().decode(encoder().encode(text)) == text


@given(ids=st.lists(st.integers(0, VOCAB_SIZE + 1), max_size=50))
def test_decoding_any_ids_equals_tiktoken(ids: list[int]) -> None:
    assert encoder().decode_bytes(ids) == reference().decode_bytes(ids)
    assert encoder().decode(ids) == reference().decode(ids)


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64, np.int32, np.int64])
def test_ids_decode_from_any_integer_array(kind: type[np.integer]) -> None:
    ids = encoder().encode("some text").astype(kind)
    assert encoder().decode(ids) == "some text"
    assert encoder().decode(np.repeat(ids, 2)[::2]) == "some text"


def test_literal_special_tokens_are_ordinary_text_unless_allowed() -> None:
    text = f"{BOS}hello{EOS} {BOS}"
    assert encoder().encode(text).tolist() == reference().encode_ordinary(text)
    assert encoder().encode_batch([text])[0].tolist() == reference().encode_ordinary(text)
    for allowed in ({BOS}, {EOS}, {BOS, EOS}):
        found = encoder().encode(text, allowed_special=allowed)
        expected = reference().encode(text, allowed_special=allowed, disallowed_special=())
        assert found.tolist() == expected
        assert encoder().decode(found) == text
    assert encoder().vocab_size == VOCAB_SIZE + 2


def test_the_longest_allowed_special_token_counts() -> None:
    specials = {"<a>": 256, "<a><b>": 257}
    two = rustbpe.Encoder(rustbpe.ranks([]), pattern=PATTERN, special_tokens=specials)
    assert two.encode("<a><b><a>", allowed_special=list(specials)).tolist() == [257, 256]
