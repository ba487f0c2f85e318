"""What the command says while it works: metrics from the first moment, JSON on a pipe, a console on a terminal."""

import os
import pty
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import tiny
from bucket import Built, assert_fails, gristmill, sets
from gristmill import telemetry
from gristmill.errors import MachineError

pytest_plugins = ["bucket"]


@pytest.fixture
def port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port that somebody listens on."""
    with socket.socket() as one:
        one.bind(("0.0.0.0", 0))  # noqa: S104  # as the server does
        one.listen()
        yield one.getsockname()[1]


def metrics(port: int) -> str:
    """What a scrape sees."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def on_a_terminal(*arguments: object) -> tuple[int, str]:
    """Exit code and everything that a Python command shows on a terminal of its own."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen([sys.executable, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65_536)
            except OSError:  # the other end is closed
                break
        os.close(ours)
    return child.returncode, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_metrics_are_served_before_the_job_file_is_read(tmp_path: Path, port: int) -> None:
    """A command that fails at its first step has served all the same."""
    assert_fails(gristmill("corpus", tmp_path / "missing.yaml", "--metrics-port", port), "JobError", found="missing.yaml")
    assert "gristmill_train_step" in metrics(port)


def test_progress_is_a_metric(port: int) -> None:
    telemetry.serve_metrics(port)
    with telemetry.progress("corpus", total=7, unit="tasks", done=2) as advance:
        advance(3)
    lines = metrics(port).splitlines()
    assert 'gristmill_progress{stage="corpus",unit="tasks"} 5.0' in lines
    assert 'gristmill_progress_total{stage="corpus",unit="tasks"} 7.0' in lines


def test_a_taken_port_is_a_machine_error(taken_port: int, built: Built) -> None:
    with pytest.raises(MachineError, match=f"port {taken_port}"):
        telemetry.serve_metrics(taken_port)
    assert_fails(
        built.run("corpus", "--metrics-port", taken_port), "MachineError", found="in use", expected="a free port", next="--metrics-port"
    )


@pytest.mark.parametrize("number", ["0", "65536", "-1", "many"])
def test_a_number_that_is_no_port_is_a_job_error(built: Built, number: str) -> None:
    assert_fails(built.run("corpus", "--metrics-port", number), "JobError", found=number, next="--help")


def test_logs_on_a_pipe_are_a_json_object_a_line(built: Built) -> None:
    ended = built.run("corpus")
    (record,) = ended.records()
    assert record["event"] == "corpus is done already"
    assert record["level"] == "info"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(record["timestamp"]))


def test_a_slow_stage_on_a_pipe_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(telemetry, "_QUIET_SECONDS", -1.0)
    records = gristmill("corpus", tiny.write_job(tmp_path)).records()
    assert [(record["done"], record["total"], record["unit"]) for record in records] == [(1, 2, "tasks"), (2, 2, "tasks")]


def test_a_terminal_gets_a_bar_and_no_json(tmp_path: Path) -> None:
    job = tiny.write_job(tmp_path)
    code, shown = on_a_terminal("-m", "gristmill", "corpus", job)
    assert code == 0
    assert re.search(r"corpus ━+ 2/2 [\d,.]+ tasks/s", shown)
    assert '{"' not in shown
    code, shown = on_a_terminal("-m", "gristmill", "corpus", job)
    assert re.search(r"^\d\d:\d\d:\d\d \[info\] corpus is done already +digest=[0-9a-f]{12}\s*$", shown)


def test_a_log_line_on_a_terminal_stands_above_the_bar_and_not_behind_it() -> None:
    script = """
from gristmill import telemetry
telemetry.configure()
with telemetry.progress("shards", total=3, unit="tasks") as advance:
    for _ in range(3):
        advance(1)
        telemetry.log().info("said")
"""
    _, shown = on_a_terminal("-c", script)
    assert "shards ━" in shown
    assert len(re.findall(r"(?:^|[\r\n])\d\d:\d\d:\d\d \[info\] said", shown)) == 3


def test_an_error_on_a_terminal_is_four_readable_lines(built: Built) -> None:
    code, shown = on_a_terminal("-m", "gristmill", "corpus", built.job, *sets(train__sed=1))
    assert code == 2
    assert shown.splitlines() == [
        "JobError: unknown key train.sed",
        "  found:    'sed'",
        "  expected: 'seed'",
        "  next:     correct the key's name",
    ]
