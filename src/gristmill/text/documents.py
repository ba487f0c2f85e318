"""The documents of a finished corpus: which there are, which are held out, how to read them."""

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Literal, NamedTuple

import pyarrow.parquet as pq

from gristmill import storage
from gristmill.config import Corpus, Job
from gristmill.errors import InputError
from gristmill.manifest import File, Manifest, Record, Sha256, TextCounts, digest, require, verified_file

type Split = Literal["train", "held_out"]

_ID_SPACE = 16**64


class Document(NamedTuple):
    """A text with the sha256 of its UTF-8 bytes, in hexadecimal."""

    id: str
    text: str


class Part(Record):
    """A parquet file of one source's documents, in the source's order."""

    source: str
    file: File
    rows: int


class SourceCounts(Record):
    """How much text a source has; a duplicate counts for the first source that has it."""

    train: TextCounts
    held_out: TextCounts
    duplicates: TextCounts
    empty_documents: int


class CorpusManifest(Manifest):
    """What the corpus stage left."""

    held_out_fraction: float
    parts: tuple[Part, ...]
    duplicates: File
    """Parquet of the (part, row) to pass over."""
    sources: dict[str, SourceCounts]


def document_id(text: str) -> str:
    """The sha256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(identity: str, held_out_fraction: float) -> Split:
    """On which side a document stands: a function of its text alone, so that the same text never stands on both."""
    return "held_out" if int(identity, 16) < Fraction(str(held_out_fraction)) * _ID_SPACE else "train"


class _Pointer(Record):
    """The corpus that a run uses: which, and the job section it was built from."""

    digest: Sha256
    section: Sha256
    revisions: dict[str, tuple[str, ...]]
    """The commits that a source's hf:// paths stood for."""


def section(corpus: Corpus) -> dict[str, object]:
    """The job section as it enters digests, without paths: the files they stand for are inputs."""
    values = corpus.model_dump(mode="json")
    for source in values["sources"].values():
        source.pop("paths", None)
        source.pop("allow_unpinned", None)
    # The order decides which of two equal documents stays, and a digest sorts keys.
    return {**values, "order": list(corpus.sources)}


def point(job: Job, corpus: CorpusManifest, revisions: dict[str, tuple[str, ...]]) -> None:
    """Names the corpus a run uses, so that later stages find it without seeing the sources, and the commits it was read from."""
    section_digest = digest("corpus", corpus.format, job.corpus.model_dump(mode="json"), {})
    pointer = _Pointer(digest=corpus.digest, section=section_digest, revisions=revisions)
    if storage.read_if_present(_pointer_path(job)) != pointer.encode():
        storage.replace(_pointer_path(job), pointer.encode())


def current(job: Job) -> CorpusManifest:
    """The corpus that the corpus stage last built for a run.

    Raises:
        InputError: there is none, or the job's corpus section has changed since.
    """
    path = _pointer_path(job)
    data = storage.read_if_present(path)
    if data is None:
        raise InputError(
            "the corpus stage has not been done for this job",
            found=f"no {path}",
            expected="the file that `gristmill corpus` leaves",
            next_step="run `gristmill corpus JOB`, or `gristmill run JOB` for all stages in order",
        )
    pointer = _Pointer.decode(data, path)
    found = require(CorpusManifest, folder(job.bucket, pointer.digest), pointer.digest, stage="corpus")
    if pointer.section != digest("corpus", found.format, job.corpus.model_dump(mode="json"), {}):
        raise InputError(
            f"the corpus of run {job.run} is not this job's",
            found=f"corpus {found.digest[:12]}, built from another corpus section",
            expected="the corpus of the job file as it is now",
            next_step="run `gristmill corpus JOB`",
        )
    return found


def _pointer_path(job: Job) -> str:
    return storage.join(job.bucket, "runs", job.run, "corpus.json")


def folder(bucket: str, digest: str) -> str:
    """Where a corpus lies."""
    return storage.join(bucket, "corpus", digest)


def read(bucket: str, corpus: CorpusManifest, part: int, split: Split) -> Iterator[Document]:
    """The documents of one part and split, in order and each once.

    Raises:
        InputError: the part's bytes are not those of the manifest.
    """
    at = folder(bucket, corpus.digest)
    skip = _duplicate_rows(at, corpus, part)
    row = 0
    with verified_file(at, corpus.parts[part].file, stage="corpus") as path, pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            for identity, text in zip(batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True):
                if row not in skip and split_of(identity, corpus.held_out_fraction) == split:
                    yield Document(identity, text)
                row += 1
    if row != corpus.parts[part].rows:
        raise InputError(
            f"{corpus.parts[part].file.name} does not match its manifest",
            found=f"{row} rows",
            expected=f"{corpus.parts[part].rows}",
            next_step="delete the corpus folder and run the corpus stage again",
        )


def _duplicate_rows(at: str, corpus: CorpusManifest, part: int) -> frozenset[int]:
    with verified_file(at, corpus.duplicates, stage="corpus") as path:
        table = pq.read_table(path, filters=[("part", "=", part)])
    return frozenset(table.column("row").to_pylist())
