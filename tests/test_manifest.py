"""What stages leave behind is a function of their inputs alone, and is checked when it is read."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from bucket import DATA_STAGES, Built, assert_fails, build, gristmill, sets, tree
from gristmill.stages import corpus

pytest_plugins = ["bucket"]


def outputs(bucket: Path) -> dict[str, bytes | None]:
    """All that the data stages left, but for runs/, which holds what is a run's own."""
    return {name: data for name, data in tree(bucket).items() if not name.startswith("runs")}


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every source file is a task of its own: three tasks."""
    monkeypatch.setattr(corpus, "_TASK_BYTES", 1)


@pytest.mark.usefixtures("small_tasks")
def test_the_bytes_do_not_depend_on_how_many_workers_there_are(tmp_path: Path) -> None:
    job = tiny.write_job(tmp_path)
    found: list[dict[str, bytes | None]] = []
    for count in (1, 2, 3, 5):
        bucket = tmp_path / f"by-{count}"
        for stage in DATA_STAGES:
            for index in reversed(range(count)):
                assert gristmill(stage, job, *sets(bucket=str(bucket)), "--worker", f"{index}/{count}").code == 0
        found.append(outputs(bucket))
    assert len([name for name in found[0] if name.endswith("manifest.json")]) == 3
    assert len([name for name in found[0] if "/tasks/" in name]) == 6
    assert all(one == found[0] for one in found)


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("stage", ["corpus", "shards"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_whoever_finishes_last_commits_and_the_others_return(tmp_path: Path, stage: str, order: tuple[int, ...]) -> None:
    made = Built(tiny.write_job(tmp_path), tmp_path / "out")
    if stage == "shards":
        assert [made.run(earlier).code for earlier in DATA_STAGES[:2]] == [0, 0]
    for place, index in enumerate(order):
        assert not list(made.bucket.glob(f"{stage}/*/manifest.json"))
        ended = made.run(stage, "--worker", f"{index}/3")
        assert ended.code == 0
        last = place == len(order) - 1
        assert ["other workers have tasks left"] * (not last) == [record["event"] for record in ended.records()]
    assert made.file(f"{stage}/*/manifest.json").exists()


def test_a_worker_that_died_is_made_up_for_by_running_again(tmp_path: Path, built: Built) -> None:
    copy = built.copy(tmp_path)
    for gone in ("shards/*/manifest.json", "shards/*/tasks/00001.json", "shards/*/b/train-*"):
        copy.file(gone).unlink()
    assert copy.run("shards").code == 0
    assert outputs(copy.bucket) == outputs(built.bucket)


def test_the_bytes_do_not_depend_on_where_sources_and_bucket_lie(tmp_path: Path, built: Built) -> None:
    other = build(tmp_path / "quite" / "elsewhere")
    assert outputs(other.bucket) == outputs(built.bucket)
    assert len(outputs(other.bucket)) > 20


def test_manifests_hold_no_path_host_or_time(built: Built) -> None:
    for manifest in built.bucket.glob("*/*/manifest.json"):
        text = manifest.read_text()
        assert str(built.bucket.parent) not in text
        assert "/tmp" not in text  # noqa: S108  # the text, not a file
        assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)
        assert not {"time", "host", "path", "workers", "version", "created"} & set(json.loads(text))


def test_a_stage_that_is_done_changes_nothing(built: Built) -> None:
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in built.bucket.rglob("*")}
    for stage in DATA_STAGES:
        (record,) = built.run(stage).records()
        assert str(record["event"]).endswith("done already")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in built.bucket.rglob("*")} == before


def test_an_edited_source_makes_a_new_corpus_beside_the_old(tmp_path: Path) -> None:
    made = build(tmp_path)
    before = outputs(made.bucket)
    with (tmp_path / "b.txt").open("a") as file:
        file.write("\n\nOne more paragraph.\n")
    assert made.run("corpus").code == 0
    after = outputs(made.bucket)
    assert {name: after[name] for name in before} == before
    assert len(list(made.bucket.glob("corpus/*/manifest.json"))) == 2
    assert_fails(made.run("shards"), "InputError", what="the tokenizer stage has not been done", next="gristmill tokenizer JOB")


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[:-20],
    "no JSON": lambda data: b"\xff" + data,
    "another kind": lambda _: b"[]",
    "an unknown key": lambda data: data.replace(b"{", b'{"surprise": 1,', 1),
    "a missing key": lambda data: data.replace(b'"digest"', b'"digset"', 1),
    "a wrong digest": lambda data: data.replace(b'"digest": "', b'"digest": "Z', 1),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(
    ("stage", "file"),
    [
        ("corpus", "corpus/*/manifest.json"),
        ("tokenizer", "runs/tiny/corpus.json"),
        ("tokenizer", "tokenizer/*/manifest.json"),
        ("shards", "corpus/*/manifest.json"),
        ("shards", "tokenizer/*/manifest.json"),
        ("shards", "shards/*/manifest.json"),
    ],
)
def test_a_damaged_manifest_is_an_input_error(tmp_path: Path, built: Built, stage: str, file: str, damage: str) -> None:
    copy = built.copy(tmp_path)
    path = copy.file(file)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = tree(copy.bucket)
    assert_fails(copy.run(stage), "InputError", what=f"{path} is damaged", found="validation error", expected="this version", next="delete")
    assert tree(copy.bucket) == before


@pytest.mark.parametrize("stage", ["corpus", "shards"])
def test_a_damaged_marker_is_an_input_error(tmp_path: Path, built: Built, stage: str) -> None:
    copy = built.copy(tmp_path)
    copy.file(f"{stage}/*/manifest.json").unlink()
    marker = copy.file(f"{stage}/*/tasks/00001.json")
    marker.write_bytes(marker.read_bytes()[:-9])
    assert_fails(copy.run(stage), "InputError", what=f"{marker} is damaged", expected="_Result", next="delete that file")
    marker.unlink()
    assert copy.run(stage).code == 0
    assert outputs(copy.bucket) == outputs(built.bucket)
