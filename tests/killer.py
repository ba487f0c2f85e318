"""Runs the command `gristmill` and strikes it from inside at chosen moments: `killer.py PLAN ARGUMENTS...`.

PLAN is JSON from a moment to what happens then, in order.

Moments: "step N", when update N was dispatched; "before REGEX" and "after REGEX", around the first link(2) or rename(2) whose new name the
pattern finds; "log REGEX", in the midst of writing such a line to the log; "writes", before an array of a checkpoint is written.

Happenings: a signal's name; "wait PATH" writes PATH.waiting, then waits until PATH is there; "step N" waits until update N was dispatched;
"sleep SECONDS".
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PATIENCE_SECONDS = 60

_dispatched: defaultdict[int, threading.Event] = defaultdict(threading.Event)


def _happen(what: str) -> None:
    kind, _, argument = what.partition(" ")
    if kind == "wait":
        Path(f"{argument}.waiting").touch()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not Path(argument).exists():
            if time.monotonic() > deadline:
                os._exit(99)
            time.sleep(0.02)
    elif kind == "step":
        if not _dispatched[int(argument)].wait(_PATIENCE_SECONDS):
            os._exit(99)
    elif kind == "sleep":
        time.sleep(float(argument))
    else:
        os.kill(os.getpid(), signal.Signals[kind])


def _strike(plan: dict[str, list[str]], moment: str, text: str) -> None:
    for key in [key for key in plan if key.startswith(f"{moment} ") and re.search(key.removeprefix(f"{moment} "), text)]:
        for what in plan.pop(key):
            _happen(what)


def _strike_files(plan: dict[str, list[str]]) -> None:
    """Wraps the calls by which a file or a folder appears under its name."""

    def wrap(call: Callable[..., None]) -> Callable[..., None]:
        def struck(source: Any, target: Any, **options: Any) -> None:
            _strike(plan, "before", os.fspath(target))
            call(source, target, **options)
            _strike(plan, "after", os.fspath(target))

        return struck

    os.link, os.rename, os.replace = wrap(os.link), wrap(os.rename), wrap(os.replace)


def _strike_log(plan: dict[str, list[str]]) -> None:
    original = sys.stderr.write

    def write(text: str) -> int:
        _strike(plan, "log", text)
        return original(text)

    sys.stderr.write = write


def _strike_steps(plan: dict[str, list[str]]) -> None:
    from gristmill.training.report import Report  # noqa: PLC0415  # JAX, which data stages need not load

    original = Report.dispatched

    def dispatched(self: Report, step: int, metrics: Any) -> None:
        original(self, step, metrics)
        _dispatched[step].set()
        for what in plan.pop(f"step {step}", ()):
            _happen(what)

    Report.dispatched = dispatched


def _strike_writes(happenings: list[str]) -> None:
    from orbax.checkpoint._src.serialization import serialization  # noqa: PLC0415  # no public name stands between copy and write

    original = serialization.estimate_write_memory_footprint

    def estimate(array: Any) -> int:
        for what in happenings:
            _happen(what)
        return original(array)

    serialization.estimate_write_memory_footprint = estimate


def main() -> None:
    """Arms the plan, then is `gristmill`."""
    plan: dict[str, list[str]] = json.loads(sys.argv[1])
    _strike_files(plan)
    _strike_log(plan)
    if "writes" in plan or any(moment.startswith("step ") for moment in plan):
        _strike_steps(plan)
    if "writes" in plan:
        _strike_writes(plan["writes"])
    sys.argv = ["gristmill", *sys.argv[2:]]
    from gristmill import cli  # noqa: PLC0415  # after the plan, as `gristmill` itself would be imported

    cli.main()


if __name__ == "__main__":
    main()
