"""Being told to stop: the first signal asks for a save at the next step, the second ends at once."""

import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from gristmill import telemetry


@dataclass
class Stop:
    """Whether this process was told to stop."""

    requested: bool = False


@contextmanager
def graceful() -> Generator[Stop]:
    """Turns SIGINT and SIGTERM into a request for as long as the block lasts; a second signal acts as it did before."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def request(number: int, _: FrameType | None) -> None:
        stop.requested = True
        restore()
        telemetry.log().warning("told to stop: saving after this step; once more ends at once", signal=signal.Signals(number).name)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
