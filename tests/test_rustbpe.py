"""What `gristmill.rustbpe` promises: exact merges, exact ids, and errors instead of lost text."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import rustbpe

# Neither has type stubs.
pa: Any = import_module("pyarrow")
peer: Any = import_module("rustbpe")

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Means the same to Python's `re`, which the naive reference uses.
SIMPLE_PATTERN = " ?[^ ]+| +"
WHOLE_TEXT = r"[\s\S]+"
VOCAB_SIZE = 4096
BOS = "<|bos|>"
EOS = "<|eos|>"

MIXED_LINES = [
    "Die Straße führt über den Fluß; wir'll sehen, ob's geht. Größenordnung: 12.345,67 €!",
    "The quick brown fox DON'T jump over 1234567890 lazy dogs\u2014it's he'Ll I\u2019ve.",
    "def f(x: int) -> dict[str, int]:\n\treturn {'a': x ** 2}  # comment\r\n\r\n",
    "👩‍👩‍👧‍👦 🇩🇪 emoji 🏳️‍🌈 and combining e\u0301 n\u0303, CJK 漢字かな, العربية, हिन्दी",
    "   leading\n\n\n   \t  trailing   \n ",
    "\x00\x01 NUL \u00a0 no-break \u3000 wide \u2028 line \ufeff mark 'ſ",
    "",
]


@cache
def corpus() -> tuple[str, ...]:
    """The Python standard library's own modules, a few megabytes of English and code."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(path.read_text(encoding="utf-8") for path in paths)


@cache
def merges() -> tuple[tuple[int, int], ...]:
    return tuple(rustbpe.train(iter(corpus()), vocab_size=VOCAB_SIZE, pattern=PATTERN))


@cache
def encoder() -> rustbpe.Encoder:
    specials = {BOS: VOCAB_SIZE, EOS: VOCAB_SIZE + 1}
    return rustbpe.Encoder(rustbpe.ranks(merges()), pattern=PATTERN, special_tokens=specials)


@cache
def reference() -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "reference",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(rustbpe.ranks(merges()))},
        special_tokens={BOS: VOCAB_SIZE, EOS: VOCAB_SIZE + 1},
    )


def bytes_encoder(pattern: str = PATTERN) -> rustbpe.Encoder:
    return rustbpe.Encoder(rustbpe.ranks([]), pattern=pattern, special_tokens={})


def naive_merges(texts: list[str], count: int) -> list[tuple[int, int]]:
    """Recounts every pair before each merge."""
    words = Counter(found for text in texts for found in re.findall(SIMPLE_PATTERN, text))
    sequences = [(list(word.encode()), weight) for word, weight in words.items()]
    learned: list[tuple[int, int]] = []
    while len(learned) < count:
        pairs: Counter[tuple[int, int]] = Counter()
        for tokens, weight in sequences:
            for pair in pairwise(tokens):
                pairs[pair] += weight
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        sequences = [(merge(tokens, best, 256 + len(learned)), w) for tokens, w in sequences]
        learned.append(best)
    return learned


def merge(tokens: list[int], pair: tuple[int, int], new: int) -> list[int]:
    merged: list[int] = []
    at = 0
    while at < len(tokens):
        found = tuple(tokens[at : at + 2]) == pair
        merged.append(new if found else tokens[at])
        at += 2 if found else 1
    return merged


def run_python(script: str, **environment: str) -> str:
    """What a fresh interpreter prints for `script`, which reads the corpus as JSON."""
    finished = subprocess.run(
        [sys.executable, "-c", f"import json, sys\nfrom gristmill import rustbpe\n{script}"],
        input=json.dumps(corpus()[:40]),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


# Few letters make long runs and many ties; the others are NUL and one to four bytes long.
tiny_texts = st.lists(st.text(alphabet="aaab \0\nßé漢😀", max_size=24), max_size=6)


@settings(max_examples=1000, deadline=None)
@given(texts=tiny_texts, count=st.integers(0, 30))
def test_merges_equal_those_of_a_naive_trainer(texts: list[str], count: int) -> None:
    found = rustbpe.train(texts, vocab_size=256 + count, pattern=SIMPLE_PATTERN)
    assert found == naive_merges(texts, count)


@pytest.mark.parametrize("run", ["aaaa", "aaaaaaaa", "abababab", "aaabaaab", "\0\0\0\0", "ßßßßß"])
def test_merges_of_runs_equal_those_of_a_naive_trainer(run: str) -> None:
    texts = [run, f"{run}{run} {run}"]
    found = rustbpe.train(texts, vocab_size=300, pattern=SIMPLE_PATTERN)
    assert found == naive_merges(texts, 44)


def test_merges_of_a_real_corpus_equal_those_of_the_published_rustbpe() -> None:
    tokenizer = peer.Tokenizer()
    tokenizer.train_from_iterator(iter(corpus()), VOCAB_SIZE, pattern=PATTERN)
    expected = [bytes(token) for token, _ in tokenizer.get_mergeable_ranks()]
    assert rustbpe.ranks(merges()) == expected
    assert len(merges()) == VOCAB_SIZE - 256


def test_merges_do_not_depend_on_the_order_of_texts() -> None:
    shuffled = list(corpus())
    np.random.default_rng(0).shuffle(shuffled)
    assert rustbpe.train(shuffled, vocab_size=VOCAB_SIZE, pattern=PATTERN) == list(merges())


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()], ids=str)
def test_merges_of_an_arrow_table_equal_those_of_an_iterator(kind: object) -> None:
    column = pa.array(corpus(), kind)
    halves = [column.slice(0, 50), column.slice(50)]
    table = pa.table({"text": pa.chunked_array(halves)})
    assert rustbpe.train(table, vocab_size=VOCAB_SIZE, pattern=PATTERN) == list(merges())


def test_merges_of_an_arrow_array_stream_equal_those_of_an_iterator() -> None:
    column = pa.chunked_array([pa.array(["ab ab", "abc"]), pa.array(["bc"])])
    expected = rustbpe.train(["ab ab", "abc", "bc"], vocab_size=300, pattern=PATTERN)
    assert rustbpe.train(column, vocab_size=300, pattern=PATTERN) == expected
    assert expected


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    script = f"""if True:
        texts = json.load(sys.stdin)
        merges = rustbpe.train(texts, vocab_size=2000, pattern={PATTERN!r})
        encoder = rustbpe.Encoder(
            rustbpe.ranks(merges), pattern={PATTERN!r}, special_tokens={{}}
        )
        ids, offsets = encoder.encode_batch(texts)
        print(merges, ids.tolist(), offsets.tolist())"""
    one = run_python(script, RAYON_NUM_THREADS="1")
    assert one == run_python(script, RAYON_NUM_THREADS="2")
    assert len(one) > 10_000


def test_a_forked_child_encodes_after_its_parent_used_threads() -> None:
    script = """if True:
        import os, warnings
        warnings.simplefilter("ignore")
        encoder = rustbpe.Encoder(rustbpe.ranks([]), pattern=r"[\\s\\S]", special_tokens={})
        texts = json.load(sys.stdin)
        expected = len(encoder.encode_batch(texts)[0])
        child = os.fork()
        if child == 0:
            os._exit(7 if len(encoder.encode_batch(texts)[0]) == expected else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"""
    assert run_python(script) == "7\n"


def test_training_on_endless_text_stops_at_ctrl_c() -> None:
    script = f"""if True:
        import itertools, signal
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            rustbpe.train(itertools.repeat("word " * 1000), vocab_size=300, pattern={PATTERN!r})
        except KeyboardInterrupt:
            print("stopped")"""
    assert run_python(script) == "stopped\n"


def test_training_stops_when_no_pair_is_left() -> None:
    assert rustbpe.train(["ab a"], vocab_size=1000, pattern=PATTERN) == [(32, 97), (97, 98)]
    assert rustbpe.train([], vocab_size=1000, pattern=PATTERN) == []
    assert rustbpe.train(["ab"], vocab_size=256, pattern=PATTERN) == []


def test_ranks_are_the_bytes_of_each_id() -> None:
    tokens = rustbpe.ranks([(97, 98), (256, 99)])
    assert tokens == [bytes([byte]) for byte in range(256)] + [b"ab", b"abc"]


@settings(deadline=None)
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


@settings(deadline=None)
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


@settings(deadline=None)
@given(text=st.text(max_size=200))
def test_decoding_an_encoding_gives_the_text(text: str) -> None:
    assert encoder().decode(encoder().encode(text)) == text


@settings(deadline=None)
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
