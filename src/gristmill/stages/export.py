"""A trained model as a folder that other programs read.

Reads the last checkpoint and the tokenizer; writes runs/<run>/export/ with safetensors, configuration, tokenizer files, a model card and,
last, the manifest.
"""

import jax

from gristmill import storage, telemetry
from gristmill.config import Job, Mesh
from gristmill.data import shards
from gristmill.interop import huggingface
from gristmill.interop.huggingface import SpecialIds
from gristmill.manifest import Context, File, Manifest, describe, digest, find, rewritten
from gristmill.text import tokenizers
from gristmill.training import runs, sharding, step
from gristmill.training.runs import TrainManifest

FORMAT = 1


class ExportManifest(Manifest):
    """What the export stage left."""

    step: int
    files: tuple[File, ...]


def folder(job: Job) -> str:
    """Where a run's export lies."""
    return storage.join(runs.folder(job), "export")


def run(job: Job, _: Context) -> ExportManifest:
    """Exports the trained model of a job.

    Raises:
        InputError: the model or the tokenizer is missing or damaged.
    """
    manifest, tokenizer = shards.current(job)
    finished = runs.current(job, manifest)
    inputs = {"train": finished.digest}
    name = digest("export", FORMAT, {}, inputs)
    done = find(ExportManifest, folder(job), name)
    if done is not None:
        telemetry.log().info("export is done already", run=job.run, step=done.step)
        return done
    mesh = sharding.make_mesh(Mesh(), jax.local_devices()[:1])
    program = step.build(job.model, job.train, mesh, vocab_size=tokenizer.vocab_size, steps=job.steps)
    params = jax.device_get(runs.parameters(job, finished, program))
    with storage.scratch(storage.join(folder(job), "export")) as scratch:
        made = scratch.parent
        ids = SpecialIds(bos=tokenizer.bos, eos=tokenizer.eos, pad=tokenizer.pad)
        huggingface.export_llama(params, job.model, made, sequence_length=job.shards.sequence_length, special_ids=ids)
        for file_name in ("tokenizer.json", "tokenizer_config.json"):
            (made / file_name).write_bytes(tokenizers.read_file(job.bucket, tokenizer, file_name))
        (made / "README.md").write_text(_card(job, finished), encoding="utf-8")
        paths = sorted(made.iterdir())
        files = tuple(describe(path.name, path) for path in paths)
        result = ExportManifest(stage="export", format=FORMAT, digest=name, inputs=inputs, step=finished.step, files=files)
        with rewritten(folder(job), result):
            for path in paths:
                storage.replace_file(storage.join(folder(job), path.name), path)
    return result


def _card(job: Job, finished: TrainManifest) -> str:
    sources = ", ".join(job.corpus.sources)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {job.run}

A language model of {finished.parameters:,} parameters, trained by gristmill for {finished.step:,} steps of
{job.train.global_batch_tokens:,} tokens on {sources}. It continues text; it was not trained to follow instructions.

Load it with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` on this folder. A text begins with `{tokenizers.BOS}`
and ends with `{tokenizers.EOS}`; the model saw {job.shards.sequence_length:,} tokens at once. Digest of the run: `{finished.digest}`.
"""
