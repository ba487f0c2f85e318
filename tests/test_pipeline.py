"""The whole pipeline through the command line, as a person runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numpy_llama
import tiny
from gristmill import jobfile, segments
from gristmill.data import shards
from gristmill.model import transformer
from gristmill.stages import export
from gristmill.text import tokenizers
from gristmill.training import runs, sharding, step

pytest_plugins = ["bucket"]


def gristmill(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XLA_FLAGS": ""}
    command = [sys.executable, "-m", "gristmill", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def tree(folder: Path) -> dict[str, int]:
    """Files by name, with when each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A job that ran, and what it printed."""
    job = tiny.write_job(tmp_path_factory.mktemp("pipeline"))
    return job, gristmill("run", job).stdout


def test_a_run_ends_with_samples_scores_and_an_export(finished: tuple[Path, str]) -> None:
    job, output = finished
    run = job.parent / "out" / "runs" / "tiny"
    assert "held-out bits per byte of all: " in output
    assert f"export: {run / 'export'}" in output
    samples = [json.loads(line) for line in (run / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [sampled["prompt"] for sampled in samples] == ["the", ""]
    assert all(sampled["prompt"] + sampled["text"] in output for sampled in samples)
    assert {path.name for path in (run / "export").iterdir()} == {
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md"),
        "manifest.json",
    }


def test_held_out_bits_per_byte_fall_while_training(finished: tuple[Path, str]) -> None:
    records = segments.read(str(finished[0].parent / "out" / "runs" / "tiny" / "metrics"))
    scores = [(record["step"], record["held_out_bits_per_byte"]) for record in records if "held_out_bits_per_byte" in record]
    assert [step for step, _ in scores] == [0, 4, 8, 12]
    values = [float(str(value)) for _, value in scores]
    assert values == sorted(values, reverse=True)
    assert values[-1] < 0.85 * values[0]


def test_the_step_line_and_the_metrics_say_what_a_person_wants_to_know(finished: tuple[Path, str]) -> None:
    records = list(segments.read(str(finished[0].parent / "out" / "runs" / "tiny" / "metrics")))
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == list(range(1, 13))
    assert set(steps[0]) == {"step", "loss", "learning_rate", "gradient_norm", "tokens_per_second", "mfu", "unix_seconds"}


def test_run_again_it_skips_everything_and_prints_the_same(finished: tuple[Path, str]) -> None:
    job, output = finished
    before = tree(job.parent / "out")
    again = gristmill("run", job)
    after = tree(job.parent / "out")
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed == set()
    assert again.stdout == output
    assert again.stderr.count("done already") == 7


def test_the_export_is_the_model_that_was_scored(finished: tuple[Path, str]) -> None:
    job = jobfile.load(finished[0])
    manifest, tokenizer = shards.current(job)
    program = step.build(
        job.model, job.train, sharding.make_mesh(job.cluster.train.mesh, jax.devices()[:1]), vocab_size=384, steps=job.steps
    )
    params = runs.parameters(job, runs.current(job, manifest), program)
    ids = [tokenizer.bos, *tokenizers.encoder(job.bucket, tokenizer).encode("the und Straße 12").tolist()]
    inputs_BT, positions_BT = jnp.array([ids]), jnp.arange(len(ids))[None]
    expected = transformer.forward(params, program.spec, inputs_BT, jnp.ones_like(inputs_BT), positions_BT)[0]
    exported = numpy_llama.logits(Path(export.folder(job)), ids)
    np.testing.assert_allclose(exported, expected, atol=1e-4)


def test_an_edited_source_makes_everything_after_it_new_and_asks_for_a_run_of_its_own(finished: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(finished[0].parent, tmp_path, dirs_exist_ok=True)
    job = tmp_path / "job.yaml"
    job.write_text(job.read_text().replace(str(finished[0].parent), str(tmp_path)))
    with (job.parent / "b.txt").open("a", encoding="utf-8") as file:
        file.write("\n\nA paragraph that was not there before.")
    for stage in ("corpus", "tokenizer", "shards"):
        folders = set((job.parent / "out" / stage).iterdir())
        gristmill(stage, job)
        assert len(set((job.parent / "out" / stage).iterdir()) - folders) == 1
    with pytest.raises(subprocess.CalledProcessError) as refused:
        gristmill("train", job)
    assert refused.value.returncode == 2
    assert "shards" in refused.value.stderr
    assert "another `run` name" in refused.value.stderr


def test_a_run_that_diverges_ends_with_79_and_keeps_its_metrics(finished: tuple[Path, str]) -> None:
    with pytest.raises(subprocess.CalledProcessError) as diverged:
        gristmill("run", finished[0], "--set", "run=diverges", "--set", "train.learning_rate=1e30")
    assert diverged.value.returncode == 79
    last = json.loads(diverged.value.stderr.splitlines()[-1])
    assert (last["error"], last["event"]) == ("DivergedError", "training diverged")
    assert "lower train.learning_rate" in last["next"]
    assert "LEARNING RATE: train.learning_rate 1e+30 is" in diverged.value.stderr
    kept = [record["step"] for record in segments.read(str(finished[0].parent / "out" / "runs" / "diverges" / "metrics"))]
    assert kept[:2] == [0, 1]
    assert not (finished[0].parent / "out" / "runs" / "diverges" / "manifest.json").exists()


def test_a_prompt_is_continued_on_request_and_the_same_way_each_time(finished: tuple[Path, str]) -> None:
    asked = ("sample", finished[0], "--prompt", "und die", "--set", "sample.temperature=0")
    output = gristmill(*asked).stdout
    assert output.startswith("und die")
    assert gristmill(*asked).stdout == output


def test_a_run_on_gs_gives_the_scores_of_a_local_one(
    finished: tuple[Path, str], emulator: str, gs: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"):
        monkeypatch.setenv(name, emulator)
    monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
    job = tmp_path / "job.yaml"
    job.write_text(finished[0].read_text())
    ended = gristmill("run", job, "--set", f"bucket={gs}/runs")
    assert ended.stdout == finished[1].replace(str(finished[0].parent / "out"), f"{gs}/runs")
    assert gristmill("run", job, "--set", f"bucket={gs}/runs").stderr.count("done already") == 7
