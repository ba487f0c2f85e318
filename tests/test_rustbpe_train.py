"""Training by `gristmill.rustbpe`: exact merges, the same for any threads, order and form of input."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpe import PATTERN, SIMPLE_PATTERN, VOCAB_SIZE, corpus, merges
from gristmill import rustbpe

# Neither has type stubs.
pa: Any = import_module("pyarrow")
peer: Any = import_module("rustbpe")


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


@settings(max_examples=1000)
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
