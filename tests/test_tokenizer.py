"""The tokenizer's files: every reader of them gives the same ids."""

import base64
import random
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers as hf
from hypothesis import given
from hypothesis import strategies as st

import tiny
from gristmill import jobfile, rustbpe
from gristmill.config import Job
from gristmill.manifest import Context
from gristmill.stages import corpus, tokenizer
from gristmill.text import documents, tokenizers
from gristmill.text.tokenizers import PATTERNS, SPECIAL_TOKENS, TokenizerManifest


def lines() -> list[str]:
    """10,000 lines of German, English, code, emoji and white space."""
    chooser = random.Random(0)  # noqa: S311  # repeatable text, no secret
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    code = [line for name in ("argparse.py", "ast.py", "typing.py") for line in (stdlib / name).read_text().splitlines(keepends=True)]
    blank = ["", " ", "  \n", "\t\t", "\n\n \n", "\r\n", "\u00a0x", " \u2003y\n", "x \n  "]
    odd = [
        "I'LL we'Re d'accord",
        "'ſ",
        "1234567 ½ ²³ ٣٤",
        "🇩🇪👩‍👩‍👧‍👦🏳️‍🌈",
        "漢字かな",
        "e\u0301\u0308",
        "\x00\x1f",
        "<|assistant_end|>",
        "ßẞ ŒÆ",
    ]
    kinds = [
        lambda: tiny.text(12, chooser.randrange(10**6)),
        lambda: chooser.choice(code),
        lambda: chooser.choice(blank) + chooser.choice(odd),
    ]
    return [chooser.choice(kinds)() for _ in range(10_000)]


@pytest.fixture(scope="module", params=list(PATTERNS))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, TokenizerManifest]:
    folder = tiny.write_sources(tmp_path_factory.mktemp("tokenizer"))
    job = jobfile.validate({**tiny.job(folder), "tokenizer": {"pattern": request.param, "vocab_size": 480}})
    corpus.run(job, Context())
    manifest = tokenizer.run(job, Context())
    assert manifest is not None
    return job, manifest


def readers(job: Job, manifest: TokenizerManifest) -> tuple[rustbpe.Encoder, hf.Tokenizer, tiktoken.Encoding]:
    loaded = hf.Tokenizer.from_str(tokenizers.read_file(job.bucket, manifest, "tokenizer.json").decode())
    loaded.encode_special_tokens = True
    table = (line.split() for line in tokenizers.read_file(job.bucket, manifest, "ranks.tiktoken").splitlines())
    ranks = {base64.b64decode(token): int(rank) for token, rank in table}
    reference = tiktoken.Encoding("test", pat_str=manifest.regex, mergeable_ranks=ranks, special_tokens=manifest.special_tokens)
    return tokenizers.encoder(job.bucket, manifest), loaded, reference


def test_ids_are_the_same_through_rustbpe_tokenizers_and_tiktoken(trained: tuple[Job, TokenizerManifest]) -> None:
    ours, loaded, reference = readers(*trained)
    texts = lines()
    expected = [reference.encode_ordinary(text) for text in texts]
    ids, ends = ours.encode_batch(texts)
    assert [ids[start:end].tolist() for start, end in pairwise(ends)] == expected
    assert [encoding.ids for encoding in loaded.encode_batch_fast(texts, add_special_tokens=False)] == expected
    assert [ours.decode(one) for one in expected] == texts


@given(text=st.text())
def test_any_text_comes_back_from_its_ids(text: str) -> None:
    ours = rustbpe.Encoder(rustbpe.ranks([(104, 101), (256, 108)]), pattern=PATTERNS["nanochat"], special_tokens={})
    assert ours.decode(ours.encode(text)) == text


def test_a_spelt_special_token_is_ordinary_text(trained: tuple[Job, TokenizerManifest]) -> None:
    ours, _, _ = readers(*trained)
    for token in SPECIAL_TOKENS:
        ids = ours.encode(f"a{token}b")
        assert ids.max() < min(trained[1].special_tokens.values())
        assert ours.decode(ids) == f"a{token}b"


def test_special_tokens_follow_the_merges_in_their_fixed_order_and_every_file_agrees(trained: tuple[Job, TokenizerManifest]) -> None:
    job, manifest = trained
    _, loaded, _ = readers(job, manifest)
    assert manifest.vocab_size == 480 == loaded.get_vocab_size()
    assert list(manifest.special_tokens.items()) == [(token, 469 + index) for index, token in enumerate(SPECIAL_TOKENS)]
    assert [loaded.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(469, 480))
    assert (manifest.bos, manifest.eos, manifest.pad) == (469, 478, 479)


def test_token_bytes_are_the_lengths_in_utf8_and_zero_for_special_tokens(trained: tuple[Job, TokenizerManifest]) -> None:
    job, manifest = trained
    ours, _, _ = readers(job, manifest)
    lengths = tokenizers.token_bytes(job.bucket, manifest)
    assert lengths.dtype == np.int32
    assert lengths.tolist() == [len(ours.decode_bytes([index])) for index in range(469)] + [0] * 11


def test_the_tokenizer_is_trained_on_training_documents_only_and_on_an_even_sample_of_them(tmp_path: Path) -> None:
    folder = tiny.write_sources(tmp_path)
    job = jobfile.validate({**tiny.job(folder), "tokenizer": {"vocab_size": 300, "sample_bytes": 20_000}})
    manifest = corpus.run(job, Context())
    assert manifest is not None
    total = sum(counts.train.bytes for counts in manifest.sources.values())
    sampled = list(tokenizer.sample(job, manifest, total))
    held_out = {one.id for part in range(len(manifest.parts)) for one in documents.read(job.bucket, manifest, part, "held_out")}
    assert 0.6 * 20_000 < sum(len(one.text.encode()) for one in sampled) < 1.4 * 20_000
    assert not held_out & {one.id for one in sampled}


def test_merges_of_a_job_are_those_of_its_training_text(trained: tuple[Job, TokenizerManifest]) -> None:
    job, manifest = trained
    found = documents.current(job)
    texts = [one.text for part in range(len(found.parts)) for one in documents.read(job.bucket, found, part, "train")]
    merges = rustbpe.train(iter(texts), vocab_size=469, pattern=manifest.regex)
    expected = tokenizers.artefacts(merges, manifest.regex)
    assert all(tokenizers.read_file(job.bucket, manifest, name) == data for name, data in expected.items())
