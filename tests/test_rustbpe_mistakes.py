"""Errors of `gristmill.rustbpe`: no text is ever lost in silence."""

from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, cast

import pytest

from bpe import PATTERN, bytes_encoder, encoder
from gristmill import rustbpe

# It has no type stubs.
pa: Any = import_module("pyarrow")


def train_one(text: str = "ab", *, vocab_size: int = 300, pattern: str = PATTERN) -> None:
    rustbpe.train([text], vocab_size=vocab_size, pattern=pattern)


def train_arrow(columns: dict[str, list[object]]) -> None:
    rustbpe.train(pa.table(columns), vocab_size=300, pattern=PATTERN)


def new_encoder(ranks: list[bytes], special_tokens: dict[str, int] | None = None) -> None:
    rustbpe.Encoder(ranks, pattern=PATTERN, special_tokens=special_tokens or {})


BYTES = rustbpe.ranks([])
MISTAKES: dict[str, tuple[Callable[[], object], str]] = {
    "gap": (lambda: train_one("abc12de", pattern="[a-z]+"), r'text 0: .*out "12" at byte 3; .*end'),
    "gap at the end": (lambda: train_one("ab!", pattern="[a-z]+"), r'leaves out "!" at byte 2'),
    "gap in encode": (lambda: bytes_encoder("b").encode("äb"), r'leaves out "ä" at byte 0'),
    "gap in a batch": (lambda: bytes_encoder("b").encode_batch(["b", "a"]), r"text 1: .*out .a."),
    "empty pattern": (lambda: train_one(pattern=""), r'pattern "" leaves out "a" at byte 0'),
    "bad pattern": (lambda: train_one(pattern="(a"), r"does not compile: .*correct the pattern"),
    "endless pattern": (
        lambda: bytes_encoder(r"(?:\s+(?!\S))|x").encode(" " * 2_000_000),
        r"fails on the text from byte 0: .*stack",
    ),
    "small vocabulary": (lambda: train_one(vocab_size=255), "vocab_size is 255; expected 256"),
    "negative vocabulary": (lambda: train_one(vocab_size=-1), "vocab_size is -1"),
    "huge vocabulary": (lambda: train_one(vocab_size=2**40), "vocab_size is 1099511627776"),
    "lone surrogate": (lambda: train_one("a\ud800b"), "text 0 is no valid Unicode: .*surrogates"),
    "surrogate in encode": (lambda: encoder().encode("\udfff"), "surrogates not allowed"),
    "number column": (lambda: train_arrow({"n": [1]}), 'columns "n" of type Int64; expected one'),
    "two columns": (lambda: train_arrow({"a": ["x"], "b": ["y"]}), '"a" .*"b" .*select the text'),
    "null": (lambda: train_arrow({"a": ["x", None]}), "a null in row 1; .*drop or fill"),
    "same rank twice": (lambda: new_encoder([*BYTES, b"a"]), "ranks 97 and 256 are both a"),
    "empty rank": (lambda: new_encoder([*BYTES, b""]), "rank 256 is empty"),
    "missing byte": (lambda: new_encoder(BYTES[1:]), "no token for byte 0x00"),
    "special on a rank": (lambda: new_encoder(BYTES, {"s": 9}), '"s" with id 9 collides'),
    "special id twice": (lambda: new_encoder(BYTES, {"s": 256, "t": 256}), "shares its id"),
    "negative special": (lambda: new_encoder(BYTES, {"s": -1}), "id -1 has no 32-bit id"),
    "empty special": (lambda: new_encoder(BYTES, {"": 256}), "is empty"),
    "unknown special": (
        lambda: encoder().encode("x", allowed_special=["<x>"]),
        r'"<x>"; expected names among \["<\|bos\|>", "<\|eos\|>"\]',
    ),
    "unknown id": (lambda: encoder().decode([1, 9999]), r"ids\[1\] is 9999; .*of 4098 tokens"),
    "negative id": (lambda: encoder().decode_bytes([-1]), r"ids\[0\] is -1"),
    "merge of a later id": (lambda: rustbpe.ranks([(97, 256)]), "merge 0 .*expected ids below 256"),
    "huge merges": (
        lambda: rustbpe.ranks([(97, 97), *((256 + i, 256 + i) for i in range(60))]),
        "merge 26 takes the tokens past",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_a_value_error_that_says_what_was_found(name: str) -> None:
    make, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_an_arrow_stream_that_fails_tells_why() -> None:
    def batches() -> Iterator[object]:
        yield pa.record_batch({"text": ["a"]})
        message = "disk on fire"
        raise OSError(message)

    schema = pa.schema({"text": pa.string()})
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    with pytest.raises(ValueError, match="disk on fire"):
        rustbpe.train(reader, vocab_size=300, pattern=PATTERN)


@pytest.mark.parametrize("texts", ["a single text", ["a", 1], [b"bytes"], 7])
def test_texts_that_are_no_strings_are_a_type_error(texts: object) -> None:
    with pytest.raises(TypeError):
        rustbpe.train(cast("list[str]", texts), vocab_size=300, pattern=PATTERN)
