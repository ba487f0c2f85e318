"""Scores on held-out documents, in training and after it: loss, perplexity and bits per byte, a source at a time."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from gristmill.config import Job
from gristmill.data import loader
from gristmill.data.loader import Slice
from gristmill.data.shards import ShardsManifest
from gristmill.model.transformer import Params
from gristmill.text import tokenizers
from gristmill.text.tokenizers import TokenizerManifest
from gristmill.training import sharding
from gristmill.training.step import Program


class Score(NamedTuple):
    """Sums over held-out targets; those of several sources add up."""

    nats: float
    targets: float
    byte_nats: float
    """Over the targets that stand for bytes, so without the ends of documents."""
    bytes: float

    @property
    def loss(self) -> float:
        """Nats a target."""
        return self.nats / self.targets

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float:
        """Bits that a byte of text costs; it does not depend on the vocabulary."""
        return self.byte_nats / (math.log(2) * self.bytes)


def total(scores: dict[str, Score]) -> Score:
    """The score of all sources together."""
    return Score(*(sum(column) for column in zip(*scores.values(), strict=True)))


def scorer(job: Job, manifest: ShardsManifest, tokenizer: TokenizerManifest, program: Program) -> Callable[[Params], dict[str, Score]]:
    """Reads the held-out rows once; the result scores parameters by source. Sources without held-out rows are left out.

    Raises:
        InputError: held-out shards are missing or damaged.
    """
    token_bytes_V = jax.numpy.asarray(tokenizers.token_bytes(job.bucket, tokenizer))
    rows = {source: loader.held_out_rows(job, manifest, source) for source in job.corpus.sources}
    part = Slice(jax.process_index(), jax.process_count())

    def score(params: Params) -> dict[str, Score]:
        return {source: score_source(params, source) for source in rows if rows[source]}

    def score_source(params: Params, source: str) -> Score:
        batches = loader.held_out_batches(rows[source], manifest.sequence_length, job.sequences_per_step, part)
        sums = [
            program.eval_step(params, sharding.put_batch(batch, program.mesh, job.train.accumulation_steps), token_bytes_V)
            for batch in batches
        ]
        return Score(*(float(np.sum(column, dtype=np.float64)) for column in zip(*jax.device_get(sums), strict=True)))

    return score
