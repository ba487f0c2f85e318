"""One process at a time may train a run: owner.json names it, and only a compare-and-swap changes owner.json."""

import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from gristmill import storage
from gristmill.errors import JobError
from gristmill.manifest import Record

_BEAT_SECONDS = 20.0
_DEAD_SECONDS = 120.0


class _Claim(Record):
    """Who trains a run."""

    attempt: int
    """Counts the claims of the run, from 1."""
    host: str
    process_id: int
    seen_unix_seconds: float
    released: bool


@dataclass
class Owner:
    """This process's claim on a run."""

    path: str
    claim: _Claim
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def attempt(self) -> int:
        """Number of this attempt at the run."""
        return self.claim.attempt

    def check(self) -> None:
        """Renews the claim; to be called before anything of the run is written.

        Raises:
            JobError: another process has taken the run over.
        """
        self.renew(released=False)

    def renew(self, *, released: bool) -> None:
        """Says that this process still owns the run, or no longer does."""
        with self.lock:
            claim = self.claim.model_copy(update={"seen_unix_seconds": time.time(), "released": released})
            if not storage.swap(self.path, self.claim.encode(), claim.encode()):
                raise _taken(self.path, _read(self.path), "was taken over by another process")
            self.claim = claim


def _read(path: str) -> _Claim | None:
    data = storage.read_if_present(path)
    return None if data is None else _Claim.decode(data, path)


def _alive(claim: _Claim) -> bool:
    """Whether an owner still works: it renewed its claim lately and, on this host, its process exists."""
    if claim.released or time.time() - claim.seen_unix_seconds > _DEAD_SECONDS:
        return False
    if claim.host != socket.gethostname():
        return True
    try:
        os.kill(claim.process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return claim.process_id != os.getpid()


def _taken(path: str, claim: _Claim | None, what: str) -> JobError:
    who = f"process {claim.process_id} on {claim.host}, attempt {claim.attempt}" if claim else "nobody"
    return JobError(
        f"the run {path.split('/')[-2]} {what}",
        found=f"trained by {who}",
        expected="one process at a time",
        next_step="wait for it or stop it; --take-over claims the run from a process that cannot be reached",
    )


@contextmanager
def claimed(run_folder: str, *, take_over: bool) -> Generator[Owner]:
    """Claims a run for as long as the block lasts, and keeps the claim fresh meanwhile.

    Raises:
        JobError: another process that seems alive owns the run.
    """
    path = storage.join(run_folder, "owner.json")
    found = _read(path)
    if found is not None and _alive(found) and not take_over:
        raise _taken(path, found, "is being trained")
    claim = _Claim(
        attempt=found.attempt + 1 if found else 1,
        host=socket.gethostname(),
        process_id=os.getpid(),
        seen_unix_seconds=time.time(),
        released=False,
    )
    if not storage.swap(path, found.encode() if found else None, claim.encode()):
        raise _taken(path, _read(path), "was claimed by another process at the same moment")
    owner = Owner(path, claim)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            try:
                owner.check()
            except JobError:
                return  # the next check of the training loop raises it where it can end the process

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield owner
    finally:
        ended.set()
        thread.join()
        with suppress(JobError):  # whoever took the run over keeps it
            owner.renew(released=True)
