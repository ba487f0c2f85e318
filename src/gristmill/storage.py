"""Files of a bucket: a local folder or gs://. Hides how a file appears whole or not at all.

Create-if-absent is link(2) from a temporary file locally and a generation match of 0 on gs://; fsspec has neither, so this module talks to
the file system and to google-cloud-storage itself.
"""

import base64
import contextlib
import errno
import fcntl
import filecmp
import functools
import hashlib
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import google_crc32c

from gristmill.errors import AccessError, InputError, JobError

if TYPE_CHECKING:
    from google.cloud import storage

_CHUNK_BYTES = 1 << 20


class Checksums(NamedTuple):
    """Identity of a file's bytes."""

    size_bytes: int
    sha256: str
    crc32c: str
    """Base64, as gs:// reports it."""


def is_remote(path: str) -> bool:
    """Whether a path lies on gs://."""
    return path.startswith("gs://")


def join(folder: str, *names: str) -> str:
    """A path below a folder."""
    return "/".join((folder.rstrip("/"), *names))


def read(path: str) -> bytes:
    """All bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
        AccessError: it may not be read.
    """
    if not is_remote(path):
        return Path(path).read_bytes()
    with _gs_errors(path):
        return _blob(path).download_as_bytes()


def read_if_present(path: str) -> bytes | None:
    """All bytes of a file, None where there is none."""
    try:
        return read(path)
    except FileNotFoundError:
        return None


def commit(path: str, data: bytes) -> None:
    """Creates a file, whole or not at all; finding equal bytes there is success.

    Raises:
        InputError: the file exists with other bytes.
    """
    with scratch(path) as local:
        local.write_bytes(data)
        commit_file(path, local)


def commit_file(path: str, local: Path) -> None:
    """Creates a file from the bytes of a local one made under `scratch(path)`.

    Raises:
        InputError: the file exists with other bytes.
    """
    if is_remote(path):
        same = _upload_if_absent(path, local)
    else:
        _sync(local)
        try:
            os.link(local, path)
            same = True
        except FileExistsError:
            same = filecmp.cmp(local, path, shallow=False)
    if not same:
        raise InputError(
            f"{path} cannot be written",
            found="a file with other bytes",
            expected="no file, or equal bytes: the same inputs make the same output",
            next_step="if nothing else writes there, delete that file and run the stage again",
        )


def replace(path: str, data: bytes) -> None:
    """Writes a file whole, over one that may be there."""
    with scratch(path) as local:
        local.write_bytes(data)
        replace_file(path, local)


def replace_file(path: str, local: Path) -> None:
    """Moves the bytes of a local file made under `scratch(path)` over a file that may be there."""
    if is_remote(path):
        with _gs_errors(path, whole_bucket=True):
            _blob(path).upload_from_filename(str(local))
    else:
        _sync(local)
        local.replace(path)


def swap(path: str, expected: bytes | None, data: bytes) -> bool:
    """Replaces a small file only if it still holds `expected` (None: only if there is none); whether it did."""
    if is_remote(path):
        return _gs_swap(path, expected, data)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if read_if_present(path) != expected:
            return False
        replace(path, data)
        return True


def delete(path: str) -> None:
    """Removes a file if it is there."""
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError), _gs_errors(path):
            _blob(path).delete()
    else:
        Path(path).unlink(missing_ok=True)


def download(path: str, local: Path) -> None:
    """Copies a file to a local one."""
    with _gs_errors(path):
        _blob(path).download_to_filename(str(local))


@contextlib.contextmanager
def scratch(path: str) -> Generator[Path]:
    """A local path to write before it is committed as `path`, in a new folder of its own that is removed at the end."""
    if is_remote(path):
        beside = None
    else:
        # The same folder is the same file system, so that link(2) and rename(2) can be used.
        beside = Path(path).parent
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=beside) as folder:
        try:
            yield Path(folder) / "file"
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT} and error.filename is None:
                error.filename = path if beside else folder  # write(2) does not know the name
            raise


def names(folder: str) -> list[str]:
    """Names of the files in a folder, sorted; none where there is no folder."""
    if not is_remote(folder):
        at = Path(folder)
        return sorted(entry.name for entry in at.iterdir() if entry.is_file()) if at.is_dir() else []
    with _gs_errors(folder, whole_bucket=True):
        blob = _blob(join(folder, ""))
        return sorted(found.name.removeprefix(blob.name) for found in _client().list_blobs(blob.bucket, prefix=blob.name, delimiter="/"))


def size_and_crc32c(path: str) -> tuple[int, str | None]:
    """Size of a file in bytes and its crc32c, from metadata alone; no crc32c of a local file, whose bytes would have to be read.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not is_remote(path):
        return Path(path).stat().st_size, None
    with _gs_errors(path):
        blob = _blob(path)
        blob.reload()
        assert blob.size is not None
        return blob.size, blob.crc32c


def checksums(local: Path) -> Checksums:
    """Size, sha256 and crc32c of a local file's bytes."""
    sha256, crc32c = hashlib.sha256(), google_crc32c.Checksum()
    size = 0
    with local.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            crc32c.update(chunk)
            size += len(chunk)
    return Checksums(size, sha256.hexdigest(), base64.b64encode(crc32c.digest()).decode())


def _sync(local: Path) -> None:
    """Makes the bytes outlive a crash before the name does."""
    with local.open("rb") as file:
        os.fsync(file.fileno())


@functools.cache
def _client() -> "storage.Client":
    from google.cloud import storage  # noqa: PLC0415  # a second to import, for gs:// only

    return storage.Client()


def _blob(path: str) -> "storage.Blob":
    bucket, _, name = path.removeprefix("gs://").partition("/")
    return _client().bucket(bucket).blob(name)


@contextlib.contextmanager
def _gs_errors(path: str, *, whole_bucket: bool = False) -> Generator[None]:
    """Google's exceptions as those of a local file. What writes or lists misses nothing but a whole bucket."""
    from google.api_core import exceptions as api  # noqa: PLC0415
    from google.auth import exceptions as auth  # noqa: PLC0415

    try:
        yield
    except api.NotFound as error:
        if not whole_bucket:
            raise FileNotFoundError(f"{path}: {error.message}") from error
        raise JobError(
            "the bucket does not exist",
            found=f"no {path[: path.index('/', len('gs://'))]}, for {path}",
            expected="a bucket that was created before",
            next_step="create it (gcloud storage buckets create) or correct the bucket's name in the job file",
        ) from error
    except (api.Forbidden, api.Unauthorized, auth.DefaultCredentialsError, auth.RefreshError) as error:
        raise AccessError(
            f"{path} may not be used",
            found=str(error).splitlines()[0],
            expected="an account with the role storage.objectUser on the bucket",
            next_step="sign in (gcloud auth application-default login) or give the pod's service account that role",
        ) from error


def _upload_if_absent(path: str, local: Path) -> bool:
    """Uploads a file; False if one with other bytes is there."""
    from google.api_core import exceptions as api  # noqa: PLC0415

    with _gs_errors(path):
        blob = _blob(path)
        try:
            with _gs_errors(path, whole_bucket=True):
                blob.upload_from_filename(str(local), if_generation_match=0, checksum="crc32c")
        except api.PreconditionFailed:
            blob.reload()
            found = checksums(local)
            return (blob.size, blob.crc32c) == (found.size_bytes, found.crc32c)
        return True


def _gs_swap(path: str, expected: bytes | None, data: bytes) -> bool:
    from google.api_core import exceptions as api  # noqa: PLC0415

    with _gs_errors(path):
        blob = _blob(path)
        generation = 0
        if expected is not None:
            try:
                blob.reload()
            except api.NotFound:
                return False
            assert blob.generation is not None
            generation = blob.generation
            if blob.download_as_bytes(if_generation_match=generation) != expected:
                return False
        try:
            with _gs_errors(path, whole_bucket=True):
                blob.upload_from_string(data, if_generation_match=generation)
        except api.PreconditionFailed:
            return False
        return True
