"""Shards to a trained model: the loop, without maths.

Reads shards and the tokenizer's byte counts; writes runs/<run>/ with owner.json, identity.json, checkpoints, metrics, ledger, log and, last,
manifest.json. Hides in which order updates, scores, checkpoints and signals follow one another.
"""

import json
import platform
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

import jax

from gristmill import segments, storage, telemetry
from gristmill.config import Job
from gristmill.data import loader, shards
from gristmill.data.loader import Slice
from gristmill.data.mixture import Mixture, step_digest
from gristmill.data.packing import Batch
from gristmill.data.shards import ShardsManifest
from gristmill.errors import DivergedError, PreemptedError
from gristmill.manifest import Context, find
from gristmill.model import arithmetic
from gristmill.model.transformer import Params
from gristmill.text.tokenizers import TokenizerManifest
from gristmill.training import held_out, optimizer, resume, runs, sharding, step
from gristmill.training.checkpoint import Checkpoints, open_checkpoints
from gristmill.training.held_out import Score
from gristmill.training.owner import Owner, claimed
from gristmill.training.preemption import Stop, graceful
from gristmill.training.report import Report
from gristmill.training.runs import TrainManifest
from gristmill.training.step import Program, TrainState


@dataclass(frozen=True)
class _Run:
    """What the loop works with."""

    job: Job
    program: Program
    mixture: Mixture
    shards_digest: str
    batches: Iterator[Batch]
    score: Callable[[Params], dict[str, Score]]
    checkpoints: Checkpoints
    owner: Owner
    stop: Stop
    report: Report
    ledger: segments.Segments


@dataclass(frozen=True)
class _Attempt:
    """What is known before the run is claimed."""

    job: Job
    context: Context
    manifest: ShardsManifest
    tokenizer: TokenizerManifest
    program: Program
    mixture: Mixture


def run(job: Job, context: Context) -> TrainManifest:
    """Trains the model of a job, from its newest checkpoint on.

    Raises:
        InputError: shards are missing or damaged.
        JobError: the run has begun with other values, or is being trained.
        MachineError: the mesh does not fit.
        DivergedError: the loss is not finite.
        PreemptedError: told to stop, and saved.
    """
    manifest, tokenizer = shards.current(job)
    name = runs.identity_digest(job, manifest)
    done = find(TrainManifest, runs.folder(job), name)
    if done is not None:
        telemetry.log().info("training is done already", run=job.run, step=done.step)
        return done
    mesh = sharding.make_mesh(job.cluster.train.mesh, jax.devices())
    sharding.check_batch_fits(mesh, job.sequences_per_step, job.train.accumulation_steps)
    program = step.build(job.model, job.train, mesh, vocab_size=tokenizer.vocab_size, steps=job.steps)
    mixture = loader.mixture(job, manifest)
    shards.check_metadata(job.bucket, manifest)
    parameters = _warn_of_learning_rate(job, tokenizer)
    result = TrainManifest(
        stage="train", format=runs.FORMAT, digest=name, inputs={"shards": manifest.digest}, step=job.steps, parameters=parameters
    )
    stopped = _attempt(_Attempt(job, context, manifest, tokenizer, program, mixture), result)
    if stopped:
        raise PreemptedError(
            "told to stop",
            found=f"a signal at the last step, {job.steps}",
            expected="training is done",
            next_step="run the same command again to go on with the next stage",
        )
    return result


def _attempt(attempt: _Attempt, result: TrainManifest) -> bool:
    """Claims the run, trains it to its end and commits its manifest; whether a signal came too late to stop it."""
    job, manifest, program = attempt.job, attempt.manifest, attempt.program
    folder = runs.folder(job)
    with (
        claimed(folder, take_over=attempt.context.take_over) as owner,
        open_checkpoints(folder, job.train.keep_checkpoints) as checkpoints,
        graceful() as stop,
    ):
        start = checkpoints.latest_step()
        resume.check(folder, job, resume.of(job, manifest.digest), start)
        _log_attempt(job, folder, owner.attempt, start)
        score = held_out.scorer(job, manifest, attempt.tokenizer, program)
        batches = loader.training(job, manifest, Slice(jax.process_index(), jax.process_count()), start or 0)
        metrics, ledger = (segments.Segments(storage.join(folder, name), owner.attempt) for name in ("metrics", "ledger"))
        report = Report(job, metrics, arithmetic.flops_per_token(job.model, manifest.vocab_size, manifest.sequence_length))
        loop = _Run(job, program, attempt.mixture, manifest.digest, batches, score, checkpoints, owner, stop, report, ledger)
        state = program.init(job.train.seed) if start is None else checkpoints.restore(start, program.abstract_state)
        try:
            _train(loop, state, start)
        except DivergedError:
            # No attempt follows that would report these steps again.
            owner.check()
            metrics.close()
            ledger.close()
            raise
        checkpoints.wait()
        owner.check()
        storage.replace(storage.join(folder, "manifest.json"), result.encode())
    return stop.requested


def _train(loop: _Run, state: TrainState, start: int | None) -> None:
    """Updates until the last step or until told to stop. A state whose loss nobody looked at is never saved."""
    job, train = loop.job, loop.job.train
    if start is None:
        loop.report.held_out(0, held_out.total(loop.score(state.params)))
    with telemetry.progress("train", total=job.steps, unit="steps", done=start or 0) as advance:
        for done in range((start or 0) + 1, job.steps + 1):
            batch = sharding.put_batch(next(loop.batches), loop.program.mesh, train.accumulation_steps)
            state, metrics = loop.program.train_step(state, batch)
            loop.report.dispatched(done, metrics)
            loop.ledger.append(done, digest=step_digest(loop.mixture, train.seed, done - 1, job.sequences_per_step, loop.shards_digest))
            advance(1)
            last = done == job.steps
            loss = None
            if last or done % train.evaluate_every_steps == 0:
                loop.report.drain()
                score = held_out.total(loop.score(state.params))
                loop.report.held_out(done, score)
                loss = score.loss
            stopping = loop.stop.requested  # read once: a signal may come at any moment
            if last or stopping or done % train.save_every_steps == 0:
                _save(loop, done, state, loss)
            if stopping and not last:
                raise PreemptedError(
                    "training was told to stop",
                    found=f"a signal at step {done} of {job.steps}",
                    expected=f"step {done} saved",
                    next_step="run the same command again to go on from there",
                )


def _save(loop: _Run, done: int, state: TrainState, loss: float | None) -> None:
    if loop.stop.by is not None:
        telemetry.log().warning("told to stop: saving; once more ends at once", signal=loop.stop.by.name, step=done)
    loop.report.drain()
    loop.owner.check()
    # Before the checkpoint: once it is committed, no attempt does these steps again.
    loop.report.metrics.close()
    loop.ledger.close()
    loop.checkpoints.save(done, state, loss)
    if loop.stop.requested:
        loop.checkpoints.wait()
    telemetry.CHECKPOINT_STEP.set(done)


def _warn_of_learning_rate(job: Job, tokenizer: TokenizerManifest) -> int:
    """Parameters of the model, after a loud word where the learning rate does not suit them."""
    parameters = arithmetic.parameter_count(job.model, tokenizer.vocab_size)
    warning = optimizer.learning_rate_warning(job.train.learning_rate, parameters, job.train.token_budget)
    if warning is not None:
        telemetry.log().warning(f"LEARNING RATE: {warning}")
    return parameters


def _log_attempt(job: Job, folder: str, attempt: int, start: int | None) -> None:
    """Keeps what manifests may not hold: where, with what, and from which step an attempt ran."""
    facts = {
        "attempt": attempt,
        "start_step": start or 0,
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "versions": {name: version(name) for name in ("gristmill", "jax", "flax", "optax", "orbax-checkpoint", "grain")},
        "job": job.model_dump(mode="json"),
    }
    storage.commit(storage.join(folder, "log", f"{attempt:04d}.json"), f"{json.dumps(facts, indent=1)}\n".encode())
    telemetry.log().info("training", run=job.run, attempt=attempt, from_step=start or 0, steps=job.steps)
