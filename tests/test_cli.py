"""The command line itself: help, exit codes, and the data commands on a machine without JAX."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import click
import pytest

import tiny
from bucket import DATA_STAGES, Built, Ended, assert_fails, gristmill, process, sets, tree
from gristmill import cli

pytest_plugins = ["bucket"]

TRAINING_PACKAGES = ("jax", "flax", "optax", "orbax", "grain", "safetensors")


def test_help_lists_every_command_with_a_whole_line() -> None:
    shown = gristmill("--help")
    assert shown.code == 0
    lines = dict(line.split(maxsplit=1) for line in shown.out.partition("Commands:\n")[2].splitlines())
    assert set(lines) == {"run", *cli.STAGES, "show", "schema", "metrics"}
    assert all(line.endswith(".") and not line.endswith("...") for line in lines.values())
    for command, line in lines.items():
        about = gristmill(command, "--help")
        assert about.code == 0
        assert line in about.out


def test_the_installed_command_and_the_module_are_the_same() -> None:
    installed = subprocess.run([Path(sys.executable).with_name("gristmill"), "--version"], capture_output=True, text=True, check=True)
    assert installed.stdout == process("-m", "gristmill", "--version").out.removeprefix("python -m ")
    assert installed.stdout == f"gristmill, version {version('gristmill')}\n"


def test_no_command_shows_help_and_ends_with_2() -> None:
    ended = gristmill()
    assert ended.code == 2
    assert "Commands:" in ended.log


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["grind"], "No such command 'grind'"),
        (["run"], "Missing argument 'JOB'"),
        (["run", "a", "b"], "unexpected extra argument"),
        (["run", "a", "--sed", "1"], "No such option"),
        (["run", "a", "--metrics-port", "x"], "'x' is not a valid"),
        (["corpus", "a", "--prompt", "x"], "No such option"),
    ],
)
def test_a_wrong_command_line_ends_with_2(arguments: list[str], found: str) -> None:
    assert_fails(gristmill(*arguments), "JobError", what="command line cannot be read", found=found, next="--help")


@pytest.mark.parametrize("worker", ["2/2", "-1/2", "0", "0/0", "a/b", "1/", ""])
def test_a_worker_that_is_none_ends_with_2(built: Built, worker: str) -> None:
    before = tree(built.bucket)
    ended = built.run("corpus", f"--worker={worker}")
    assert_fails(ended, "JobError", what="--worker", expected="I/N with 0 <= I < N", next="--worker 0/4")
    assert tree(built.bucket) == before


def test_an_error_that_nobody_expected_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(click.Group, "invoke", broken)
    with pytest.raises(ZeroDivisionError):
        gristmill("schema")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_data_stage_that_is_told_to_stop_ends_with_75_and_goes_on_later(tmp_path: Path, number: signal.Signals) -> None:
    """A task that waits is one that the signal comes upon at work."""
    job = tiny.write_job(tmp_path)
    held_up = "import os, sys, gristmill.stages.corpus as c, gristmill.cli as i; c._do = lambda *_: (os.write(1, b'.'), signal.pause())"
    script = f"import signal; {held_up}; sys.argv[0] = 'gristmill'; i.main()"
    with subprocess.Popen([sys.executable, "-c", script, "corpus", str(job)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.read(1) == b"."
        child.send_signal(number)
        log = child.stderr.read().decode()
    assert_fails(Ended(child.returncode, "", log), "PreemptedError", what="told to stop", found=number.name, next="same command again")
    assert not [name for name in tree(tmp_path / "out") if "scratch" in name]
    assert gristmill("corpus", job).code == 0


@pytest.fixture(scope="module")
def without_jax() -> list[str]:
    """A Python command line of gristmill on a machine with the data packages alone."""
    blocked = f"sys.modules.update(dict.fromkeys({TRAINING_PACKAGES!r}))"
    return ["-c", f"import sys; {blocked}; from gristmill import cli; sys.argv[0] = 'gristmill'; cli.main()"]


def test_the_data_commands_work_without_jax(tmp_path: Path, built: Built, without_jax: list[str]) -> None:
    for stage in DATA_STAGES:
        ended = process(*without_jax, stage, built.job, *sets(bucket=str(tmp_path / "out")))
        assert ended.code == 0, ended.log
    assert tree(tmp_path / "out") == tree(built.bucket)


@pytest.mark.parametrize("stage", ["train", "evaluate", "sample", "export"])
def test_the_training_commands_say_what_to_install_without_jax(built: Built, without_jax: list[str], stage: str) -> None:
    ended = process(*without_jax, stage, built.job)
    parts = {"what": f"the {stage} stage cannot run here", "found": "no Python package ", "expected": "gristmill[train]"}
    assert_fails(ended, "MachineError", **parts, next="install gristmill[train], or gristmill[tpu] on a TPU")
    assert str(json.loads(ended.log.splitlines()[-1])["found"]).removeprefix("no Python package ").split(".")[0] in TRAINING_PACKAGES


def test_the_command_line_starts_without_jax_or_a_client_of_google() -> None:
    """So that metrics are served before anything slow."""
    script = "import sys, gristmill.cli; print(sorted(name for name in ('jax', 'grain', 'google.cloud.storage') if name in sys.modules))"
    start = time.monotonic()
    assert process("-c", script).out.strip() == "[]"
    assert time.monotonic() - start < 20
    assert os.environ["JAX_PLATFORMS"] == "cpu"
