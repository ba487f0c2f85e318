"""Batches of training and of held-out rows, carried out by Grain: threads, prefetch, order.

Reads shards; hides how a process finds its slice of a global batch. Any number of processes sees the same global batches, and the only
state of a loader is the step it stands at.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import grain

from gristmill.config import Job
from gristmill.data.mixture import Mixture, row_at
from gristmill.data.packing import Batch, Row, batch
from gristmill.data.shards import Rows, ShardsManifest
from gristmill.errors import JobError

_THREADS = 2
_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Slice:
    """The part of every global batch that one process reads: consecutive sequences."""

    process_index: int = 0
    process_count: int = 1


@dataclass(frozen=True)
class _LocalRows:
    """This process's rows of the whole run, in order."""

    mixture: Mixture
    seed: int
    rows: dict[str, Rows]
    steps: int
    sequences: int
    part: Slice

    def __len__(self) -> int:
        return self.steps * self.sequences // self.part.process_count

    def __getitem__(self, index: int) -> Row:
        step, place = divmod(index, self.sequences // self.part.process_count)
        offset = self.part.process_index * self.sequences // self.part.process_count
        source, _, row = row_at(self.mixture, self.seed, step * self.sequences + offset + place)
        return self.rows[source][row]


def mixture(job: Job, manifest: ShardsManifest) -> Mixture:
    """The mixture of a job over its shards.

    Raises:
        JobError: a source with a weight has no training rows.
    """
    rows = {source: manifest.counts(source, "train").rows for source in sorted(job.corpus.sources)}
    empty = [source for source, weight in job.train.weights().items() if weight and not rows[source]]
    if empty:
        raise JobError(
            f"train.mixture gives {empty[0]} a weight",
            found="no training rows of it",
            expected="rows of every source with a weight",
            next_step=f"set its weight to 0, or add text to the source {empty[0]}",
        )
    return Mixture(job.train.weights(), rows)


def training(job: Job, manifest: ShardsManifest, part: Slice, start_step: int) -> Iterator[Batch]:
    """This process's part of the global batches from a step on; arrays are [sequences / process_count, sequence_length].

    Raises:
        InputError: a shard's bytes are not those of the manifest, at its first row.
    """
    local = job.sequences_per_step // part.process_count
    rows = {source: Rows(job.bucket, manifest, manifest.of(source, "train")) for source in job.corpus.sources}
    source = _LocalRows(mixture(job, manifest), job.train.seed, rows, job.steps, job.sequences_per_step, part)
    return _iterate(grain.MapDataset.source(source)[start_step * local :], local, manifest)


def held_out_rows(job: Job, manifest: ShardsManifest, source: str) -> list[Row]:
    """The rows a source is scored on: of each held-out shard those with the smallest document ids, always the same ones.

    Raises:
        InputError: a shard's bytes are not those of the manifest.
    """
    shards = manifest.of(source, "held_out")
    available_tokens = sum(shard.counts.rows for shard in shards) * manifest.sequence_length
    share = min(Fraction(1), Fraction(job.evaluate.max_tokens, max(1, available_tokens)))
    found: list[Row] = []
    for shard in shards:
        rows = Rows(job.bucket, manifest, (shard,))
        found += [rows[row] for row in range(math.ceil(len(rows) * share))]
    return found


def held_out_batches(rows: Sequence[Row], sequence_length: int, sequences: int, part: Slice) -> Iterator[Batch]:
    """This process's part of batches of `sequences` rows; the last is filled with empty rows, which weigh nothing."""
    local = sequences // part.process_count
    for start in range(part.process_index * local, max(len(rows), 1) + part.process_index * local, sequences):
        yield batch(rows[start : start + local], sequence_length, count=local)


def _iterate(dataset: grain.MapDataset[Row], local: int, manifest: ShardsManifest) -> Iterator[Batch]:
    batches = dataset.batch(local, drop_remainder=True, batch_fn=lambda rows: batch(list(rows), manifest.sequence_length, count=local))
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(batches.to_iter_dataset(options))
