"""Shards: what they hold, where they lie, and reading their rows with each file's bytes checked once."""

import bisect
import itertools
import shutil
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from gristmill import storage
from gristmill.config import Job
from gristmill.data.packing import Row, decode_row, id_dtype
from gristmill.manifest import File, Manifest, Record, damaged, digest, fetch, require
from gristmill.text import documents, tokenizers
from gristmill.text.documents import Split
from gristmill.text.tokenizers import TokenizerManifest

FORMAT = 1
WRITER_OPTIONS = "group_size:1,uncompressed"
_CACHE_BYTES = 64 << 30


class Counts(Record):
    """How much a set of rows holds."""

    documents: int = 0
    tokens: int = 0
    """Ids of documents with BOS and EOS, each once."""
    rows: int = 0
    padding: int = 0
    """Places in rows that hold no id."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            rows=self.rows + other.rows,
            padding=self.padding + other.padding,
        )


class Shard(Record):
    """A file of rows."""

    source: str
    split: Split
    file: File
    counts: Counts


class ShardsManifest(Manifest):
    """What the shards stage left."""

    sequence_length: int
    vocab_size: int
    shards: tuple[Shard, ...]

    def of(self, source: str, split: Split) -> tuple[Shard, ...]:
        """The shards of a source and split, in order."""
        return tuple(shard for shard in self.shards if (shard.source, shard.split) == (source, split))

    def counts(self, source: str, split: Split) -> Counts:
        """How much a source and split hold."""
        return sum((shard.counts for shard in self.of(source, split)), Counts())


def folder(bucket: str, digest: str) -> str:
    """Where shards lie."""
    return storage.join(bucket, "shards", digest)


def identity(job: Job, corpus_digest: str, tokenizer_digest: str) -> str:
    """Digest of the shards that a job makes of a corpus with a tokenizer."""
    return digest("shards", FORMAT, job.shards.model_dump(mode="json"), {"corpus": corpus_digest, "tokenizer": tokenizer_digest})


def current(job: Job) -> tuple[ShardsManifest, TokenizerManifest]:
    """The shards of a job and their tokenizer.

    Raises:
        InputError: an earlier stage has not been done for this job.
    """
    corpus = documents.current(job)
    tokenizer = tokenizers.current(job, corpus.digest)
    name = identity(job, corpus.digest, tokenizer.digest)
    return require(ShardsManifest, folder(job.bucket, name), name, stage="shards"), tokenizer


def check_metadata(bucket: str, manifest: ShardsManifest) -> None:
    """Compares every shard with the manifest as far as metadata tells: its size, and on gs:// its crc32c.

    Raises:
        InputError: a shard is missing or differs.
    """
    at = folder(bucket, manifest.digest)
    for shard in manifest.shards:
        path = storage.join(at, shard.file.name)
        try:
            size, crc32c = storage.size_and_crc32c(path)
        except FileNotFoundError as error:
            raise damaged(at, shard.file, found="no such file", stage="shards") from error
        if size != shard.file.size_bytes or crc32c not in {None, shard.file.crc32c}:
            raise damaged(at, shard.file, found=f"{size} bytes, crc32c {crc32c or 'not known'}", stage="shards")


class Rows:
    """Random access to the rows of some shards. Safe to use from several threads.

    A file's bytes are checked when its first row is asked for. Files on gs:// are copied to local disk then, and stay while they fit.
    """

    def __init__(self, bucket: str, manifest: ShardsManifest, shards: Sequence[Shard]) -> None:
        self._folder = folder(bucket, manifest.digest)
        self._shards = shards
        self._ends = list(itertools.accumulate(shard.counts.rows for shard in shards))
        self._row_tokens = manifest.sequence_length + 1
        self._dtype = id_dtype(manifest.vocab_size)
        self._lock = threading.Lock()
        self._open: dict[int, ArrayRecordDataSource] = {}
        self._copies: Path | None = None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        shard = bisect.bisect_right(self._ends, index)
        start = self._ends[shard] - self._shards[shard].counts.rows
        record: bytes = self._source(shard)[index - start]
        return decode_row(record, self._row_tokens, self._dtype)

    def _source(self, shard: int) -> ArrayRecordDataSource:
        with self._lock:
            if shard not in self._open:
                self._open[shard] = ArrayRecordDataSource([str(self._local(shard))])
            return self._open[shard]

    def _local(self, shard: int) -> Path:
        """A checked local path of a shard."""
        file = self._shards[shard].file
        copy = self._room_for(shard) if storage.is_remote(self._folder) else Path()
        return fetch(self._folder, file, copy, stage="shards")

    def _room_for(self, shard: int) -> Path:
        """Where a copy of a shard goes, after those that were made first have left enough room for it."""
        if self._copies is None:
            self._copies = Path(tempfile.mkdtemp(prefix="gristmill-rows-"))
            weakref.finalize(self, shutil.rmtree, self._copies)
        sizes = {one: self._shards[one].file.size_bytes for one in self._open}
        while sizes and sum(sizes.values()) + self._shards[shard].file.size_bytes > _CACHE_BYTES:
            oldest = next(iter(sizes))
            del self._open[oldest], sizes[oldest]
            (self._copies / f"{oldest}.array_record").unlink()
        return self._copies / f"{shard}.array_record"
