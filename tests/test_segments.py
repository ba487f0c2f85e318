"""Streams of records in files that are each written once."""

import json
from pathlib import Path

import pytest

from bucket import assert_fails, gristmill
from gristmill import segments
from gristmill.errors import InputError
from gristmill.segments import Segments


def write(folder: Path, attempt: int, *steps: int) -> Segments:
    """An attempt that reports some steps, closed."""
    open_segments = Segments(str(folder), attempt)
    for step in steps:
        open_segments.append(step, attempt=attempt)
    open_segments.close()
    return open_segments


def read(folder: Path) -> list[tuple[object, object]]:
    """Step and attempt of each record of the clean stream."""
    return [(record["step"], record["attempt"]) for record in segments.read(str(folder))]


def test_a_step_is_as_the_newest_attempt_has_it(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, 2, 3, 4, 5)
    write(tmp_path, 2, 3, 4)
    write(tmp_path, 10, 4)
    assert read(tmp_path) == [(1, 1), (2, 1), (3, 2), (4, 10), (5, 1)]


def test_it_does_not_matter_in_which_order_attempts_began_their_segments(tmp_path: Path) -> None:
    """A segment is named by its first step, so a newer attempt's can come before an older one's."""
    write(tmp_path, 2, 1, 2)
    write(tmp_path, 1, 2, 3)
    assert read(tmp_path) == [(1, 2), (2, 2), (3, 1)]


def test_all_records_of_a_step_stay_in_the_order_they_were_reported(tmp_path: Path) -> None:
    stream = Segments(str(tmp_path), 1)
    stream.append(4, loss=1.0)
    stream.append(4, held_out_loss=2.0)
    stream.close()
    stream.append(5, loss=3.0)
    stream.close()
    stream.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000004-0001.jsonl", "000000005-0001.jsonl"]
    assert list(segments.read(str(tmp_path))) == [{"step": 4, "loss": 1.0}, {"step": 4, "held_out_loss": 2.0}, {"step": 5, "loss": 3.0}]


def test_a_segment_is_never_written_over(tmp_path: Path) -> None:
    write(tmp_path, 1, 1, 2)
    with pytest.raises(InputError, match="other bytes"):
        write(tmp_path, 1, 1, 2, 3)
    assert read(tmp_path) == [(1, 1), (2, 1)]


def test_the_metrics_command_prints_the_clean_stream(tmp_path: Path) -> None:
    for kind in ("metrics", "ledger"):
        write(tmp_path / "runs" / "demo" / kind, 1, 1, 2, 3)
    write(tmp_path / "runs" / "demo" / "metrics", 2, 2)
    printed = gristmill("metrics", "demo", "--bucket", tmp_path)
    assert [json.loads(line)["attempt"] for line in printed.out.splitlines()] == [1, 2, 1]
    printed = gristmill("metrics", "demo", "--bucket", tmp_path, "--ledger")
    assert [json.loads(line)["attempt"] for line in printed.out.splitlines()] == [1, 1, 1]


def test_metrics_of_a_run_that_is_not_there_are_an_error(tmp_path: Path) -> None:
    assert_fails(gristmill("metrics", "nope", "--bucket", tmp_path), "InputError", what="nope", found=str(tmp_path), next="--bucket")


def test_a_damaged_segment_is_an_input_error(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo" / "metrics"
    write(folder, 1, 1)
    path = folder / "000000001-0001.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert_fails(gristmill("metrics", "demo", "--bucket", tmp_path), "InputError", what=str(path), found="line 2")
