"""A disk that is full or may not be written to: the code, the words, and a later run that goes on."""

import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import tiny
from bucket import DATA_STAGES, Built, assert_fails, disk, only_room_for, process, sets, tree
from gristmill import storage

pytest_plugins = ["bucket"]

PAGE = 4096
FULL = {"what": "the disk is full", "expected": "room for", "next": "free space"}


def of(stage: str, made: Built) -> dict[str, bytes | None]:
    """What a stage left."""
    return {name: data for name, data in tree(made.bucket).items() if name.startswith(stage)}


def before(stage: str, built: Built, folder: Path) -> Built:
    """A copy of a bucket as it is before a stage."""
    later = DATA_STAGES[DATA_STAGES.index(stage) :] if stage in DATA_STAGES else ()
    runs = ("runs",) if stage == "corpus" else ()
    return Built(built.job, Path(shutil.copytree(built.bucket, folder / "out", ignore=shutil.ignore_patterns(*later, *runs))))


@pytest.mark.parametrize("stage", DATA_STAGES)
def test_a_data_stage_on_a_full_disk_ends_with_78_wherever_it_fills_and_goes_on_with_more(tmp_path: Path, built: Built, stage: str) -> None:
    """Room grows until the stage succeeds, so that every file it writes is once the one that does not fit."""
    whole, unfit = of(stage, built), set[str]()
    for pages in itertools.count(0, 2 if stage == "shards" else 1):
        with disk(tmp_path / f"{pages}") as folder:
            made = before(stage, built, folder)
            with only_room_for(folder, pages * PAGE):
                ended = made.run(stage)
            if ended.code == 0:
                break
            assert_fails(ended, "MachineError", **FULL, found=str(folder))
            assert not [name for name in tree(made.bucket) if "scratch" in name]
            assert of(stage, made).items() <= whole.items()
            unfit.add(str(ended.records()[-1]["found"]).rpartition("/")[2])
            assert made.run(stage).code == 0
            assert of(stage, made) == whole
    assert len(unfit) >= 4, unfit


def test_a_checkpoint_on_a_full_disk_ends_with_78_and_training_goes_on_with_more(tmp_path: Path, built: Built) -> None:
    changes = sets(train__token_budget=512, train__warmup_steps=1)
    quick = {"XLA_FLAGS": "", "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    with disk(tmp_path / "disk", mebibytes=16) as folder:
        made = before("train", built, folder)
        options = [*sets(bucket=str(made.bucket)), *changes]
        with only_room_for(folder, 100 * PAGE):
            ended = process("-m", "gristmill", "train", made.job, *options, environment=quick)
        assert_fails(ended, "MachineError", **FULL, found=str(folder))
        run = made.bucket / "runs" / "tiny"
        assert not (run / "manifest.json").exists()
        assert not [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
        ended = process("-m", "gristmill", "train", made.job, *options, environment=quick)
        assert ended.code == 0, ended.log
        assert json.loads((run / "manifest.json").read_bytes())["step"] == 2


@pytest.mark.parametrize("stage", [*DATA_STAGES, "train"])
def test_a_bucket_that_may_not_be_written_ends_with_77_and_stays_as_it_was(tmp_path: Path, built: Built, stage: str) -> None:
    with disk(tmp_path / "disk") as folder:
        made = before(stage, built, folder)
        as_it_was = tree(folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)  # noqa: S607
        parts = {"what": "permission denied", "found": f"Read-only file system at {folder}", "expected": "write access", "next": "grant"}
        assert_fails(made.run(stage), "AccessError", **parts)
        assert tree(folder) == as_it_was


def test_a_finished_stage_needs_no_right_to_write(tmp_path: Path, built: Built) -> None:
    with disk(tmp_path / "disk") as folder:
        made = before("train", built, folder)
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)  # noqa: S607
        assert [made.run(stage).code for stage in DATA_STAGES] == [0, 0, 0]


def test_a_source_that_may_not_be_read_ends_with_77(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is what open(2) says to others."""
    made = Built(tiny.write_job(tmp_path), tmp_path / "out")
    secret = str(tmp_path / "b.txt")
    known = storage.checksums

    def refusing(path: Path) -> storage.Checksums:
        if str(path) == secret:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), secret)
        return known(path)

    monkeypatch.setattr(storage, "checksums", refusing)
    assert_fails(made.run("corpus"), "AccessError", what="permission denied", found=secret, expected="read access to the sources")
    assert not (tmp_path / "out").exists()
