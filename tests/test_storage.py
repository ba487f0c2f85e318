"""Files of a bucket appear whole or not at all, on the local disk and on gs://."""

import base64
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import get_context
from pathlib import Path

import google_crc32c
import pytest

import tiny
from bucket import DATA_STAGES, assert_fails, gristmill, process, sets, tree
from gristmill import storage
from gristmill.errors import AccessError, InputError, JobError

pytest_plugins = ["bucket"]

WRITERS = 16


@pytest.fixture(params=["local", "gs"])
def at(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder of a bucket of either kind."""
    return str(tmp_path / "out" / "folder") if request.param == "local" else f"{request.getfixturevalue('gs')}/folder"


def test_a_file_is_created_once_and_equal_bytes_are_success(at: str) -> None:
    path = f"{at}/deep/file"
    assert storage.read_if_present(path) is None
    storage.commit(path, b"one")
    storage.commit(path, b"one")
    for other in (b"two", b"oneone", b""):
        with pytest.raises(InputError, match="other bytes") as caught:
            storage.commit(path, other)
        assert path in caught.value.what
    assert storage.read(path) == storage.read_if_present(path) == b"one"


def test_a_missing_file_is_not_found(at: str) -> None:
    for ask in (storage.read, storage.size_and_crc32c):
        with pytest.raises(FileNotFoundError):
            ask(f"{at}/missing")
    storage.delete(f"{at}/missing")
    assert storage.names(at) == []


def test_names_are_the_files_of_one_folder_in_order(at: str) -> None:
    for name in ("b", "a.json", "deep/c", "deep/er/d"):
        storage.commit(storage.join(at, name), b"")
    assert storage.names(at) == storage.names(f"{at}/") == ["a.json", "b"]
    assert storage.names(f"{at}/deep") == ["c"]


def test_size_and_checksum_come_from_metadata(at: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    storage.commit(f"{at}/file", data)
    local = tmp_path / "copy"
    local.write_bytes(data)
    sums = storage.checksums(local)
    assert (sums.size_bytes, sums.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert storage.size_and_crc32c(f"{at}/file") == (len(data), sums.crc32c if at.startswith("gs://") else None)
    assert int.from_bytes(base64.b64decode(sums.crc32c)) == google_crc32c.value(data)


def test_replace_writes_over_and_delete_removes(at: str) -> None:
    for data in (b"one", b"two"):
        storage.replace(f"{at}/file", data)
        assert storage.read(f"{at}/file") == data
    storage.delete(f"{at}/file")
    assert storage.names(at) == []


def test_swap_changes_a_file_only_from_what_was_expected(at: str) -> None:
    path = f"{at}/file"
    assert not storage.swap(path, b"", b"one")
    assert storage.swap(path, None, b"one")
    assert not storage.swap(path, None, b"two")
    assert not storage.swap(path, b"other", b"two")
    assert storage.read(path) == b"one"
    assert storage.swap(path, b"one", b"two")
    assert storage.read(path) == b"two"


def race(do: Callable[[int], bool]) -> int:
    """How many of many writers that start at the same moment win."""
    barrier = threading.Barrier(WRITERS)

    def one(index: int) -> bool:
        barrier.wait()
        return do(index)

    with ThreadPoolExecutor(WRITERS) as pool:
        return sum(pool.map(one, range(WRITERS)))


def committed(path: str, data: bytes) -> bool:
    """Whether a commit was the one that counts."""
    try:
        storage.commit(path, data)
    except InputError:
        return False
    return True


def test_of_racing_commits_one_wins(at: str) -> None:
    path = f"{at}/file"
    assert race(lambda index: committed(path, bytes([index]) * 100_000)) == 1
    found = storage.read(path)
    assert len(found) == 100_000
    assert len(set(found)) == 1
    assert storage.names(at) == ["file"]


def test_of_racing_swaps_one_wins_each_round(at: str) -> None:
    path = f"{at}/file"
    before: bytes | None = None
    for turn in range(3):
        assert race(lambda index, before=before, turn=turn: storage.swap(path, before, f"{turn} {index}".encode())) == 1
        before = storage.read(path)
        assert before.startswith(f"{turn} ".encode())


def count_up(path: str, times: int) -> None:
    """Adds one to a number in a file so many times, by compare-and-swap."""
    done = 0
    while done < times:
        found = storage.read(path)
        done += storage.swap(path, found, str(int(found) + 1).encode())


def test_processes_that_swap_lose_no_update(tmp_path: Path) -> None:
    path = str(tmp_path / "number")
    storage.commit(path, b"0")
    context = get_context("spawn")
    workers = [context.Process(target=count_up, args=(path, 50)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert storage.read(path) == b"200"


def use_scratch(path: str, *, fail: bool) -> Path:
    """Writes and commits through a scratch file, or fails before."""
    with storage.scratch(path) as local:
        local.write_bytes(b"half")
        local.with_name("beside").write_bytes(b"more")
        if fail:
            raise RuntimeError("stopped")
        storage.commit_file(path, local)
    return local


def test_scratch_leaves_nothing_but_what_was_committed(at: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stopped"):
        use_scratch(f"{at}/file", fail=True)
    assert storage.names(at) == []
    local = use_scratch(f"{at}/file", fail=False)
    assert not local.parent.exists()
    assert storage.read(f"{at}/file") == b"half"
    assert [path for path in tree(tmp_path) if "scratch" in path or "beside" in path] == []


class _Forbids(BaseHTTPRequestHandler):
    """Answers as gs:// does to an account without a role."""

    def do_GET(self) -> None:
        """Says 403, whatever is asked."""
        body = b'{"error": {"code": 403, "message": "someone@example.org does not have storage.objects.get access"}}'
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(403)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Says nothing."""


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket on gs:// that this account may not use."""
    clear: Callable[[], None] = storage._client.cache_clear  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    with HTTPServer(("127.0.0.1", 0), _Forbids) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "tests")
        clear()
        yield "gs://private"
        clear()
        server.shutdown()


USES: dict[str, Callable[[str], object]] = {
    "read": storage.read_if_present,
    "commit": lambda path: storage.commit(path, b""),
    "replace": lambda path: storage.replace(path, b""),
    "swap": lambda path: storage.swap(path, None, b""),
    "size and crc32c": storage.size_and_crc32c,
    "names": lambda path: storage.names(path.rpartition("/")[0]),
    "delete": storage.delete,
}


@pytest.mark.parametrize("use", USES)
def test_a_bucket_that_may_not_be_used_is_an_access_error(forbidden: str, use: str) -> None:
    with pytest.raises(AccessError) as caught:
        USES[use](f"{forbidden}/folder/file")
    assert caught.value.exit_code == 77
    assert "gs://private/folder" in caught.value.what
    assert "403" in caught.value.found
    assert "account" in caught.value.expected
    assert "gcloud auth" in caught.value.next_step


@pytest.mark.parametrize(
    "change",
    [
        {"bucket": "gs://private"},
        {"corpus__sources__b__paths": ["gs://private/b.txt"]},
        {"corpus__sources__b__paths": ["gs://private/*.txt"]},
    ],
    ids=["bucket", "source", "glob"],
)
def test_a_stage_on_a_bucket_that_may_not_be_used_ends_with_77(forbidden: str, tmp_path: Path, change: dict[str, object]) -> None:
    ended = gristmill("corpus", tiny.write_job(tmp_path), *sets(**change))
    assert_fails(ended, "AccessError", found="403" if "bucket" in change else forbidden, expected="account", next="gcloud auth")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("use", ["commit", "replace", "swap", "names"])
def test_a_bucket_that_does_not_exist_is_a_job_error(emulator: str, use: str) -> None:
    assert emulator
    with pytest.raises(JobError, match="gs://never-made") as caught:
        USES[use]("gs://never-made/folder/file")
    assert "create" in caught.value.next_step


def test_a_stage_on_a_bucket_that_does_not_exist_ends_with_2(emulator: str, tmp_path: Path) -> None:
    assert emulator
    ended = gristmill("corpus", tiny.write_job(tmp_path), *sets(bucket="gs://never-made/x"))
    assert_fails(ended, "JobError", what="bucket does not exist", found="no gs://never-made,", expected="created before", next="create it")


def test_the_data_stages_leave_the_same_bytes_on_gs_and_on_disk(gs: str, tmp_path: Path) -> None:
    job = tiny.write_job(tmp_path)
    for place in (tmp_path / "out", f"{gs}/some/prefix"):
        for stage in DATA_STAGES:
            ended = gristmill(stage, job, *sets(bucket=str(place)))
            assert ended.code == 0, ended.log
    local = {name: data for name, data in tree(tmp_path / "out").items() if data is not None}
    assert len(local) > 20
    assert {name: storage.read(f"{gs}/some/prefix/{name}") for name in local} == local
    assert not [name for name in storage.names(f"{gs}/some/prefix") if "scratch" in name]


def test_sources_on_gs_are_the_same_documents_and_make_the_same_tokenizer(gs: str, tmp_path: Path) -> None:
    """The corpus has another name, as gs:// tells no sha256; what it holds is the same. Nothing but JSON is said on the way."""
    job = tiny.write_job(tmp_path)
    for path in (*sorted((tmp_path / "a").iterdir()), tmp_path / "b.txt"):
        storage.commit(f"{gs}/text/{path.relative_to(tmp_path)}", path.read_bytes())
    on_gs = sets(corpus__sources__a__paths=[f"{gs}/text/a/*.jsonl"], corpus__sources__b__paths=[f"{gs}/text/b.txt"])
    for bucket, options in (("here", []), ("there", on_gs)):
        for stage in DATA_STAGES[:2]:
            ended = process("-m", "gristmill", stage, job, *options, *sets(bucket=str(tmp_path / bucket)))
            assert ended.code == 0, ended.log
            ended.records()
    names = (
        "corpus/*/parts/*",
        "corpus/*/ids/*",
        "corpus/*/duplicates.parquet",
        "tokenizer/*/tokenizer.json",
        "tokenizer/*/ranks.tiktoken",
    )
    here, there = ([path.read_bytes() for name in names for path in sorted((tmp_path / side).glob(name))] for side in ("here", "there"))
    assert here == there
    assert b"generation:" in next((tmp_path / "there").glob("corpus/*/sources.json")).read_bytes()
