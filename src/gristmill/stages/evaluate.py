"""A trained model's scores on held-out documents, a source at a time.

Reads the last checkpoint and held-out shards; writes runs/<run>/evaluate/ with scores.json and the manifest.
"""

import json

import jax

from gristmill import storage, telemetry
from gristmill.config import Job
from gristmill.data import shards
from gristmill.manifest import Context, Manifest, digest, find, rewritten
from gristmill.training import held_out, runs, sharding, step
from gristmill.training.held_out import Score

FORMAT = 1


class EvaluateManifest(Manifest):
    """What the evaluate stage left."""

    step: int


def run(job: Job, _: Context) -> EvaluateManifest:
    """Scores the trained model of a job.

    Raises:
        InputError: the model or the shards are missing or damaged.
        MachineError: the mesh does not fit.
    """
    manifest, tokenizer = shards.current(job)
    finished = runs.current(job, manifest)
    folder = storage.join(runs.folder(job), "evaluate")
    inputs = {"train": finished.digest}
    name = digest("evaluate", FORMAT, job.evaluate.model_dump(mode="json"), inputs)
    done = find(EvaluateManifest, folder, name)
    if done is not None:
        telemetry.log().info("evaluation is done already", run=job.run, step=done.step)
        return done
    mesh = sharding.make_mesh(job.cluster.train.mesh, jax.devices())
    program = step.build(job.model, job.train, mesh, vocab_size=tokenizer.vocab_size, steps=job.steps)
    scores = held_out.scorer(job, manifest, tokenizer, program)(runs.parameters(job, finished, program))
    rows = {source: _row(score) for source, score in [*scores.items(), ("all", held_out.total(scores))]}
    for source, row in rows.items():
        telemetry.log().info("held out", source=source, **{key: round(value, 4) for key, value in row.items()})
    result = EvaluateManifest(stage="evaluate", format=FORMAT, digest=name, inputs=inputs, step=finished.step)
    with rewritten(folder, result):
        storage.replace(storage.join(folder, "scores.json"), f"{json.dumps(rows, indent=1)}\n".encode())
    return result


def read(job: Job) -> dict[str, dict[str, float]]:
    """What the stage left: scores by source, and `all`."""
    return json.loads(storage.read(storage.join(runs.folder(job), "evaluate", "scores.json")))


def _row(score: Score) -> dict[str, float]:
    return {
        "loss": score.loss,
        "perplexity": score.perplexity,
        "bits_per_byte": score.bits_per_byte,
        "targets": score.targets,
        "bytes": score.bytes,
    }
