"""Which files a source consists of, each with the hash that names its bytes; nothing of their text is kept here."""

import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from fsspec.core import url_to_fs
from huggingface_hub import HfApi

from gristmill import storage
from gristmill.config import Corpus, SampleSource, Source
from gristmill.errors import AccessError, JobError, SourceError
from gristmill.manifest import Record

TEXT_SUFFIXES = (".txt",)
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
PARQUET_SUFFIXES = (".parquet",)
_SUFFIXES = (*TEXT_SUFFIXES, *JSONL_SUFFIXES, *PARQUET_SUFFIXES)
_HUB_PATH = re.compile(r"^hf://datasets/(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<glob>.+)$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")


class SourceFile(Record):
    """A file of a source by the name below its glob's fixed folder; where it lies is not part of what it is."""

    name: str
    size_bytes: int
    hash: str
    """sha256:…, on gs:// crc32c:…;generation:…, on the hub sha256:… or git:…"""


class ResolvedSource(Record):
    """A source with its files in reading order."""

    name: str
    kind: str
    files: tuple[SourceFile, ...]


class Resolved(Record):
    """The inputs of a corpus, in the job's order of sources."""

    sources: tuple[ResolvedSource, ...]


@dataclass(frozen=True)
class Located:
    """A resolved source and where its files can be read, in the same order."""

    resolved: ResolvedSource
    urls: tuple[str, ...]
    revisions: tuple[str, ...]
    """The commit that each hf:// path stands for. Another commit with the same files is the same source."""


def resolve(corpus: Corpus) -> list[Located]:
    """Lists every source's files, in the job's order.

    Raises:
        JobError: an hf:// path is not pinned, or a file's type is unknown.
        SourceError: a path matches no file, or a store cannot be reached.
    """
    return [_resolve(name, source) for name, source in corpus.sources.items()]


def _resolve(name: str, source: Source) -> Located:
    if isinstance(source, SampleSource):
        root = standard_library()
        urls = sorted(str(path) for path in root.rglob("*.py") if _is_library_module(path.relative_to(root)))
        found = [(url, _local_file(url, str(root))) for url in urls]
        return _located(name, source.kind, found, ())
    found: list[tuple[str, SourceFile]] = []
    revisions: list[str] = []
    for path in source.paths:
        url, revision = _pin(name, path, allow_unpinned=source.allow_unpinned)
        revisions += [revision] if revision else []
        found += [entry for entry in _list(name, url) if entry[0] not in {url for url, _ in found}]
    return _located(name, source.kind, found, tuple(revisions))


def _located(name: str, kind: str, found: list[tuple[str, SourceFile]], revisions: tuple[str, ...]) -> Located:
    resolved = ResolvedSource(name=name, kind=kind, files=tuple(file for _, file in found))
    return Located(resolved, tuple(url for url, _ in found), revisions)


def standard_library() -> Path:
    """The folder of the running Python's own modules."""
    return Path(sysconfig.get_paths()["stdlib"])


def _is_library_module(path: Path) -> bool:
    """Whether a file below the standard library is a module with documentation, rather than a test or an installed package."""
    return not {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "__phello__"} & set(path.parts)


def _pin(name: str, path: str, *, allow_unpinned: bool) -> tuple[str, str | None]:
    """A path with the commit that an hf:// revision stands for."""
    if not path.startswith("hf://"):
        return path, None
    match = _HUB_PATH.match(path)
    if match is None:
        raise JobError(
            f"source {name} cannot be read", found=path, expected="hf://datasets/ORG/NAME@REVISION/GLOB", next_step="correct the path"
        )
    revision = match["revision"]
    if revision is None or not _COMMIT.match(revision):
        if not allow_unpinned:
            raise JobError(
                f"source {name} is not pinned",
                found=path,
                expected="hf://datasets/ORG/NAME@REVISION/GLOB with a commit of 40 hexadecimal digits",
                next_step="add the commit, or allow_unpinned: true to take whatever the hub has today",
            )
        with _reachable(name, path):
            revision = HfApi().dataset_info(match["name"], revision=revision).sha
        assert revision is not None
    return f"hf://datasets/{match['name']}@{revision}/{match['glob']}", revision


class _reachable:  # noqa: N801  # reads as a verb: with _reachable(...)
    """Network failures, after the library's own retries, as a SourceError."""

    def __init__(self, name: str, url: str) -> None:
        self.name, self.url = name, url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and str(error).startswith("Forbidden"):  # gcsfs says no more than this
            raise AccessError(
                f"source {self.name} may not be read",
                found=f"{self.url}: {str(error).splitlines()[0]}",
                expected="an account with the role storage.objectViewer on the source's bucket",
                next_step="sign in (gcloud auth application-default login) or give the pod's service account that role",
            ) from error
        unreachable = isinstance(error, httpx2.HTTPError | FileNotFoundError | ConnectionError | TimeoutError)
        # gcsfs hands on the errors of its own and of the libraries below it, which take a second to import.
        if unreachable or (kind is not None and kind.__module__.partition(".")[0] in {"aiohttp", "gcsfs", "google", "requests"}):
            raise SourceError(
                f"source {self.name} cannot be had",
                found=f"{self.url}: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
                expected="files that can be read from here",
                next_step="check the path and the network, then run the stage again: finished tasks are kept",
            ) from error


def _list(name: str, url: str) -> Iterator[tuple[str, SourceFile]]:
    """The files a glob matches with their urls, by name."""
    with _reachable(name, url):
        files, pattern = url_to_fs(url)
        paths = sorted(path for path in files.glob(pattern) if files.isfile(path))
    if not paths:
        raise SourceError(
            f"source {name} has no files",
            found=f"nothing matches {url}",
            expected="at least one file",
            next_step="correct corpus.sources.paths",
        )
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    for path in paths:
        if not path.endswith(_SUFFIXES):
            raise JobError(
                f"source {name} has a file of an unknown type",
                found=path,
                expected=f"one of {', '.join(_SUFFIXES)}",
                next_step="narrow the glob",
            )
        full = files.unstrip_protocol(path)
        if full.startswith("file://"):
            yield path, _local_file(path, fixed)
        else:
            with _reachable(name, full):
                info = files.info(path)
            yield full, SourceFile(name=path.removeprefix(fixed).lstrip("/"), size_bytes=int(info["size"]), hash=_remote_hash(info))


def _local_file(path: str, folder: str) -> SourceFile:
    sums = storage.checksums(Path(path))
    return SourceFile(name=path.removeprefix(folder).lstrip("/"), size_bytes=sums.size_bytes, hash=f"sha256:{sums.sha256}")


def _remote_hash(info: dict[str, object]) -> str:
    """The hash that a store keeps beside a file."""
    if "crc32c" in info:
        return f"crc32c:{info['crc32c']};generation:{info['generation']}"
    lfs = info.get("lfs")
    sha256 = getattr(lfs, "sha256", None) or (lfs.get("sha256") if isinstance(lfs, dict) else None)
    return f"sha256:{sha256}" if sha256 else f"git:{info['blob_id']}"
