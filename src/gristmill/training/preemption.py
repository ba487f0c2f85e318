"""Being told to stop: the first signal asks for a save at the next step, the second ends at once."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """Whether this process was told to stop."""

    by: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether a signal came."""
        return self.by is not None


@contextmanager
def graceful() -> Generator[Stop]:
    """Turns SIGINT and SIGTERM into a request for as long as the block lasts; a second signal kills the process."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, _: FrameType | None) -> None:
        # Nothing is logged here: the line that the signal interrupts may hold the log's lock.
        stop.by = signal.Signals(number)
        for each in before:  # an exception instead would wait for the checkpoint that is being written
            signal.signal(each, signal.SIG_DFL)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
