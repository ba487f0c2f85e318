"""Text that a trained model writes after the job's prompts.

Reads the last checkpoint and the tokenizer; writes runs/<run>/samples/ with samples.jsonl and the manifest.
"""

import json
from collections.abc import Sequence

import jax

from gristmill import storage, telemetry
from gristmill.config import Job, Mesh
from gristmill.data import shards
from gristmill.inference import generate
from gristmill.inference.generate import Sampling
from gristmill.manifest import Context, Manifest, Record, digest, find, rewritten
from gristmill.text import tokenizers
from gristmill.training import runs, sharding, step

FORMAT = 1


class SampleManifest(Manifest):
    """What the sample stage left."""

    step: int


class Sampled(Record):
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str


def run(job: Job, _: Context) -> SampleManifest:
    """Continues the prompts of a job.

    Raises:
        InputError: the model or the tokenizer is missing or damaged.
    """
    manifest, _tokenizer = shards.current(job)
    finished = runs.current(job, manifest)
    folder = storage.join(runs.folder(job), "samples")
    inputs = {"train": finished.digest}
    name = digest("sample", FORMAT, job.sample.model_dump(mode="json"), inputs)
    done = find(SampleManifest, folder, name)
    if done is not None:
        telemetry.log().info("samples are done already", run=job.run, step=done.step)
        return done
    lines = [json.dumps(sampled.model_dump(), ensure_ascii=False) for sampled in continue_prompts(job, job.sample.prompts)]
    result = SampleManifest(stage="sample", format=FORMAT, digest=name, inputs=inputs, step=finished.step)
    with rewritten(folder, result):
        storage.replace(storage.join(folder, "samples.jsonl"), "".join(f"{line}\n" for line in lines).encode())
    return result


def read(job: Job) -> list[Sampled]:
    """What the stage left."""
    path = storage.join(runs.folder(job), "samples", "samples.jsonl")
    return [Sampled.decode(line, path) for line in storage.read(path).splitlines()]


def continue_prompts(job: Job, prompts: Sequence[str]) -> list[Sampled]:
    """Continues prompts with the trained model of a job, as its sample section says.

    Raises:
        InputError: the model or the tokenizer is missing or damaged.
    """
    manifest, tokenizer = shards.current(job)
    mesh = sharding.make_mesh(Mesh(), jax.local_devices()[:1])
    program = step.build(job.model, job.train, mesh, vocab_size=tokenizer.vocab_size, steps=job.steps)
    params = runs.parameters(job, runs.current(job, manifest), program)
    encoder = tokenizers.encoder(job.bucket, tokenizer)
    ids = [[tokenizer.bos, *encoder.encode(prompt).tolist()] for prompt in prompts]
    wanted = job.sample
    sampling = Sampling(wanted.max_new_tokens, wanted.temperature, wanted.top_k, wanted.top_p, wanted.seed)
    written = generate.generate(params, program.spec, ids, sampling, eos_id=tokenizer.eos)
    return [Sampled(prompt=prompt, text=encoder.decode(new)) for prompt, new in zip(prompts, written, strict=True)]
