"""A finished run: its manifest, and its parameters for whoever reads them."""

from gristmill import storage
from gristmill.config import Job
from gristmill.data.shards import ShardsManifest
from gristmill.manifest import Manifest, digest, require
from gristmill.model.transformer import Params
from gristmill.training import resume
from gristmill.training.checkpoint import read_parameters
from gristmill.training.step import Program

FORMAT = 1


class TrainManifest(Manifest):
    """What the train stage left."""

    step: int
    """The checkpoint of the last step."""
    parameters: int


def folder(job: Job) -> str:
    """Where a run lies."""
    return storage.join(job.bucket, "runs", job.run)


def identity_digest(job: Job, manifest: ShardsManifest) -> str:
    """Digest of the run that a job makes of its shards."""
    section = resume.of(job, manifest.digest).model_dump(mode="json")
    return digest("train", FORMAT, section, {"shards": manifest.digest})


def current(job: Job, manifest: ShardsManifest) -> TrainManifest:
    """The finished run of a job.

    Raises:
        InputError: training has not been finished for this job.
    """
    return require(TrainManifest, folder(job), identity_digest(job, manifest), stage="train")


def parameters(job: Job, finished: TrainManifest, program: Program) -> Params:
    """The parameters of a finished run, where the program wants them.

    Raises:
        InputError: the checkpoint is gone.
    """
    return read_parameters(folder(job), finished.step, program.abstract_state.params)
