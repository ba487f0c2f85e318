"""What the fault tests share: gristmill in processes of its own over one job, and what must be equal afterwards."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

import tiny
from gristmill import segments

STEPS = 24
SETTINGS = (f"train.token_budget={STEPS * 256}", "train.save_every_steps=2", "train.evaluate_every_steps=6")
KILLER = [sys.executable, str(Path(__file__).with_name("killer.py"))]
CLOCKS = {"unix_seconds", "tokens_per_second", "mfu"}


class Ended(NamedTuple):
    """How a process ended, and the last line of its log."""

    code: int
    last: dict[str, Any]


class Site(NamedTuple):
    """A job, the bucket of its undisturbed run, and where compiled programs are kept."""

    job: Path
    undisturbed: Path
    cache: Path

    def start(
        self, bucket: Path, command: str, *options: str, plan: Mapping[str, list[str]] | None = None, devices: int = 1
    ) -> subprocess.Popen[str]:
        """Begins a command over a bucket, struck as a plan says."""
        environment = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        program = [sys.executable, "-m", "gristmill"] if plan is None else [*KILLER, json.dumps(plan)]
        settings = [word for setting in (*SETTINGS, f"bucket={bucket}") for word in ("--set", setting)]
        arguments = [*program, command, str(self.job), *settings, *options]
        return subprocess.Popen(arguments, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def run(self, bucket: Path, command: str, *options: str, plan: Mapping[str, list[str]] | None = None, devices: int = 1) -> Ended:
        """A command over a bucket, to its end."""
        return end(self.start(bucket, command, *options, plan=plan, devices=devices))

    def done(self, bucket: Path, command: str, *options: str) -> None:
        """Asserts that a command succeeds."""
        ended = self.run(bucket, command, *options)
        assert ended.code == 0, ended.last

    def with_shards(self, bucket: Path) -> Path:
        """Makes a bucket whose data stages are done."""
        for stage in ("corpus", "tokenizer", "shards"):
            shutil.copytree(self.undisturbed / stage, bucket / stage)
        (bucket / "runs" / "tiny").mkdir(parents=True)
        shutil.copy(self.undisturbed / "runs" / "tiny" / "corpus.json", bucket / "runs" / "tiny")
        return bucket


def end(process: subprocess.Popen[str]) -> Ended:
    """Waits for a process."""
    try:
        _, log = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    last = (log.splitlines() or ["{}"])[-1]
    return Ended(process.returncode, json.loads(last) if last.startswith("{") else {"event": log})


def kill_after(process: subprocess.Popen[str], limit: float) -> float:
    """Kills a process once it has worked so many CPU seconds, which another load on the machine does not stretch; how long it did work."""
    seconds = 0.0
    while process.poll() is None and seconds < limit:
        user, system = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:13]
        seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.005)
    process.kill()
    process.communicate()
    return seconds


def shared(root: Path) -> Site:
    """The one site below a folder, built by whichever process comes first."""
    made = Site(root / "faults" / "job.yaml", root / "faults" / "undisturbed", root / "faults" / "cache")
    with (root / "faults.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.undisturbed.exists():
            made.cache.mkdir(parents=True)
            tiny.write_job(made.job.parent)
            made.done(made.undisturbed, "run")
    return made


def files(bucket: Path, *stages: str) -> dict[str, bytes]:
    """The files of stages that are functions of the job alone; unfinished ones have other names."""
    changing = re.compile(r"runs/tiny/(log|metrics|ledger|checkpoints|owner)|/\.scratch-")
    return {name: data for name, data in tree(bucket).items() if name.startswith(stages) and not changing.search(name)}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def arrays(bucket: Path, step: int) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every leaf of a checkpoint: parameters, optimizer state and step."""
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for part in ("parameters", "optimizer"):
            folder = bucket / "runs" / "tiny" / "checkpoints" / f"{step:09d}" / part
            wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), checkpointer.metadata(folder).item_metadata.tree)
            for path, leaf in jax.tree_util.tree_leaves_with_path(checkpointer.restore(folder, restore_args=wanted)):
                found[part + jax.tree_util.keystr(path)] = (str(leaf.dtype), leaf.shape, leaf.tobytes())
    assert {"parameters['embedding']", "optimizer['step']"} < set(found)
    return found


def records(bucket: Path, stream: str) -> dict[str, dict[str, object]]:
    """A clean stream of a run, without what a clock says."""
    read = segments.read(str(bucket / "runs" / "tiny" / stream))
    return {str(place): {key: value for key, value in one.items() if key not in CLOCKS} for place, one in enumerate(read)}


def assert_equal(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Asserts that mappings are equal; names what is not, as values are long."""
    different = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    assert not different, f"not equal: {different}"


def assert_same_training(bucket: Path, expected: Path, step: int = STEPS) -> None:
    assert_equal(arrays(bucket, step), arrays(expected, step))
    for stream in ("metrics", "ledger"):
        assert len(records(expected, stream)) >= step
        assert_equal(records(bucket, stream), records(expected, stream))


def assert_same(bucket: Path, expected: Path) -> None:
    names = files(expected, "corpus", "tokenizer", "shards", "runs")
    assert {"runs/tiny/manifest.json", "runs/tiny/export/model.safetensors"} < set(names)
    assert_equal(files(bucket, "corpus", "tokenizer", "shards", "runs"), names)
    assert_same_training(bucket, expected)


def newest_step(bucket: Path) -> int:
    """The newest whole checkpoint."""
    return max(int(path.name) for path in (bucket / "runs" / "tiny" / "checkpoints").iterdir() if path.name.isdecimal())


def reached(path: Path) -> None:
    """Waits for what a process does."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.02)
