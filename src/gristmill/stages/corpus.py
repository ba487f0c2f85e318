"""Sources to parquet parts with ids, duplicates found and held-out documents fixed.

Reads the sources; writes corpus/<digest>/ with sources.json first, a part and a sorted list of ids a task, then the duplicates and the
manifest; last runs/<run>/corpus.json, by which later stages find this corpus without seeing the sources. Hides how work is cut into tasks.
"""

import heapq
import struct
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from datatrove.data import Document as Written
from datatrove.pipeline.writers import ParquetWriter

from gristmill import storage, telemetry
from gristmill.config import Corpus, FilesSource, Job
from gristmill.errors import JobError, SourceError
from gristmill.manifest import Context, File, Record, TextCounts, committed, describe, digest, find, run_tasks, verified_file
from gristmill.text import documents, readers
from gristmill.text.documents import CorpusManifest, Part, SourceCounts
from gristmill.text.sources import Located, Resolved, resolve

FORMAT = 1
_TASK_BYTES = 64 << 20
_SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string())])
_ID = struct.Struct("<32sIQQ")


class _Task(NamedTuple):
    located: Located
    files: range


class _Result(Record):
    """A task's marker."""

    part: Part
    ids: File
    empty_documents: int


class _Seen(NamedTuple):
    """A document as the list of ids has it; ordered so that the first of equal texts is the one that stays."""

    id: bytes
    part: int
    row: int
    bytes: int
    characters: int


def run(job: Job, context: Context) -> CorpusManifest | None:
    """Builds the corpus of a job; None while other workers still have tasks to do.

    Raises:
        JobError: a source is not pinned, or nothing is held out.
        SourceError: a source cannot be had or holds no text.
    """
    located = resolve(job.corpus)
    resolved = Resolved(sources=tuple(source.resolved for source in located))
    inputs = {"sources": digest("sources", FORMAT, resolved.model_dump(mode="json"), {})}
    identity = digest("corpus", FORMAT, documents.section(job.corpus), inputs)
    folder = documents.folder(job.bucket, identity)
    manifest = find(CorpusManifest, folder, identity)
    if manifest is None:
        storage.commit(storage.join(folder, "sources.json"), resolved.encode())
        tasks = list(_cut(located))
        results = run_tasks(
            folder, len(tasks), context, _Result, lambda index: _do(job.corpus, folder, tasks[index], index), stage="corpus"
        )
        if results is None:
            return None
        manifest = _finish(job.corpus, folder, identity, inputs, results)
        committed(folder, manifest)
    else:
        telemetry.log().info("corpus is done already", digest=identity[:12])
    documents.point(job, manifest, {source.resolved.name: source.revisions for source in located})
    return manifest


def _cut(located: list[Located]) -> Iterator[_Task]:
    """Runs of a source's files of about equal size."""
    for source in located:
        start, size = 0, 0
        for index, file in enumerate(source.resolved.files):
            if size and size + file.size_bytes > _TASK_BYTES:
                yield _Task(source, range(start, index))
                start, size = index, 0
            size += file.size_bytes
        yield _Task(source, range(start, len(source.resolved.files)))


def _do(corpus: Corpus, folder: str, task: _Task, index: int) -> _Result:
    """Writes one part and the sorted list of its ids."""
    name, ids_name = f"parts/{index:05d}.parquet", f"ids/{index:05d}.bin"
    source = corpus.sources[task.located.resolved.name]
    seen: list[_Seen] = []
    empty = 0
    with storage.scratch(storage.join(folder, name)) as scratch:
        with ParquetWriter(
            str(scratch.parent), "${rank}.parquet", "zstd", lambda _, document: {"id": document.id, "text": document.text}, schema=_SCHEMA,
            max_file_size=0, use_content_defined_chunking=False,
        ) as writer:  # fmt: skip
            for file in task.files:
                for text in readers.read(task.located, source if isinstance(source, FilesSource) else None, file):
                    if not text:
                        empty += 1
                        continue
                    identity = documents.document_id(text)
                    seen.append(_Seen(bytes.fromhex(identity), index, len(seen), len(text.encode()), len(text)))
                    writer.write(Written(text, identity))
        path = scratch.with_name("00000.parquet")
        if not seen:
            pq.write_table(_SCHEMA.empty_table(), path)
        part = Part(source=task.located.resolved.name, file=describe(name, path), rows=len(seen))
        storage.commit_file(storage.join(folder, name), path)
    with storage.scratch(storage.join(folder, ids_name)) as scratch:
        scratch.write_bytes(b"".join(_ID.pack(one.id, one.row, one.bytes, one.characters) for one in sorted(seen)))
        ids = describe(ids_name, scratch)
        storage.commit_file(storage.join(folder, ids_name), scratch)
    return _Result(part=part, ids=ids, empty_documents=empty)


def _finish(corpus: Corpus, folder: str, identity: str, inputs: dict[str, str], results: list[_Result]) -> CorpusManifest:
    """Finds duplicates over all tasks by merging their sorted ids; memory is the list of duplicates and counts."""
    counts = {(name, column): TextCounts() for name in corpus.sources for column in ("train", "held_out", "duplicates")}
    duplicates: list[tuple[int, int]] = []
    merged = heapq.merge(*(_ids(folder, index, result) for index, result in enumerate(results)))
    for _, same in groupby(merged, key=itemgetter(0)):
        for place, one in enumerate(same):
            column = "duplicates" if place else documents.split_of(one.id.hex(), corpus.held_out_fraction)
            key = (results[one.part].part.source, column)
            counts[key] += TextCounts(documents=1, bytes=one.bytes, characters=one.characters)
            if place:
                duplicates.append((one.part, one.row))
    sources = {
        name: SourceCounts(
            train=counts[name, "train"],
            held_out=counts[name, "held_out"],
            duplicates=counts[name, "duplicates"],
            empty_documents=sum(result.empty_documents for result in results if result.part.source == name),
        )
        for name in corpus.sources
    }
    _check(corpus, sources)
    return CorpusManifest(
        stage="corpus",
        format=FORMAT,
        digest=identity,
        inputs=inputs,
        held_out_fraction=corpus.held_out_fraction,
        parts=tuple(result.part for result in results),
        duplicates=_write_duplicates(folder, sorted(duplicates)),
        sources=sources,
    )


def _ids(folder: str, index: int, result: _Result) -> Iterator[_Seen]:
    with verified_file(folder, result.ids, stage="corpus") as path, path.open("rb") as file:
        while record := file.read(_ID.size):
            identity, row, size_bytes, characters = _ID.unpack(record)
            yield _Seen(identity, index, row, size_bytes, characters)


def _write_duplicates(folder: str, duplicates: list[tuple[int, int]]) -> File:
    parts, rows = [part for part, _ in duplicates], [row for _, row in duplicates]
    table = pa.table({"part": pa.array(parts, pa.uint32()), "row": pa.array(rows, pa.uint32())})
    path = storage.join(folder, "duplicates.parquet")
    with storage.scratch(path) as scratch:
        pq.write_table(table, scratch, compression="zstd")
        file = describe("duplicates.parquet", scratch)
        storage.commit_file(path, scratch)
    return file


def _check(corpus: Corpus, sources: dict[str, SourceCounts]) -> None:
    """A corpus has text on both sides."""
    shown = "; ".join(f"{name}: {counts.train.documents} train, {counts.held_out.documents} held out" for name, counts in sources.items())
    if not any(counts.train.documents + counts.held_out.documents for counts in sources.values()):
        raise SourceError(
            "the corpus is empty", found=shown, expected="documents with text", next_step="check corpus.sources and text_column"
        )
    for name in ("train", "held_out"):
        if not any(getattr(counts, name).documents for counts in sources.values()):
            raise JobError(
                f"no document falls into the {name.replace('_', '-')} part",
                found=f"{shown}, with held_out_fraction {corpus.held_out_fraction}",
                expected="at least one document on each side",
                next_step="change corpus.held_out_fraction, cut documents smaller (document: paragraph), or add text",
            )
