"""Documents to shards of packed rows, each source on its own, training and held-out apart.

Reads the corpus and the tokenizer; writes shards/<digest>/<source>/ as ArrayRecord files, a task a corpus part. Hides how documents become
ids: BOS, the encoded text, EOS; text that spells a special token is ordinary text.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import batched, pairwise

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from numpy.typing import NDArray

from gristmill import rustbpe, storage, telemetry
from gristmill.config import Job
from gristmill.data import shards
from gristmill.data.packing import encode_row, id_dtype, pack
from gristmill.data.shards import Counts, Shard, ShardsManifest
from gristmill.manifest import Context, Record, committed, describe, find, run_tasks
from gristmill.text import documents, tokenizers
from gristmill.text.documents import CorpusManifest, Document, Split
from gristmill.text.tokenizers import TokenizerManifest

_BATCH_DOCUMENTS = 256


class _Result(Record):
    """A task's marker."""

    shards: tuple[Shard, ...]


def run(job: Job, context: Context) -> ShardsManifest | None:
    """Encodes and packs the corpus of a job; None while other workers still have tasks to do.

    Raises:
        InputError: the corpus or the tokenizer is missing or damaged.
    """
    corpus = documents.current(job)
    tokenizer = tokenizers.current(job, corpus.digest)
    name = shards.identity(job, corpus.digest, tokenizer.digest)
    folder = shards.folder(job.bucket, name)
    manifest = find(ShardsManifest, folder, name)
    if manifest is not None:
        telemetry.log().info("shards are done already", digest=name[:12])
        return manifest
    encoder = tokenizers.encoder(job.bucket, tokenizer)
    results = run_tasks(
        folder, len(corpus.parts), context, _Result, lambda part: _do(job, corpus, tokenizer, encoder, folder, part), stage="shards"
    )
    if results is None:
        return None
    manifest = ShardsManifest(
        stage="shards",
        format=shards.FORMAT,
        digest=name,
        inputs={"corpus": corpus.digest, "tokenizer": tokenizer.digest},
        sequence_length=job.shards.sequence_length,
        vocab_size=tokenizer.vocab_size,
        shards=tuple(shard for result in results for shard in result.shards),
    )
    committed(folder, manifest)
    return manifest


def _do(job: Job, corpus: CorpusManifest, tokenizer: TokenizerManifest, encoder: rustbpe.Encoder, folder: str, part: int) -> _Result:
    """Writes the shards of one corpus part."""
    source = corpus.parts[part].source
    siblings = [index for index, other in enumerate(corpus.parts) if other.source == source]
    place = f"{siblings.index(part):05d}-of-{len(siblings):05d}"
    held_out = sorted(documents.read(job.bucket, corpus, part, "held_out"))
    by_split: dict[Split, Iterable[Document]] = {"train": documents.read(job.bucket, corpus, part, "train"), "held_out": held_out}
    written: list[Shard] = []
    for split, texts in by_split.items():
        name = f"{source}/{split}-{place}.array_record"
        shard = _write(job, folder, name, source, split, _encode(encoder, tokenizer, texts))
        written += [shard] if shard else []
    return _Result(shards=tuple(written))


def _encode(encoder: rustbpe.Encoder, tokenizer: TokenizerManifest, texts: Iterable[Document]) -> Iterator[NDArray[np.uint32]]:
    """[tokens] ids of each document, BOS and EOS around them."""
    bos, eos = np.array([tokenizer.bos], np.uint32), np.array([tokenizer.eos], np.uint32)
    for some in batched(texts, _BATCH_DOCUMENTS):
        ids, ends = encoder.encode_batch([document.text for document in some])
        for start, end in pairwise(ends.tolist()):
            yield np.concatenate([bos, ids[start:end], eos])


def _write(job: Job, folder: str, name: str, source: str, split: Split, encoded: Iterator[NDArray[np.uint32]]) -> Shard | None:
    """Packs documents into a shard; None, and no file, where there are none."""
    row_tokens = job.shards.sequence_length + 1
    dtype = id_dtype(job.tokenizer.vocab_size)
    totals: defaultdict[str, int] = defaultdict(int)

    def counted() -> Iterator[NDArray[np.uint32]]:
        for document in encoded:
            totals["documents"] += 1
            totals["tokens"] += document.size
            yield document

    with storage.scratch(storage.join(folder, name)) as scratch:
        writer = ArrayRecordWriter(str(scratch), shards.WRITER_OPTIONS)
        for row in pack(counted(), row_tokens):
            totals["rows"] += 1
            totals["padding"] += row_tokens - row.ids.size
            writer.write(encode_row(row, row_tokens, dtype))
        writer.close()
        if not totals["rows"]:
            return None
        file = describe(name, scratch)
        storage.commit_file(storage.join(folder, name), scratch)
    return Shard(source=source, split=split, file=file, counts=Counts(**totals))
