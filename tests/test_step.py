"""training/step.py: one loss on every mesh and cut, and what enters it."""

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gristmill import config
from gristmill.data import packing
from gristmill.data.packing import Batch
from gristmill.errors import MachineError
from gristmill.training import sharding, step
from gristmill.training.step import Metrics, Program, TrainState

VOCAB, LENGTH, SEQUENCES, STEPS = 128, 32, 16, 20
MODEL = config.Model(layers=2, width=64, heads=4, kv_heads=2, mlp_width=96, qk_norm=True)
TRAIN = config.Train(
    token_budget=LENGTH * SEQUENCES * STEPS,
    global_batch_tokens=LENGTH * SEQUENCES,
    learning_rate=3e-3,
    warmup_steps=5,
    compute_dtype="float32",
    mixture={"a": 1.0},
)


@cache
def program(devices: int = 1, *, fsdp: int = 1, tensor: int = 1) -> Program:
    mesh = sharding.make_mesh(config.Mesh(fsdp=fsdp, tensor=tensor), jax.devices()[:devices])
    return step.build(MODEL, TRAIN, mesh, vocab_size=VOCAB, steps=STEPS)


def batch(seed: int, sequences: int = SEQUENCES) -> Batch:
    """Rows of documents of 3 to 40 ids, drawn from a skewed vocabulary, so that there is something to learn."""
    random = np.random.default_rng(seed)
    rows: list[packing.Row] = []
    documents = ((VOCAB * random.random(random.integers(3, 40)) ** 3).astype(np.uint16) for _ in iter(int, 1))
    for row in packing.pack(documents, LENGTH + 1):
        rows.append(row)
        if len(rows) == sequences:
            return packing.batch(rows, LENGTH, count=sequences)
    raise AssertionError


def train(program: Program, accumulation: int, steps: int) -> tuple[TrainState, list[Metrics]]:
    state, said = program.init(0), []
    for index in range(steps):
        state, metrics = program.train_step(state, sharding.put_batch(batch(index), program.mesh, accumulation))
        said.append(jax.device_get(metrics))
    return state, said


@pytest.fixture(scope="module")
def one_device() -> list[Metrics]:
    return train(program(), 1, STEPS)[1]


def test_the_first_loss_is_that_of_a_uniform_guess_and_then_falls(one_device: list[Metrics]) -> None:
    assert one_device[0].loss == pytest.approx(math.log(VOCAB), abs=0.1)
    assert one_device[-1].loss < one_device[0].loss - 0.3


def test_metrics_tell_rate_targets_and_gradient_norm(one_device: list[Metrics]) -> None:
    assert [metrics.learning_rate for metrics in one_device[:5]] == pytest.approx([6e-4, 1.2e-3, 1.8e-3, 2.4e-3, 3e-3])
    assert one_device[3].target_tokens == batch(3).weights_BT.sum()
    assert all(metrics.gradient_norm > 0 for metrics in one_device)


@pytest.mark.parametrize("mesh", [{}, {"fsdp": 8}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2}], ids=["8x1", "1x8", "2x4", "2x2 tensor 2"])
def test_losses_over_20_steps_agree_on_every_mesh(mesh: dict[str, int], one_device: list[Metrics]) -> None:
    _, said = train(program(8, **mesh), 1, STEPS)
    np.testing.assert_allclose([metrics.loss for metrics in said], [metrics.loss for metrics in one_device], atol=1e-5, rtol=0)


def test_accumulation_equals_one_large_batch() -> None:
    whole, whole_said = train(program(), 1, 3)
    parts, parts_said = train(program(), 4, 3)
    np.testing.assert_allclose([metrics.loss for metrics in parts_said], [metrics.loss for metrics in whole_said], atol=0, rtol=1e-6)
    np.testing.assert_allclose(
        [metrics.gradient_norm for metrics in parts_said], [metrics.gradient_norm for metrics in whole_said], atol=0, rtol=2e-6
    )
    # Microbatches hold different numbers of targets, so a mean of means would differ here.
    assert len({batch(0).weights_BT[part].sum() for part in np.split(np.arange(SEQUENCES), 4)}) > 1
    first_moments = [jax.tree.leaves(state.optimizer_state)[1:] for state in (parts, whole)]
    for left, right in zip(*first_moments, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6, rtol=0)


def test_the_same_seed_starts_the_same_model_on_every_mesh() -> None:
    for left, right in zip(jax.tree.leaves(program().init(7)), jax.tree.leaves(program(8, fsdp=2, tensor=2).init(7)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_padding_never_counts_in_loss_or_gradients() -> None:
    built = program()
    local = batch(0)
    padding = local.segment_ids_BT == 0
    assert not padding.any()
    cut = np.arange(LENGTH) >= LENGTH - 8
    padded = local._replace(
        segment_ids_BT=np.where(cut, 0, local.segment_ids_BT).astype(np.int32),
        weights_BT=np.where(cut, 0, local.weights_BT).astype(np.float32),
    )
    garbage = padded._replace(
        inputs_BT=np.where(cut, 5, padded.inputs_BT).astype(np.int32), targets_BT=np.where(cut, 9, padded.targets_BT).astype(np.int32)
    )
    results = [built.train_step(built.init(0), sharding.put_batch(each, built.mesh, 1)) for each in (padded, garbage)]
    (state, said), (other_state, other_said) = jax.device_get(results)
    assert said.loss == other_said.loss
    assert said.gradient_norm == pytest.approx(other_said.gradient_norm, rel=1e-6)
    assert said.target_tokens == padded.weights_BT.sum()
    for left, right in zip(jax.tree.leaves(state.optimizer_state), jax.tree.leaves(other_state.optimizer_state), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-7)


def test_weights_and_moments_are_float32_under_bfloat16_compute() -> None:
    mesh = program().mesh
    built = step.build(MODEL, TRAIN.model_copy(update={"compute_dtype": "bfloat16"}), mesh, vocab_size=VOCAB, steps=STEPS)
    given = (built.abstract_state, sharding.put_batch(batch(0), mesh, 2))
    state, metrics = jax.eval_shape(built.train_step, *given)
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if leaf.ndim} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state) if not leaf.ndim} == {jnp.dtype(jnp.int32)}
    assert {leaf.dtype for leaf in metrics} == {jnp.dtype(jnp.float32)}
    assert "xbf16>" in built.train_step.lower(*given).as_text()


def test_every_array_is_made_where_the_abstract_state_says() -> None:
    built = program(8, fsdp=2, tensor=2)
    state = built.init(0)
    stepped, _ = built.train_step(built.init(0), sharding.put_batch(batch(0), built.mesh, 1))
    for found in (state, stepped):
        for leaf, expected in zip(jax.tree.leaves(found), jax.tree.leaves(built.abstract_state), strict=True):
            assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
            assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)
    assert state.params["layers"]["mlp"]["gate"].addressable_shards[0].data.shape == (2, 32, 48)
    assert state.optimizer_state[1][0].mu["embedding"].addressable_shards[0].data.shape == (64, 32)
    assert stepped.step == 1


def test_the_state_given_to_a_step_is_given_up() -> None:
    built = program()
    state = built.init(0)
    built.train_step(state, sharding.put_batch(batch(0), built.mesh, 1))
    assert state.params["embedding"].is_deleted()


def test_evaluation_sums_nats_and_bytes_of_targets() -> None:
    built = program(8, fsdp=4)
    params = built.init(0).params
    token_bytes_V = np.arange(VOCAB, dtype=np.int32) % 5
    local = batch(0)
    sums = jax.device_get(built.eval_step(params, sharding.put_batch(local, built.mesh, 1), token_bytes_V))
    assert sums.targets == local.weights_BT.sum()
    assert sums.bytes == (local.weights_BT * token_bytes_V[local.targets_BT]).sum()
    halves = jax.device_get(built.eval_step(params, sharding.put_batch(local, built.mesh, 2), token_bytes_V))
    np.testing.assert_allclose(sums, halves, rtol=1e-5)
    without = local._replace(weights_BT=local.weights_BT * (token_bytes_V[local.targets_BT] > 0))
    silent = jax.device_get(built.eval_step(params, sharding.put_batch(without, built.mesh, 1), token_bytes_V))
    assert sums.byte_nats == pytest.approx(silent.nats, rel=1e-5)
    assert sums.byte_nats < sums.nats
    assert sums.nats / sums.targets == pytest.approx(math.log(VOCAB), abs=0.1)


def test_a_mesh_the_model_cannot_be_split_over_is_refused_before_compiling() -> None:
    with pytest.raises(MachineError, match=r"model.kv_heads 2 over cluster.train.mesh.tensor 4"):
        program(8, tensor=4)
