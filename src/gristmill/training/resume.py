"""What makes a run the same run. Every key of a job stands in exactly one class of the table below.

Identity decides what is computed: a run that has begun goes on only with the same values. Data reaches training through the digest of the
shards. Free changes how, where or how often, never what. The token budget may grow while a WSD schedule has not begun to decay.
"""

from collections.abc import Iterator
from typing import Literal

from gristmill import storage
from gristmill.config import Job
from gristmill.errors import JobError
from gristmill.manifest import Record
from gristmill.training.optimizer import first_decay_step

type KeyClass = Literal["identity", "data", "free", "budget"]

KEY_CLASSES: dict[str, KeyClass] = {
    "run": "free",
    "bucket": "free",
    "corpus": "data",
    "tokenizer": "data",
    "shards": "data",
    "model": "identity",
    "train.token_budget": "budget",
    "train.global_batch_tokens": "identity",
    "train.learning_rate": "identity",
    "train.warmup_steps": "identity",
    "train.schedule": "identity",
    "train.decay_fraction": "identity",
    "train.final_learning_rate_fraction": "identity",
    "train.weight_decay": "identity",
    "train.beta1": "identity",
    "train.beta2": "identity",
    "train.epsilon": "identity",
    "train.clip_norm": "identity",
    "train.compute_dtype": "identity",
    "train.mixture": "identity",
    "train.seed": "identity",
    "train.accumulation_steps": "free",
    "train.evaluate_every_steps": "free",
    "train.save_every_steps": "free",
    "train.keep_checkpoints": "free",
    "train.log_every_steps": "free",
    "evaluate": "free",
    "sample": "free",
    "cluster": "free",
}
"""Class of each key, or of each section whose keys are all of one class."""


class Identity(Record):
    """What a run is, as it was when it began or was last extended."""

    shards: str
    token_budget: int
    values: dict[str, object]
    """Identity keys, dotted."""


def of(job: Job, shards_digest: str) -> Identity:
    """The identity of a job over its shards."""
    values = {key: value for key, value in keys(job.model_dump(mode="json")) if class_of(key) == "identity"}
    return Identity(shards=shards_digest, token_budget=job.train.token_budget, values=values)


def keys(section: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The dotted keys of a job, down to plain values."""
    for key, value in section.items():
        if isinstance(value, dict):
            inner: dict[str, object] = value
            yield from keys(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def class_of(key: str) -> KeyClass:
    """The one class of a dotted key."""
    (found,) = {name for name in KEY_CLASSES if key == name or key.startswith(f"{name}.")}
    return KEY_CLASSES[found]


def check(run_folder: str, job: Job, identity: Identity, step: int | None) -> None:
    """Compares a job with the run that has begun under its name, and records it where it is new.

    Raises:
        JobError: the job would make it another run; the message lists the keys.
    """
    path = storage.join(run_folder, "identity.json")
    data = storage.read_if_present(path)
    if data is not None and step is not None:
        before = Identity.decode(data, path)
        changed = [
            f"{key}: {before.values.get(key)!r} is now {identity.values.get(key)!r}"
            for key in sorted(before.values | identity.values)
            if before.values.get(key) != identity.values.get(key)
        ]
        if before.shards != identity.shards:
            changed.append(f"shards: {before.shards[:12]} is now {identity.shards[:12]}")
        if before.token_budget != identity.token_budget and not _may_extend(job, before, step):
            changed.append(f"train.token_budget: {before.token_budget} is now {identity.token_budget}")
        if changed:
            raise JobError(
                f"the job is not the run {job.run} that has begun",
                found="; ".join(changed),
                expected=f"the values that step {step} was trained with (a larger token_budget only under wsd, before it decays)",
                next_step="put these values back, or give the job another `run` name",
            )
    if data != identity.encode():
        storage.replace(path, identity.encode())


def _may_extend(job: Job, before: Identity, step: int) -> bool:
    old_steps = -(-before.token_budget // job.train.global_batch_tokens)
    return (
        job.train.schedule == "wsd" and job.train.token_budget > before.token_budget and step <= first_decay_step(job.train, old_steps) + 1
    )
