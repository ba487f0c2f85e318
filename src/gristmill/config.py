"""The job file: a closed, typed, frozen description of one run. Units stand in the names; nothing derived is stored.

A key is documented once, here, by the `Field` description that also feeds `gristmill schema`.
"""

import math
from fractions import Fraction
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$")]
Count = Annotated[int, Field(ge=1)]


class DisagreementError(ValueError):
    """Keys that do not go together: the values that were found, and what was expected of them."""

    def __init__(self, *, found: str, expected: str) -> None:
        super().__init__(f"{found}; expected: {expected}")
        self.found = found
        self.expected = expected


class Section(BaseModel):
    """A frozen mapping of the job file that rejects unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FilesSource(Section):
    """Text files of the user's own, or of a dataset on the Hugging Face hub."""

    kind: Literal["files"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Globs of .txt, .jsonl, .jsonl.gz, .jsonl.zst and .parquet files: local, gs://, or hf://datasets/ORG/NAME@REVISION/GLOB."""
    text_column: str = "text"
    """The column that holds the text, in .jsonl and .parquet files."""
    document: Literal["auto", "file", "line", "paragraph"] = "auto"
    """What one document is in a .txt file; auto is paragraph (split at blank lines) for a single file, and file for several."""
    allow_unpinned: bool = False
    """Accept an hf:// path without a revision; the files' hashes that were found are recorded all the same."""


class SampleSource(Section):
    """The documentation that the running Python carries: English text that needs no download."""

    kind: Literal["sample"]


Source = Annotated[FilesSource | SampleSource, Field(discriminator="kind")]


class Corpus(Section):
    """Which text is read, and how much of it is held out."""

    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Share of the documents, chosen by the hash of their text, that is never trained on."""


class Tokenizer(Section):
    """A byte-level BPE tokenizer, trained on the corpus."""

    kind: Literal["bpe"] = "bpe"
    pattern: Literal["nanochat", "gpt2", "llama3", "custom"] = "nanochat"
    """How text is split before merging."""
    regex: str | None = None
    """The splitting pattern, with pattern: custom only. It must match every character."""
    vocab_size: Annotated[int, Field(ge=256 + 11, le=2**24)]
    """Counts everything: 256 bytes, the learned merges and 11 special tokens."""
    sample_bytes: Count = 2_000_000_000
    """The tokenizer is trained on about this much of the corpus, an even sample by the hash of the text."""

    @model_validator(mode="after")
    def _regex_goes_with_custom(self) -> Self:
        if (self.pattern == "custom") != (self.regex is not None):
            raise DisagreementError(
                found=f"pattern {self.pattern}, {'no regex' if self.regex is None else 'a regex'}",
                expected="regex is given with pattern: custom, and only then",
            )
        return self


class Shards(Section):
    """Encoded and packed rows."""

    sequence_length: Annotated[int, Field(ge=2, le=65_534)]
    """Tokens a model sees at once; a row holds one more, as inputs and targets are shifted by one."""


class Model(Section):
    """A Llama-like decoder."""

    preset: Literal["llama"] = "llama"
    layers: Count
    width: Count
    heads: Count
    kv_heads: Count
    mlp_width: Count
    head_dim: Count | None = None
    """Width of one head; width / heads unless given."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    tied_head: bool = False
    """Use the embedding as output head."""
    qk_norm: bool = False
    """Normalise queries and keys per head."""
    initializer_std: Annotated[float, Field(gt=0)] = 0.02

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.heads % self.kv_heads:
            raise DisagreementError(found=f"kv_heads {self.kv_heads}, heads {self.heads}", expected="kv_heads divides heads")
        if self.head_dim is None and self.width % self.heads:
            raise DisagreementError(
                found=f"heads {self.heads}, width {self.width}", expected="heads divides width unless head_dim is given"
            )
        if self.head_width % 2:
            raise DisagreementError(found=f"a head of width {self.head_width}", expected="an even width, for rotary positions")
        return self


class Train(Section):
    """Optimizer, schedule and data order."""

    token_budget: Count
    """Tokens to train on; steps = token_budget / global_batch_tokens, rounded up."""
    global_batch_tokens: Count
    learning_rate: Annotated[float, Field(gt=0)]
    """The peak, after warmup."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine falls from the peak to the end; wsd (warmup, stable, decay) stays at the peak and falls over the last part."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The last part of the steps over which wsd decays."""
    final_learning_rate_fraction: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Learning rate at the last step, as a fraction of the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Applied to matrices only, never to norms."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Weights and moments are always float32; this is what matrices are multiplied in."""
    mixture: Annotated[dict[Name, Annotated[float, Field(ge=0)]], Field(min_length=1)]
    """Weight of each source in the tokens trained on; only their ratios matter."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    accumulation_steps: Count = 1
    """Microbatches a step is cut into, to need less memory."""
    evaluate_every_steps: Count = 250
    save_every_steps: Count = 250
    keep_checkpoints: Count = 2
    """The newest checkpoints that are kept, beside the one with the lowest held-out loss."""
    log_every_steps: Count = 10

    def weights(self) -> dict[str, Fraction]:
        """Exact share of each source, in name order; they sum to one."""
        weights = {name: Fraction(str(weight)) for name, weight in sorted(self.mixture.items())}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


class Evaluate(Section):
    """Scores on the held-out documents."""

    max_tokens: Count = 1_000_000
    """At most about this many held-out tokens a source, always the same ones."""


class Sample(Section):
    """Text generated after training."""

    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = ("",)
    max_new_tokens: Count = 128
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """0 takes the most likely token every time."""
    top_k: Count = 50
    """Only the k most likely tokens can be drawn; the vocabulary's size lets all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the most likely tokens that together reach this probability can be drawn."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class Mesh(Section):
    """How devices are split; the data axis takes what fsdp and tensor leave."""

    fsdp: Count = 1
    """Devices over which weights, moments and batch are split."""
    tensor: Count = 1
    """Devices over which heads, MLP and vocabulary are split."""


class TrainCluster(Section):
    """Machines that training runs on."""

    accelerator: Literal["none"] = "none"
    hosts: Count = 1
    mesh: Mesh = Mesh()


class Cluster(Section):
    """Where stages run. Nothing here changes what they compute."""

    train: TrainCluster = TrainCluster()


class Job(Section):
    """One run: everything that decides what it computes, and where it is kept."""

    run: Name
    """Name of the run; its checkpoints lie under runs/<run> in the bucket."""
    bucket: Annotated[str, Field(min_length=1)]
    """A local folder, or gs://BUCKET[/PREFIX]."""
    corpus: Corpus
    tokenizer: Tokenizer
    shards: Shards
    model: Model
    train: Train
    evaluate: Evaluate = Evaluate()
    sample: Sample = Sample()
    cluster: Cluster = Cluster()

    @property
    def sequences_per_step(self) -> int:
        """Rows of a global batch."""
        return self.train.global_batch_tokens // self.shards.sequence_length

    @property
    def steps(self) -> int:
        """Optimizer updates of the whole run."""
        return math.ceil(self.train.token_budget / self.train.global_batch_tokens)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        train = self.train
        if train.global_batch_tokens % self.shards.sequence_length:
            raise DisagreementError(
                found=f"train.global_batch_tokens {train.global_batch_tokens}, shards.sequence_length {self.shards.sequence_length}",
                expected="train.global_batch_tokens is a multiple of shards.sequence_length",
            )
        if self.sequences_per_step % train.accumulation_steps:
            raise DisagreementError(
                found=f"train.accumulation_steps {train.accumulation_steps}, {self.sequences_per_step} sequences a step",
                expected="train.accumulation_steps divides the sequences of a step",
            )
        if set(train.mixture) != set(self.corpus.sources):
            raise DisagreementError(
                found=f"train.mixture names {', '.join(sorted(train.mixture))}",
                expected=f"the names of corpus.sources: {', '.join(sorted(self.corpus.sources))}",
            )
        if sum(train.mixture.values()) == 0:
            raise DisagreementError(found="train.mixture gives every source the weight 0", expected="a weight above 0")
        if train.warmup_steps >= self.steps:
            raise DisagreementError(
                found=f"train.warmup_steps {train.warmup_steps}, {self.steps} steps in the run",
                expected="train.warmup_steps is below the steps of the run",
            )
        return self
