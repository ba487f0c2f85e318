"""Shards and the loader: every token once an epoch, the same batches for any number of processes."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import tiny
from gristmill import jobfile, storage
from gristmill.config import Job
from gristmill.data import loader, mixture, shards
from gristmill.data.loader import Slice
from gristmill.data.packing import Batch
from gristmill.data.shards import Rows, ShardsManifest
from gristmill.manifest import Context
from gristmill.stages import corpus, tokenizer
from gristmill.stages import shards as stage
from gristmill.text import documents, tokenizers

pytest_plugins = ["bucket"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, ShardsManifest]:
    folder = tiny.write_sources(tmp_path_factory.mktemp("shards"))
    job = jobfile.validate(tiny.job(folder))
    corpus.run(job, Context())
    tokenizer.run(job, Context())
    manifest = stage.run(job, Context())
    assert manifest is not None
    return job, manifest


def pairs(batches: list[Batch]) -> Counter[tuple[int, int]]:
    found: Counter[tuple[int, int]] = Counter()
    for one in batches:
        weighed = one.weights_BT == 1
        found.update(zip(one.inputs_BT[weighed].tolist(), one.targets_BT[weighed].tolist(), strict=True))
    return found


@pytest.mark.parametrize("source", ["a", "b"])
def test_an_epoch_trains_on_every_token_of_every_document_but_its_first_exactly_once(
    built: tuple[Job, ShardsManifest], source: str
) -> None:
    job, manifest = built
    found = documents.current(job)
    trained = tokenizers.current(job, found.digest)
    encoder = tokenizers.encoder(job.bucket, trained)
    expected: Counter[tuple[int, int]] = Counter()
    for part in range(len(found.parts)):
        if found.parts[part].source == source:
            for document in documents.read(job.bucket, found, part, "train"):
                expected.update(pairwise([trained.bos, *encoder.encode(document.text).tolist(), trained.eos]))
    mixed = mixture.Mixture({source: job.train.weights()["a"] / job.train.weights()["a"]}, {source: manifest.counts(source, "train").rows})
    rows = Rows(job.bucket, manifest, manifest.of(source, "train"))
    epoch = [rows[mixture.row_at(mixed, 0, position).row] for position in range(len(rows))]
    batches = list(loader.held_out_batches(epoch, manifest.sequence_length, 8, Slice()))
    assert pairs(batches) == expected
    assert sum(expected.values()) == manifest.counts(source, "train").tokens - manifest.counts(source, "train").documents
    ends = sum(int(np.sum((one.targets_BT == trained.eos) * one.weights_BT)) for one in batches)
    assert ends == manifest.counts(source, "train").documents


def test_training_and_held_out_rows_hold_different_documents(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    found = documents.current(job)
    for source in job.corpus.sources:
        assert manifest.counts(source, "train").documents == found.sources[source].train.documents
        assert manifest.counts(source, "held_out").documents == found.sources[source].held_out.documents


@pytest.mark.parametrize("processes", [2, 4, 8])
def test_any_number_of_processes_reads_the_same_global_batches(built: tuple[Job, ShardsManifest], processes: int) -> None:
    job, manifest = built
    whole = list(loader.training(job, manifest, Slice(), 0))
    parts = [list(loader.training(job, manifest, Slice(index, processes), 0)) for index in range(processes)]
    assert len(whole) == job.steps
    for step, one in enumerate(whole):
        for name, array in one._asdict().items():
            together = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(together, array)


def test_a_loader_started_at_a_step_reads_what_it_would_have_read(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    whole, late = list(loader.training(job, manifest, Slice(), 0)), list(loader.training(job, manifest, Slice(), 5))
    assert len(late) == job.steps - 5
    for one, other in zip(whole[5:], late, strict=True):
        np.testing.assert_array_equal(one.inputs_BT, other.inputs_BT)


def test_batches_hold_the_rows_that_the_mixture_names(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    mixed = loader.mixture(job, manifest)
    rows = {source: Rows(job.bucket, manifest, manifest.of(source, "train")) for source in job.corpus.sources}
    for step, one in enumerate(loader.training(job, manifest, Slice(), 0)):
        for place in range(job.sequences_per_step):
            named = mixture.row_at(mixed, job.train.seed, step * job.sequences_per_step + place)
            ids = rows[named.source][named.row].ids
            np.testing.assert_array_equal(one.inputs_BT[place, : ids.size - 1], ids[: job.shards.sequence_length][: ids.size - 1])


@pytest.mark.parametrize("processes", [1, 2])
def test_held_out_batches_hold_every_row_once_and_are_filled_with_empty_ones(built: tuple[Job, ShardsManifest], processes: int) -> None:
    job, manifest = built
    rows = loader.held_out_rows(job, manifest, "a")
    assert len(rows) % 8 != 0
    parts = [list(loader.held_out_batches(rows, manifest.sequence_length, 8, Slice(index, processes))) for index in range(processes)]
    assert {len(part) for part in parts} == {-(-len(rows) // 8)}
    weight = sum(float(one.weights_BT.sum()) for part in parts for one in part)
    counts = manifest.counts("a", "held_out")
    assert weight == counts.tokens - counts.documents


def test_held_out_rows_are_a_fixed_prefix_by_id(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    every = loader.held_out_rows(job, manifest, "a")
    fewer = job.model_copy(update={"evaluate": job.evaluate.model_copy(update={"max_tokens": 10 * manifest.sequence_length})})
    some = loader.held_out_rows(fewer, manifest, "a")
    assert 10 <= len(some) <= 11 + len(manifest.of("a", "held_out"))
    np.testing.assert_array_equal(some[0].ids, every[0].ids)


def test_less_than_a_hundredth_of_a_shard_is_padding(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    for source in job.corpus.sources:
        counts = manifest.counts(source, "train")
        assert counts.padding < 0.01 * counts.rows * (manifest.sequence_length + 1)
        assert counts.padding < len(manifest.of(source, "train")) * (manifest.sequence_length + 1) + counts.rows


def test_the_ledger_is_known_without_reading_data_and_names_the_shards(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    mixed = loader.mixture(job, manifest)
    digests = [mixture.step_digest(mixed, job.train.seed, step, job.sequences_per_step, manifest.digest) for step in range(job.steps)]
    assert len(set(digests)) == job.steps
    assert digests[0] != mixture.step_digest(mixed, job.train.seed, 0, job.sequences_per_step, "another")


def test_metadata_of_intact_shards_passes(built: tuple[Job, ShardsManifest]) -> None:
    job, manifest = built
    shards.check_metadata(job.bucket, manifest)
    assert all(Path(shards.folder(job.bucket, manifest.digest), shard.file.name).exists() for shard in manifest.shards)


def test_rows_on_gs_are_read_through_copies_that_stay_within_their_room(
    built: tuple[Job, ShardsManifest], gs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, manifest = built
    one = manifest.of("a", "train")[0]
    twice = [one, one.model_copy(update={"file": one.file.model_copy(update={"name": "a/again"})})]
    path = Path(shards.folder(job.bucket, manifest.digest), one.file.name)
    for shard in twice:
        storage.commit(storage.join(shards.folder(gs, manifest.digest), shard.file.name), path.read_bytes())
    monkeypatch.setattr(shards, "_CACHE_BYTES", one.file.size_bytes)
    local, remote = Rows(job.bucket, manifest, [one]), Rows(gs, manifest, twice)
    for index in (0, len(local), 1, len(local) + 1):
        np.testing.assert_array_equal(remote[index].ids, local[index % len(local)].ids)
    copies = remote._copies  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    assert copies is not None
    assert len(list(copies.iterdir())) == 1
    del remote
    assert not copies.exists()
