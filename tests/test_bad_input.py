"""Every bad input ends with its own exit code, says what to do, and leaves the bucket as it was."""

import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import tiny
from bucket import DATA_STAGES, Built, assert_fails, gristmill, process, sets, tree

pytest_plugins = ["bucket"]

TEXTS = [tiny.text(40, seed) for seed in range(200)]
LINES = "".join(f"{json.dumps({'text': text})}\n" for text in TEXTS).encode()
ZSTD = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
COMMIT = "0" * 40


def parquet(table: pa.Table) -> bytes:
    """The bytes of a parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def flipped(data: bytes, place: int) -> bytes:
    """The bytes with all bits of one turned round."""
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


PARQUET = parquet(pa.table({"text": TEXTS}))
NO_UTF8 = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")])
EMPTY = {"what": "the corpus is empty", "found": "x: 0 train, 0 held out", "expected": "documents with text", "next": "corpus.sources"}
UNREADABLE = {"what": "cannot be read", "expected": "as the file's name says", "next": "repair or remove"}
NO_TEXT = {"what": "has no text in", "expected": "a string in the column text", "next": "text_column"}

BAD_FILES: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "an empty file": ("x.txt", b"", EMPTY),
    "blank lines": ("x.txt", b"\n \n\r\n", EMPTY),
    "a lone mark of byte order": ("x.txt", b"\xef\xbb\xbf", EMPTY),
    "no JSON lines": ("x.jsonl", b"", EMPTY),
    "empty texts": ("x.jsonl", b'{"text": ""}\n' * 3, EMPTY),
    "no rows": ("x.parquet", parquet(pa.table({"text": pa.array([], pa.string())})), EMPTY),
    "a broken line": ("x.jsonl", LINES + b'{"text": "x\n', {**UNREADABLE, "found": "line 201: "}),
    "a blank line": ("x.jsonl", LINES + b"\n", {**UNREADABLE, "found": "line 201: "}),
    "a line that is no object": ("x.jsonl", LINES + b"[1]\n", {**UNREADABLE, "found": "line 201: a list"}),
    "half a surrogate pair": ("x.jsonl", b'{"text": "\\ud800"}\n', {**UNREADABLE, "found": "surrogate"}),
    "another column": ("x.jsonl", b'{"body": "x", "id": 1}\n', {**NO_TEXT, "found": "columns body, id; text is NoneType"}),
    "a number for a text": ("x.jsonl", LINES + b'{"text": 1}\n', {**NO_TEXT, "what": "row 200", "found": "text is int"}),
    "no text at all": ("x.jsonl", b'{"text": null}\n', {**NO_TEXT, "found": "text is NoneType"}),
    "another column of parquet": ("x.parquet", parquet(pa.table({"body": ["x"], "id": [1]})), {**NO_TEXT, "found": "columns body, id"}),
    "numbers in parquet": ("x.parquet", parquet(pa.table({"text": [1]})), {**NO_TEXT, "found": "text is int"}),
    "parquet under another name": ("x.txt", PARQUET, {**UNREADABLE, "found": "utf-8"}),
    "text under another name": ("x.parquet", LINES, {**UNREADABLE, "found": "not a parquet file"}),
    "Latin-1": ("x.txt", "Öl".encode("latin-1"), {**UNREADABLE, "found": "utf-8"}),
    "UTF-16": ("x.txt", "oil".encode("utf-16"), {**UNREADABLE, "found": "utf-8"}),
    "Latin-1 in JSON": ("x.jsonl", '{"text": "Öl"}\n'.encode("latin-1"), {**UNREADABLE, "found": "utf-8"}),
    "Latin-1 in parquet": ("x.parquet", parquet(pa.table({"text": NO_UTF8})), {**UNREADABLE, "found": "utf-8"}),
    "cut parquet": ("x.parquet", PARQUET[:-100], {**UNREADABLE, "found": "not a parquet file"}),
    "flipped parquet": ("x.parquet", flipped(PARQUET, len(PARQUET) // 2), {**UNREADABLE, "found": "orrupt"}),
    "cut gzip": ("x.jsonl.gz", gzip.compress(LINES)[:-100], {**UNREADABLE, "found": "Truncated"}),
    "flipped gzip": ("x.jsonl.gz", flipped(gzip.compress(LINES), -6), {**UNREADABLE, "found": "incorrect data check"}),
    "no gzip": ("x.jsonl.gz", LINES, {**UNREADABLE, "found": "incorrect header check"}),
    "cut zstd": ("x.jsonl.zst", ZSTD[:-100], {**UNREADABLE, "found": "Truncated"}),
    "flipped zstd": ("x.jsonl.zst", flipped(ZSTD, len(ZSTD) // 2), {**UNREADABLE, "found": "orrupt"}),
    "no zstd": ("x.jsonl.zst", LINES, {**UNREADABLE, "found": "Unknown frame"}),
}


def corpus_of(made: Built, folder: Path, name: str, data: bytes) -> list[str]:
    """Options that make a file the only source of a job."""
    (folder / "text").mkdir()
    (folder / "text" / name).write_bytes(data)
    return sets(
        corpus__sources={"x": {"kind": "files", "paths": [str(folder / "text" / "*")]}}, train__mixture={"x": 1}, bucket=str(made.bucket)
    )


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_source_file_without_usable_text_ends_with_66(built: Built, tmp_path: Path, kind: str) -> None:
    copy = built.copy(tmp_path)
    name, data, parts = BAD_FILES[kind]
    before = tree(copy.bucket)
    ended = gristmill("corpus", copy.job, *corpus_of(copy, tmp_path, name, data))
    assert_fails(ended, "SourceError", **parts)
    if parts is not EMPTY:
        assert f"{tmp_path}/text/{name}" in str(ended.records()[-1]["event"])
    after = tree(copy.bucket)
    assert {path: after[path] for path in before} == before
    new = {path.split("/", 2)[-1] for path in after.keys() - before.keys() if path.count("/") > 1}
    assert new <= {
        "sources.json",
        "parts",
        "parts/00000.parquet",
        "ids",
        "ids/00000.bin",
        "tasks",
        "tasks/00000.json",
        "duplicates.parquet",
    }


@pytest.mark.parametrize(("name", "data"), [("x.jsonl.gz", gzip.compress(LINES)), ("x.jsonl.zst", ZSTD + ZSTD), ("x.parquet", PARQUET)])
def test_a_good_file_of_each_kind_is_read_whole(built: Built, tmp_path: Path, name: str, data: bytes) -> None:
    """Two zstd frames in a row are one text, of which fsspec's own reader sees the first."""
    copy = built.copy(tmp_path)
    assert gristmill("corpus", copy.job, *corpus_of(copy, tmp_path, name, data)).code == 0
    pointer = json.loads(copy.file("runs/tiny/corpus.json").read_bytes())
    counts = json.loads(copy.file(f"corpus/{pointer['digest']}/manifest.json").read_bytes())["sources"]["x"]
    assert counts["train"]["documents"] + counts["held_out"]["documents"] == 200
    assert counts["duplicates"]["documents"] == (200 if name.endswith("zst") else 0)


BAD_JOBS: dict[str, tuple[str, dict[str, object], str, dict[str, str]]] = {
    "an unknown key": ("corpus", {"corpus__sources__a__txt_column": "t"}, "JobError", {"what": "unknown key", "expected": "text_column"}),
    "a wrong type": ("corpus", {"corpus__held_out_fraction": "1%"}, "JobError", {"what": "held_out_fraction", "found": '"1%"'}),
    "no such file": (
        "corpus",
        {"corpus__sources__b__paths": ["/missing/b.txt"]},
        "SourceError",
        {"what": "source b has no files", "found": "nothing matches /missing/b.txt", "expected": "at least one", "next": "paths"},
    ),
    "an unknown type of file": (
        "corpus",
        {"corpus__sources__b__paths": [__file__]},
        "JobError",
        {"what": "source b has a file of an unknown type", "found": __file__, "expected": ".txt, .jsonl", "next": "narrow the glob"},
    ),
    "an unpinned dataset": (
        "corpus",
        {"corpus__sources__b__paths": ["hf://datasets/org/name/*.parquet"]},
        "JobError",
        {"what": "source b is not pinned", "found": "hf://datasets/org/name/*", "expected": "@REVISION", "next": "allow_unpinned"},
    ),
    "a branch for a commit": (
        "corpus",
        {"corpus__sources__b__paths": ["hf://datasets/org/name@main/*.parquet"]},
        "JobError",
        {"what": "source b is not pinned", "expected": "40 hexadecimal digits"},
    ),
    "no path of the hub": (
        "corpus",
        {"corpus__sources__b__paths": ["hf://org/name/*.parquet"]},
        "JobError",
        {"what": "source b cannot be read", "expected": "hf://datasets/ORG/NAME@REVISION/GLOB", "next": "correct the path"},
    ),
    "nothing held out": (
        "corpus",
        {"corpus__held_out_fraction": 0.00001},
        "JobError",
        {"what": "held-out part", "found": "a: 240 train, 0 held out; b: 120 train, 0 held out, with held_out_fraction 1e-05"},
    ),
    "nothing to train on": (
        "corpus",
        {"corpus__held_out_fraction": 0.99999},
        "JobError",
        {"what": "train part", "found": "a: 0 train, 240 held out", "expected": "each side", "next": "held_out_fraction"},
    ),
    "another corpus section": (
        "tokenizer",
        {"corpus__held_out_fraction": 0.2},
        "InputError",
        {"what": "corpus of run tiny is not this job's", "found": "another corpus section", "next": "gristmill corpus JOB"},
    ),
    "another run": (
        "tokenizer",
        {"run": "other"},
        "InputError",
        {"what": "corpus stage has not been done", "found": "runs/other/corpus.json", "next": "gristmill corpus JOB"},
    ),
    "too small a vocabulary": ("tokenizer", {"tokenizer__vocab_size": 266}, "JobError", {"found": "266", "expected": "267"}),
    "too large a vocabulary": (
        "tokenizer",
        {"tokenizer__vocab_size": 100_000},
        "JobError",
        {"what": "too large for the corpus", "found": "100000", "expected": "at most 504", "next": "lower tokenizer.vocab_size"},
    ),
    "no custom pattern": ("tokenizer", {"tokenizer__pattern": "custom"}, "JobError", {"found": "no regex", "expected": "pattern: custom"}),
    "a pattern with gaps": (
        "tokenizer",
        {"tokenizer__pattern": "custom", "tokenizer__regex": r"\w+"},
        "JobError",
        {"what": "cannot be trained", "found": "leaves out", "expected": "every character", "next": "tokenizer.regex"},
    ),
    "a pattern that is none": (
        "tokenizer",
        {"tokenizer__pattern": "custom", "tokenizer__regex": "("},
        "JobError",
        {"what": "cannot be trained", "found": "does not compile", "next": "tokenizer.regex"},
    ),
    "shards of another tokenizer": (
        "train",
        {"tokenizer__vocab_size": 385},
        "InputError",
        {"what": "tokenizer stage has not been done", "found": "manifest.json", "next": "gristmill tokenizer JOB"},
    ),
    "shards of another length": (
        "train",
        {"shards__sequence_length": 64},
        "InputError",
        {"what": "shards stage has not been done", "expected": "this job's shards section", "next": "gristmill shards JOB"},
    ),
    "a mesh that does not divide": (
        "train",
        {"cluster__train__mesh": {"tensor": 3}},
        "MachineError",
        {"what": "mesh", "found": "8 devices", "expected": "divides", "next": "one of [1, 2, 4, 8]"},
    ),
    "another mixture": ("train", {"train__mixture": {"a": 1}}, "JobError", {"found": "names a", "expected": "a, b"}),
}


@pytest.mark.parametrize("kind", BAD_JOBS)
def test_a_job_that_does_not_fit_ends_with_its_code_and_changes_nothing(built: Built, tmp_path: Path, kind: str) -> None:
    stage, values, error, parts = BAD_JOBS[kind]
    copy = built.copy(tmp_path)
    before = tree(copy.bucket)
    assert_fails(copy.run(stage, *sets(**values)), error, **parts)
    after = tree(copy.bucket)
    # What was read and written of a corpus stays for the next attempt; it is no corpus without a manifest.
    started = {path for path in after.keys() - before.keys() if "held_out_fraction" in str(values) and path.startswith("corpus/")}
    assert not [path for path in started if path.endswith("manifest.json") or "scratch" in path]
    assert {path: data for path, data in after.items() if path not in started} == before


def test_the_largest_vocabulary_that_the_message_names_works(built: Built, tmp_path: Path) -> None:
    copy = built.copy(tmp_path)
    assert copy.run("tokenizer", *sets(tokenizer__vocab_size=504)).code == 0
    assert_fails(copy.run("tokenizer", *sets(tokenizer__vocab_size=505)), "JobError", expected="at most 504")


@pytest.mark.parametrize("environment", [{}, {"HF_HUB_OFFLINE": "1"}], ids=["no network", "told to be offline"])
@pytest.mark.parametrize(
    "values", [{"paths": [f"hf://datasets/o/n@{COMMIT}/*"]}, {"paths": ["hf://datasets/o/n/*"], "allow_unpinned": True}]
)
def test_a_dataset_that_cannot_be_reached_ends_with_66_at_once(
    built: Built, environment: dict[str, str], values: dict[str, object]
) -> None:
    # A name that no resolver has, so that the test is the same with a network.
    start = time.monotonic()
    settings = {"HF_ENDPOINT": "http://hub.invalid", **environment}
    options = sets(corpus__sources__b={"kind": "files", **values})
    ended = process("-m", "gristmill", "corpus", built.job, *options, environment=settings)
    assert_fails(ended, "SourceError", what="source b cannot be had", found="hf://datasets/o/n", expected="read from here", next="network")
    assert time.monotonic() - start < 30


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes(), path.stat().st_size // 2)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("tokenizer", "corpus/*/parts/00000.parquet"),
        ("tokenizer", "corpus/*/duplicates.parquet"),
        ("shards", "corpus/*/parts/00001.parquet"),
        ("shards", "tokenizer/*/ranks.tiktoken"),
        ("train", "shards/*/a/train-*"),
        ("train", "shards/*/b/held_out-*"),
    ],
)
def test_a_damaged_file_of_an_earlier_stage_ends_with_65_and_is_named(
    built: Built, tmp_path: Path, stage: str, file: str, damage: str
) -> None:
    copy = built.copy(tmp_path)
    path = copy.file(file)
    DAMAGES[damage](path)
    for gone in DATA_STAGES[DATA_STAGES.index(stage) :] if stage != "train" else ():
        shutil.rmtree(copy.bucket / gone)
    before = tree(copy.bucket)
    found = {"flipped": "sha256", "cut": "bytes" if stage != "train" else f"{path.stat().st_size if path.exists() else 0} bytes"}
    ended = copy.run(stage)
    assert_fails(
        ended, "InputError", what=str(path), found=found.get(damage, "no such file"), expected="bytes" if damage != "flipped" else "sha256"
    )
    after = tree(copy.bucket)
    own = "runs" if stage == "train" else stage
    assert {name: after[name] for name in before} == before
    assert not [name for name in after.keys() - before.keys() if not name.startswith(own) or "manifest" in name or "scratch" in name]
