"""Shards: what they hold, where they lie, and reading their rows with each file's bytes checked once."""

import bisect
import itertools
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from array_record.python.array_record_data_source import ArrayRecordDataSource

from gristmill import storage
from gristmill.config import Job
from gristmill.data.packing import Row, decode_row, id_dtype
from gristmill.manifest import File, Manifest, Record, damaged, digest, require
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
        expected = f"{shard.file.size_bytes} bytes"
        try:
            size = storage.size_bytes(path)
            crc32c = storage.crc32c_if_known(path)
        except FileNotFoundError as error:
            raise damaged(path, found="no such file", expected=expected, stage="shards") from error
        if size != shard.file.size_bytes:
            raise damaged(path, found=f"{size} bytes", expected=expected, stage="shards")
        if crc32c not in {None, shard.file.crc32c}:
            raise damaged(path, found=f"crc32c {crc32c}", expected=f"crc32c {shard.file.crc32c}", stage="shards")


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
        self._cache: tempfile.TemporaryDirectory[str] | None = None

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
        """A checked local copy of a shard."""
        file = self._shards[shard].file
        path = storage.join(self._folder, file.name)
        if storage.is_remote(path):
            local = self._make_room(shard) / f"{shard}.array_record"
            storage.download(path, local)
        else:
            local = Path(path)
        if not local.exists():
            raise damaged(path, found="no such file", expected=f"{file.size_bytes} bytes", stage="shards")
        sums = storage.checksums(local)
        if sums.sha256 != file.sha256:
            raise damaged(path, found=f"sha256 {sums.sha256[:16]}…", expected=f"sha256 {file.sha256[:16]}…", stage="shards")
        return local

    def _make_room(self, shard: int) -> Path:
        """The cache's folder, after the files that were opened first have left enough room for a shard."""
        if self._cache is None:
            self._cache = tempfile.TemporaryDirectory(prefix="gristmill-rows-")
        needed = self._shards[shard].file.size_bytes
        while self._open and sum(self._shards[one].file.size_bytes for one in self._open) + needed > _CACHE_BYTES:
            oldest = next(iter(self._open))
            del self._open[oldest]
            (Path(self._cache.name) / f"{oldest}.array_record").unlink()
        return Path(self._cache.name)
