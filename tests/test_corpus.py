"""The corpus: what a document is, which stay, which are held out."""

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import tiny
from gristmill import jobfile
from gristmill.config import Job
from gristmill.errors import JobError
from gristmill.manifest import Context
from gristmill.stages import corpus
from gristmill.text import documents, sources
from gristmill.text.documents import CorpusManifest


def make(folder: Path, held_out_fraction: float = 0.5, **source_by_name: dict[str, object]) -> tuple[Job, CorpusManifest]:
    """The corpus of some sources."""
    job = tiny.job(folder)
    job["corpus"] = {"sources": source_by_name, "held_out_fraction": held_out_fraction}
    train = job["train"]
    assert isinstance(train, dict)
    train["mixture"] = dict.fromkeys(source_by_name, 1)
    checked = jobfile.validate(job)
    manifest = corpus.run(checked, Context())
    assert manifest is not None
    return checked, manifest


def files(*paths: Path | str, **options: object) -> dict[str, object]:
    return {"kind": "files", "paths": [str(path) for path in paths], **options}


def texts(job: Job, manifest: CorpusManifest, split: documents.Split | None = None) -> list[str]:
    """All documents' texts, training before held out in each part."""
    splits: list[documents.Split] = [split] if split else ["train", "held_out"]
    parts = range(len(manifest.parts))
    return [one.text for part in parts for side in splits for one in documents.read(job.bucket, manifest, part, side)]


TEXT = "First line\nof one.\n\n\n  \nSecond.\r\n\r\nThird: Straße 🙂\n"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("file", [TEXT]),
        ("line", ["First line", "of one.", "Second.", "Third: Straße 🙂"]),
        ("paragraph", ["First line\nof one.", "Second.", "Third: Straße 🙂"]),
        ("auto", ["First line\nof one.", "Second.", "Third: Straße 🙂"]),
    ],
)
def test_a_text_file_is_cut_into_documents_as_asked(tmp_path: Path, kind: str, expected: list[str]) -> None:
    (tmp_path / "one.txt").write_bytes(TEXT.encode())
    (tmp_path / "pad.jsonl").write_text("".join(f"{json.dumps({'text': f'pad {index}'})}\n" for index in range(40)))
    job, manifest = make(tmp_path, one=files(tmp_path / "one.txt", document=kind), pad=files(tmp_path / "pad.jsonl"))
    assert sorted(text for text in texts(job, manifest) if not text.startswith("pad ")) == sorted(expected)


def test_several_text_files_are_a_document_each(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"{index:02d}.txt").write_text(f"file {index}\n\nsecond paragraph\n", encoding="utf-8")
    job, manifest = make(tmp_path, own=files(tmp_path / "*.txt"))
    assert sorted(texts(job, manifest)) == sorted(f"file {index}\n\nsecond paragraph\n" for index in range(30))


def test_every_kind_of_file_gives_the_same_documents(tmp_path: Path) -> None:
    written = [tiny.text(20, seed) for seed in range(40)]
    lines = "".join(f"{json.dumps({'body': text})}\n" for text in written).encode()
    (tmp_path / "plain.jsonl").write_bytes(lines)
    (tmp_path / "zipped.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "zipped.jsonl.zst").write_bytes(zstandard.compress(lines))
    pq.write_table(pa.table({"other": list(range(40)), "body": written}), tmp_path / "table.parquet")
    for name in ("plain.jsonl", "zipped.jsonl.gz", "zipped.jsonl.zst", "table.parquet"):
        job, manifest = make(tmp_path, own=files(tmp_path / name, text_column="body"))
        assert sorted(texts(job, manifest)) == sorted(written), name


def test_of_equal_texts_the_first_in_the_jobs_order_stays_and_the_others_are_counted(tmp_path: Path) -> None:
    both = [f"shared {index}" for index in range(10)]
    for name, own in (("zebra", ["only zebra", "twice", "twice"]), ("apple", ["only apple", ""])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in both + own))
    job, manifest = make(tmp_path, zebra=files(tmp_path / "zebra.jsonl"), apple=files(tmp_path / "apple.jsonl"))
    assert sorted(texts(job, manifest)) == sorted([*both, "only zebra", "twice", "only apple"])
    zebra, apple = manifest.sources["zebra"], manifest.sources["apple"]
    assert zebra.train.documents + zebra.held_out.documents == 12
    assert (zebra.duplicates.documents, zebra.duplicates.bytes) == (1, len("twice"))
    assert apple.train.documents + apple.held_out.documents == 1
    assert (apple.duplicates.documents, apple.empty_documents) == (10, 1)


def test_counts_are_of_documents_bytes_and_characters(tmp_path: Path) -> None:
    written = [f"Größe {index} 🙂" for index in range(50)]
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in written))
    job, manifest = make(tmp_path, own=files(tmp_path / "own.jsonl"))
    for split, counts in (("train", manifest.sources["own"].train), ("held_out", manifest.sources["own"].held_out)):
        of_split = texts(job, manifest, "train" if split == "train" else "held_out")
        assert counts.documents == len(of_split)
        assert counts.bytes == sum(len(text.encode()) for text in of_split)
        assert counts.characters == sum(map(len, of_split))


def test_a_document_is_held_out_by_its_text_alone(tmp_path: Path) -> None:
    written = [f"document {index}" for index in range(2000)]
    held_out = {text for text in written if int(hashlib.sha256(text.encode()).hexdigest(), 16) < 2**256 // 10}
    assert 150 < len(held_out) < 250
    for name, order in (("forward", written), ("backward", written[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in order))
        job, manifest = make(tmp_path, held_out_fraction=0.1, **{name: files(tmp_path / f"{name}.jsonl")})
        assert set(texts(job, manifest, "held_out")) == held_out
        assert set(texts(job, manifest, "train")) == set(written) - held_out


def test_an_edited_file_makes_a_new_corpus_and_a_moved_one_does_not(tmp_path: Path) -> None:
    tiny.write_sources(tmp_path)
    _, first = make(tmp_path, own=files(tmp_path / "b.txt"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b.txt").rename(tmp_path / "elsewhere" / "b.txt")
    _, moved = make(tmp_path, own=files(tmp_path / "elsewhere" / "b.txt"))
    (tmp_path / "elsewhere" / "b.txt").write_text((tmp_path / "elsewhere" / "b.txt").read_text() + "\n\none more", encoding="utf-8")
    job, edited = make(tmp_path, own=files(tmp_path / "elsewhere" / "b.txt"))
    assert moved == first
    assert edited.digest != first.digest
    assert "one more" in texts(job, edited)
    assert documents.current(job) == edited


def test_the_sample_is_readable_text_of_this_python(tmp_path: Path) -> None:
    job, manifest = make(tmp_path, held_out_fraction=0.02, docs={"kind": "sample"})
    counts = manifest.sources["docs"]
    assert counts.train.bytes > 1_500_000
    assert counts.held_out.documents > 5
    assert any("with" in text and "statement" in text for text in texts(job, manifest, "train"))


def test_an_unpinned_dataset_is_resolved_to_a_commit_that_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps({'text': f'document {index}'})}\n" for index in range(50)))
    commits = iter(["c" * 40, "d" * 40])
    asked: list[str] = []

    class Hub:
        def dataset_info(self, name: str, *, revision: str | None) -> object:
            asked.append(f"{name}@{revision}")
            return type("Info", (), {"sha": next(commits)})()

    def listed(_name: str, url: str) -> list[tuple[str, sources.SourceFile]]:
        asked.append(url)
        return [(str(tmp_path / "x.jsonl"), sources.SourceFile(name="x.jsonl", size_bytes=1, hash="sha256:0"))]

    monkeypatch.setattr(sources, "HfApi", Hub)
    monkeypatch.setattr(sources, "_list", listed)
    pointer = tmp_path / "out" / "runs" / "tiny" / "corpus.json"
    job, first = make(tmp_path, own=files("hf://datasets/o/n/x*.jsonl", allow_unpinned=True))
    assert asked == ["o/n@None", f"hf://datasets/o/n@{'c' * 40}/x*.jsonl"]
    assert json.loads(pointer.read_text())["revisions"] == {"own": ["c" * 40]}
    assert corpus.run(job, Context()) == first
    assert json.loads(pointer.read_text())["revisions"] == {"own": ["d" * 40]}


def test_a_branch_is_no_pin(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="not pinned"):
        make(tmp_path, own=files("hf://datasets/o/n@main/x.jsonl"))
