"""Streams of records of a run, metrics and ledger, as files that are each written once.

Objects cannot be appended to, so an attempt keeps its records in memory and closes a segment `<first_step>-<attempt>.jsonl` at each
checkpoint and at its end. A step that was done again after a failure stands in two segments: the newest attempt's is the one that counts.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gristmill import storage
from gristmill.errors import InputError

_NAME = re.compile(r"^(\d+)-(\d+)\.jsonl$")


@dataclass
class Segments:
    """The records of one attempt that no closed segment holds yet."""

    folder: str
    attempt: int
    records: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

    def append(self, step: int, **values: object) -> None:
        """Adds a record; steps must not fall."""
        self.records.append({"step": step, **values})

    def close(self) -> None:
        """Writes the open records as a segment of their own."""
        if self.records:
            lines = "".join(f"{json.dumps(record)}\n" for record in self.records)
            name = f"{self.records[0]['step']:09d}-{self.attempt:04d}.jsonl"
            storage.commit(storage.join(self.folder, name), lines.encode())
            self.records = []


def read(folder: str) -> Iterator[dict[str, object]]:
    """One clean stream in order of steps: each step as the newest attempt that reported it has it.

    Raises:
        InputError: a segment is damaged.
    """
    newest: dict[int, tuple[int, list[dict[str, object]]]] = {}
    for name in storage.names(folder):
        match = _NAME.match(name)
        if match is None:
            continue
        attempt = int(match[2])
        for step, record in _records(storage.join(folder, name)):
            known_attempt, records = newest.get(step, (-1, []))
            if attempt > known_attempt:
                newest[step] = (attempt, [record])
            elif attempt == known_attempt:
                records.append(record)
    for step in sorted(newest):
        yield from newest[step][1]


def _records(path: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, line in enumerate(storage.read(path).splitlines(), 1):
        record: Any = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if not (isinstance(record, dict) and isinstance(record.get("step"), int)):
            raise InputError(
                f"{path} is damaged",
                found=f"line {number} is {line[:80]!r}",
                expected="a JSON object with its step",
                next_step="restore the file, or delete it and do without its steps",
            )
        yield record["step"], record
