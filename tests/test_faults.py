"""Runs that are killed, stopped, fought over and changed, in processes of their own, end as an undisturbed run does: bit for bit."""

import json
import math
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faults import (
    SETTINGS,
    STEPS,
    Site,
    arrays,
    assert_equal,
    assert_same,
    assert_same_training,
    end,
    files,
    kill_after,
    newest_step,
    reached,
    records,
    shared,
    tree,
)
from gristmill import jobfile
from gristmill.config import Job
from gristmill.errors import JobError
from gristmill.training import resume

KILLS = 20
WSD = ("train.schedule=wsd", "train.decay_fraction=0.25")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.getbasetemp()
    return shared(root.parent if "PYTEST_XDIST_WORKER" in os.environ else root)


def test_a_run_killed_at_twenty_random_moments_ends_like_an_undisturbed_one(site: Site, tmp_path: Path) -> None:
    seed = int(os.environ.get("FAULTS_SEED", time.time_ns() % 2**32))
    print(f"FAULTS_SEED={seed}")  # noqa: T201  # pytest shows it with a failure
    chooser = random.Random(seed)  # noqa: S311  # repeatable moments, no secret
    process = site.start(tmp_path / "0", "run")
    seconds = kill_after(process, math.inf)
    assert process.returncode == 0
    bucket, kills, lives = tmp_path / "1", 0, 1
    while kills < KILLS:
        process = site.start(bucket, "run")
        kill_after(process, chooser.uniform(0, seconds))
        assert process.returncode in {0, -signal.SIGKILL}
        if process.returncode:
            kills += 1
        else:
            assert_same(bucket, site.undisturbed)
            lives += 1
            bucket = tmp_path / str(lives)
    site.done(bucket, "run")
    assert_same(bucket, site.undisturbed)
    assert_same(tmp_path / "0", site.undisturbed)


def test_data_stages_killed_before_a_marker_or_manifest_appears_end_with_equal_bytes(site: Site, tmp_path: Path) -> None:
    moments = {
        "corpus": ["corpus/*/tasks/00000.json", "corpus/*/manifest.json"],
        "tokenizer": ["tokenizer/*/manifest.json"],
        "shards": ["shards/*/tasks/00001.json", "shards/*/manifest.json"],
    }
    for stage, names in moments.items():
        for name in names:
            folder, _, last = name.rpartition("/")
            plan = {f"before {name.replace('*', '[0-9a-f]+')}$": ["SIGKILL"]}
            assert site.run(tmp_path, stage, plan=plan).code == -signal.SIGKILL
            assert not list(tmp_path.glob(name))
            (written,) = tmp_path.glob(f"{folder}/.scratch-*/file")
            (expected,) = site.undisturbed.glob(f"{folder}/{last}")
            assert written.read_bytes() == expected.read_bytes()
            shutil.rmtree(written.parent)
        site.done(tmp_path, stage)
    stages = tuple(moments)
    assert len(files(tmp_path, *stages)) > 10
    assert_equal(files(tmp_path, *stages), files(site.undisturbed, *stages))


def test_a_run_killed_in_a_save_before_its_commit_after_it_or_before_the_manifest_ends_like_an_undisturbed_one(
    site: Site, tmp_path: Path
) -> None:
    bucket = site.with_shards(tmp_path / "bucket")
    checkpoints = bucket / "runs" / "tiny" / "checkpoints"
    moments = {
        # Its bytes are those of step 2, though they are written when step 3 has begun to reuse the memory.
        "committed": (2, {"writes": ["step 3"], "after checkpoints/000000002$": ["SIGKILL"]}),
        "half written": (2, {r"before 000000004\.[^/]*/parameters$": ["SIGKILL"]}),
        "before its commit": (2, {"before checkpoints/000000004$": ["SIGKILL"]}),
        # Segments that are slow to write are there all the same.
        "committed while segments are closed": (6, {"before metrics/000000005": ["sleep 2"], "after checkpoints/000000006$": ["SIGKILL"]}),
        "before the manifest": (STEPS, {"before runs/tiny/manifest.json$": ["SIGKILL"]}),
    }
    for moment, (newest, plan) in moments.items():
        ended = site.run(bucket, "train", plan=plan)
        assert ended.code == -signal.SIGKILL, (moment, ended)
        assert newest_step(bucket) == newest, moment
        unfinished = {path.name: {item.name for item in path.iterdir()} for path in checkpoints.iterdir() if not path.name.isdecimal()}
        if moment == "half written":
            (items,) = unfinished.values()
            assert "optimizer" in items
            assert "parameters" not in items
        elif moment == "before its commit":
            (items,) = unfinished.values()
            assert {"optimizer", "parameters"} < items
        else:
            assert not unfinished, moment
        assert not json.loads((bucket / "runs" / "tiny" / "owner.json").read_text(encoding="utf-8"))["released"]
    site.done(bucket, "run")
    assert_same(bucket, site.undisturbed)


def test_a_run_that_is_told_to_stop_saves_within_a_step_exits_75_and_goes_on(site: Site, tmp_path: Path) -> None:
    bucket = site.with_shards(tmp_path / "bucket")
    moments = {
        5: {"step 5": ["SIGTERM"]},
        9: {"step 9": ["SIGINT"]},
        12: {'log "step": 11,': ["SIGTERM"]},  # reported when step 12 was dispatched; holds the log's lock
        STEPS: {f"step {STEPS}": ["SIGTERM"]},
    }
    for step, plan in moments.items():
        code, last = site.run(bucket, "run", plan=plan)
        assert (code, last["error"]) == (75, "PreemptedError"), last
        assert str(step) in last["found"]
        assert last["next"].startswith("run the same command again")
        assert newest_step(bucket) == step
        assert json.loads((bucket / "runs" / "tiny" / "owner.json").read_text(encoding="utf-8"))["released"]
    site.done(bucket, "run")
    assert_same(bucket, site.undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_training_at_once_even_in_a_save(site: Site, tmp_path: Path, number: signal.Signals) -> None:
    bucket = site.with_shards(tmp_path / "bucket")
    plan = {"step 3": [number.name], "before checkpoints/000000003$": [f"wait {tmp_path}/never"]}
    process = site.start(bucket, "train", plan=plan)
    reached(tmp_path / "never.waiting")
    process.send_signal(number)
    process.communicate(timeout=5)
    assert process.returncode == -number
    assert newest_step(bucket) == 2


def test_a_data_stage_that_is_told_to_stop_exits_75_and_ends_with_equal_bytes(site: Site, tmp_path: Path) -> None:
    moments = {
        "corpus": {"before corpus/[0-9a-f]+/parts/00001": ["SIGTERM"]},
        "tokenizer": {"before tokenizer.json": ["SIGINT"]},
        "shards": {"before shards/[0-9a-f]+/tasks/00001.json": ["SIGTERM"]},
    }
    for stage, plan in moments.items():
        code, last = site.run(tmp_path, stage, plan=plan)
        assert (code, last["error"]) == (75, "PreemptedError"), last
        assert last["next"].startswith("run the same command again")
        site.done(tmp_path, stage)
    assert_equal(files(tmp_path, *moments), files(site.undisturbed, *moments))


def test_a_run_has_one_owner_and_the_one_it_was_taken_from_writes_nothing_more(site: Site, tmp_path: Path) -> None:
    bucket = site.with_shards(tmp_path / "bucket")
    first = site.start(bucket, "train", plan={"step 5": [f"wait {tmp_path}/go"]})
    reached(tmp_path / "go.waiting")
    code, last = site.run(bucket, "train")
    assert (code, last["error"]) == (2, "JobError")
    assert f"process {first.pid} on {socket.gethostname()}" in last["found"]
    assert "--take-over" in last["next"]
    assert newest_step(bucket) == 4
    site.done(bucket, "train", "--take-over")
    before = tree(bucket)
    (tmp_path / "go").touch()
    code, last = end(first)
    assert (code, last["error"]) == (2, "JobError")
    assert "was taken over by another process" in last["event"]
    assert_equal(tree(bucket), before)
    assert_same_training(bucket, site.undisturbed)


def loaded(site: Site, bucket: Path, *settings: str) -> Job:
    return jobfile.load(site.job, [*SETTINGS, f"bucket={bucket}", *settings])


def test_a_changed_identity_is_refused_with_each_key_and_both_its_values(site: Site, tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    shutil.copytree(site.undisturbed, bucket)
    changes = {
        "train.learning_rate": (0.01, 0.02),
        "model.layers": (2, 1),
        "train.seed": (0, 7),
        "train.compute_dtype": ("float32", "bfloat16"),
    }
    code, last = site.run(bucket, "train", *(word for key, (_, new) in changes.items() for word in ("--set", f"{key}={new}")))
    assert (code, last["error"]) == (2, "JobError")
    for key, (old, new) in changes.items():
        assert f"{key}: {old!r} is now {new!r}" in last["found"]

    job = loaded(site, bucket)
    identity = resume.of(job, "0" * 64)
    resume.check(str(tmp_path), job, identity, None)
    resume.check(str(tmp_path), job, identity, 1)
    assert len(identity.values) > 20
    for key, value in identity.values.items():
        with pytest.raises(JobError, match=re.escape(f"{key}: {value!r} is now 'other'")):
            resume.check(str(tmp_path), job, identity.model_copy(update={"values": {**identity.values, key: "other"}}), 1)
    with pytest.raises(JobError, match="shards: 000000000000 is now 111111111111"):
        resume.check(str(tmp_path), job, identity.model_copy(update={"shards": "1" * 64}), 1)


def test_a_run_goes_on_under_changed_free_keys(site: Site, tmp_path: Path) -> None:
    bucket = site.with_shards(tmp_path / "bucket")
    assert site.run(bucket, "train", plan={"step 5": ["SIGTERM"]}).code == 75
    free = {
        "train.save_every_steps": 7,
        "train.evaluate_every_steps": 8,
        "train.log_every_steps": 3,
        "train.accumulation_steps": 2,
        "cluster.train.mesh.fsdp": 2,
    }
    options = [word for key, value in free.items() for word in ("--set", f"{key}={value}")]
    ended = site.run(bucket, "train", *options, devices=2)
    assert ended.code == 0, ended.last
    attempt = json.loads((bucket / "runs" / "tiny" / "log" / "0002.json").read_text(encoding="utf-8"))
    assert attempt["start_step"] == 5
    assert attempt["job"]["cluster"]["train"]["mesh"]["fsdp"] == 2
    assert_equal(records(bucket, "ledger"), records(site.undisturbed, "ledger"))
    expected = arrays(site.undisturbed, STEPS)
    for name, (dtype, _, data) in arrays(bucket, STEPS).items():
        np.testing.assert_allclose(np.frombuffer(data, dtype), np.frombuffer(expected[name][2], dtype), rtol=1e-2, atol=1e-3, err_msg=name)


def test_a_larger_budget_is_taken_before_wsd_decays_as_if_it_had_been_there_from_the_start(site: Site, tmp_path: Path) -> None:
    wsd = [word for setting in WSD for word in ("--set", setting)]
    larger = [*wsd, "--set", f"train.token_budget={36 * 256}"]
    straight, extended = (site.with_shards(tmp_path / name) for name in ("straight", "extended"))
    site.done(straight, "train", *larger)
    last_stable = 18  # the last 6 of 24 updates decay
    code, last = site.run(extended, "train", *wsd, plan={f"step {last_stable}": ["SIGTERM"]})
    assert code == 75, last
    site.done(extended, "train", *larger)
    assert_same_training(extended, straight, step=36)


@pytest.mark.parametrize(
    ("schedule", "budget", "step", "accepted"),
    [("wsd", 36, 18, True), ("wsd", 36, 19, False), ("wsd", 23, 2, False), ("cosine", 36, 2, False), ("wsd", 24, 24, True)],
)
def test_another_budget_is_refused_unless_it_is_larger_under_wsd_before_the_decay(
    site: Site, tmp_path: Path, schedule: str, budget: int, step: int, *, accepted: bool
) -> None:
    settings = (*WSD, f"train.schedule={schedule}")
    job, changed = loaded(site, tmp_path, *settings), loaded(site, tmp_path, *settings, f"train.token_budget={budget * 256}")
    resume.check(str(tmp_path), job, resume.of(job, "0" * 64), None)
    if accepted:
        resume.check(str(tmp_path), changed, resume.of(changed, "0" * 64), step)
    else:
        with pytest.raises(JobError, match=f"train.token_budget: {STEPS * 256} is now {budget * 256}"):
            resume.check(str(tmp_path), changed, resume.of(changed, "0" * 64), step)


def schema_keys(schema: Mapping[str, Any], node: Mapping[str, Any], key: str = "") -> Iterator[str]:
    """The dotted keys of a JSON schema, down to plain values and to maps with names of the user's own."""
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    for name, inner in node.get("properties", {}).items():
        yield from schema_keys(schema, inner, f"{key}.{name}".lstrip("."))
    if "properties" not in node:
        yield key


def test_every_key_of_a_job_stands_in_exactly_one_class() -> None:
    schema = Job.model_json_schema()
    keys = set(schema_keys(schema, schema))
    assert {"run", "corpus.sources", "model.layers", "train.mixture", "train.seed", "cluster.train.mesh.fsdp"} < keys
    classes = {key: [name for name in resume.KEY_CLASSES if f"{key}.".startswith(f"{name}.")] for key in keys}
    assert not {key: found for key, found in classes.items() if len(found) != 1}
    assert {name for found in classes.values() for name in found} == set(resume.KEY_CLASSES)
