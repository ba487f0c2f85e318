"""What a stage did: a digest of its inputs, and a manifest that is written last and makes the work real.

Manifests hold no time, host, path, worker count or library version, so that equal inputs give equal bytes anywhere. Work is cut into tasks
that the inputs alone decide; a task leaves a marker, and whoever finds every marker by name commits the manifest.
"""

import contextlib
import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gristmill import storage, telemetry
from gristmill.errors import InputError

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """How this process takes part in a stage; nothing here changes what the stage computes."""

    worker_index: int = 0
    worker_count: int = 1
    take_over: bool = False
    """Claim a run although its owner seems alive."""


class Record(BaseModel):
    """Frozen JSON that a stage leaves behind."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def encode(self) -> bytes:
        """Canonical JSON: sorted keys, one line for a small record, a final newline."""
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()

    @classmethod
    def decode(cls, data: bytes, path: str) -> Self:
        """The record of a file's bytes.

        Raises:
            InputError: the bytes are no such record.
        """
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(
                f"{path} is damaged",
                found=str(error).splitlines()[0],
                expected=f"a {cls.__name__} as this version of gristmill writes it",
                next_step="delete that file and run the stage that wrote it again",
            ) from error


class File(Record):
    """A file of a stage's output, by name below the stage's folder."""

    name: str
    size_bytes: int
    sha256: Sha256
    crc32c: str


class TextCounts(Record):
    """How much text there is."""

    documents: int = 0
    bytes: int = 0
    characters: int = 0

    def __add__(self, other: Self) -> "TextCounts":
        return TextCounts(
            documents=self.documents + other.documents, bytes=self.bytes + other.bytes, characters=self.characters + other.characters
        )


class Manifest(Record):
    """What every stage's manifest says."""

    stage: str
    format: int
    """Raised when the stage's output changes for equal inputs."""
    digest: Sha256
    inputs: dict[str, str]
    """Digests of what the stage read, by name."""


def digest(stage: str, format_number: int, section: object, inputs: dict[str, str]) -> str:
    """The sha256 that names a stage's output: its format, its job section without paths, its inputs."""
    canonical = json.dumps([stage, format_number, section, inputs], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def find[M: Manifest](kind: type[M], folder: str, expected_digest: str) -> M | None:
    """The manifest of a folder if the stage is done for these inputs, else None."""
    path = storage.join(folder, "manifest.json")
    data = storage.read_if_present(path)
    if data is None:
        return None
    found = kind.decode(data, path)
    return found if found.digest == expected_digest else None


def require[M: Manifest](kind: type[M], folder: str, expected_digest: str, *, stage: str) -> M:
    """The manifest of a stage that must be done for these inputs.

    Raises:
        InputError: it has not been done, or for other inputs.
    """
    path = storage.join(folder, "manifest.json")
    found = find(kind, folder, expected_digest)
    if found is None:
        raise InputError(
            f"the {stage} stage has not been done for this job",
            found=f"no {path} with the digest {expected_digest[:12]}",
            expected=f"the manifest that `gristmill {stage}` leaves for this job's {stage} section and its inputs",
            next_step=f"run `gristmill {stage} JOB`, or `gristmill run JOB` for all stages in order",
        )
    return found


def committed(folder: str, manifest: Manifest) -> None:
    """Makes a data stage's work real."""
    storage.commit(storage.join(folder, "manifest.json"), manifest.encode())


@contextlib.contextmanager
def rewritten(folder: str, manifest: Manifest) -> Generator[None]:
    """Makes a run stage's work real: while its files are written over, there is no manifest that would call them done."""
    path = storage.join(folder, "manifest.json")
    storage.delete(path)
    yield
    storage.replace(path, manifest.encode())


def run_tasks[R: Record](
    folder: str, task_count: int, context: Context, result: type[R], do: Callable[[int], R], *, stage: str
) -> list[R] | None:
    """Does this worker's tasks that have no marker yet; all tasks' results once every marker is there, else None."""

    def marker(task: int) -> str:
        return storage.join(folder, "tasks", f"{task:05d}.json")

    mine = range(context.worker_index, task_count, context.worker_count)
    with telemetry.progress(stage, total=len(mine), unit="tasks") as advance:
        for task in mine:
            if storage.read_if_present(marker(task)) is None:
                storage.commit(marker(task), do(task).encode())
            advance(1)

    found: list[R] = []
    for task in range(task_count):
        data = storage.read_if_present(marker(task))
        if data is None:
            telemetry.log().info("other workers have tasks left", stage=stage, first_missing_task=task)
            return None
        found.append(result.decode(data, marker(task)))
    return found


def describe(name: str, local: Path) -> File:
    """The manifest's entry for a local file."""
    sums = storage.checksums(local)
    return File(name=name, size_bytes=sums.size_bytes, sha256=sums.sha256, crc32c=sums.crc32c)


@contextlib.contextmanager
def verified_file(folder: str, file: File, *, stage: str) -> Generator[Path]:
    """A local path of a stage's file, after its bytes were checked.

    Raises:
        InputError: the file is missing, or its bytes are not those of the manifest.
    """
    with tempfile.TemporaryDirectory() as scratch:
        yield fetch(folder, file, Path(scratch) / "file", stage=stage)


def fetch(folder: str, file: File, copy: Path, *, stage: str) -> Path:
    """A stage's file after its bytes were checked: itself where it is local, else a copy.

    Raises:
        InputError: the file is missing, or its bytes are not those of the manifest.
    """
    path = storage.join(folder, file.name)
    try:
        if storage.is_remote(path):
            storage.download(path, copy)
        local = copy if storage.is_remote(path) else Path(path)
        sums = storage.checksums(local)
    except FileNotFoundError as error:
        raise damaged(folder, file, found="no such file", stage=stage) from error
    if sums.sha256 != file.sha256:
        raise damaged(folder, file, found=f"{sums.size_bytes} bytes, sha256 {sums.sha256[:16]}…", stage=stage)
    return local


def damaged(folder: str, file: File, *, found: str, stage: str) -> InputError:
    """The error for a file that is not what its manifest says."""
    return InputError(
        f"{storage.join(folder, file.name)} does not match its manifest",
        found=found,
        expected=f"{file.size_bytes} bytes, sha256 {file.sha256[:16]}…, crc32c {file.crc32c}",
        next_step=f"restore the file, or delete the folder {folder} and run the {stage} stage again",
    )
