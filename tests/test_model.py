"""model/transformer.py and model/loss.py: who sees whom, in which precision, from which start."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from gristmill import config
from gristmill.model import loss, transformer
from gristmill.model.transformer import Params, Spec

MODEL = config.Model(layers=2, width=64, heads=4, kv_heads=2, mlp_width=96, initializer_std=0.1)
SPEC = Spec(MODEL, 128, "float32")
LENGTH = 32


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))


def forward(params: Params, ids: list[list[int]], segments: list[list[int]], spec: Spec = SPEC) -> np.ndarray:
    segments_BT = np.array(segments, np.int32)
    positions_BT = np.array([[row[:index].count(segment) for index, segment in enumerate(row)] for row in segments], np.int32)
    run = jax.jit(transformer.forward, static_argnums=1)
    return np.asarray(run(params, spec, jnp.asarray(ids, jnp.int32), jnp.asarray(segments_BT), jnp.asarray(positions_BT)))


def random_ids(length: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, 128, length).tolist()


def test_one_document_never_changes_another_of_its_row_by_a_bit(params: Params) -> None:
    segments = [[1] * 12 + [2] * 14 + [0] * 6]
    kept = random_ids(14, 0)
    before = forward(params, [random_ids(12, 1) + kept + [0] * 6], segments)
    after = forward(params, [random_ids(12, 2) + kept + random_ids(6, 3)], segments)
    assert np.array_equal(before[0, 12:26], after[0, 12:26])
    assert not np.array_equal(before[0, :12], after[0, :12])


def test_a_document_gets_the_same_logits_anywhere_in_a_row(params: Params) -> None:
    document = random_ids(14, 0)
    alone = forward(params, [document + [0] * 18], [[1] * 14 + [0] * 18])
    behind = forward(params, [random_ids(10, 1) + document + [0] * 8], [[1] * 10 + [2] * 14 + [0] * 8])
    np.testing.assert_allclose(alone[0, :14], behind[0, 10:24], atol=1e-5)


def test_a_position_never_sees_what_comes_after_it(params: Params) -> None:
    first, second = random_ids(LENGTH, 0), random_ids(LENGTH, 0)
    second[20] = (second[20] + 1) % 128
    one, other = forward(params, [first, second], [[1] * LENGTH] * 2)
    assert np.array_equal(one[:20], other[:20])
    assert not np.array_equal(one[20:], other[20:])


def test_rotary_positions_tell_order_apart(params: Params) -> None:
    ids = random_ids(LENGTH, 0)
    swapped = [ids[1], ids[0], *ids[2:]]
    one, other = forward(params, [ids, swapped], [[1] * LENGTH] * 2)
    assert np.abs(one[-1] - other[-1]).max() > 1e-4


def test_logits_are_float32_and_close_under_bfloat16_compute(params: Params) -> None:
    ids, segments = [random_ids(LENGTH, 0)], [[1] * LENGTH]
    exact, rounded = (forward(params, ids, segments, dataclasses.replace(SPEC, compute_dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == np.float32
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()


def test_matrices_are_multiplied_in_the_compute_dtype(params: Params) -> None:
    def operands(spec: Spec) -> set[str]:
        ids = jnp.zeros((1, LENGTH), jnp.int32)
        text = jax.jit(transformer.forward, static_argnums=1).lower(params, spec, ids, ids, ids).as_text()
        products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
        return {dtype for line in products for pair in re.findall(r": \(tensor<\w+x(\w+)>, tensor<\w+x(\w+)>\)", line) for dtype in pair}

    assert operands(SPEC) == {"f32"}
    assert operands(dataclasses.replace(SPEC, compute_dtype="bfloat16")) == {"bf16"}


def test_weights_start_normal_with_small_projections_and_unit_norms() -> None:
    model = MODEL.model_copy(update={"width": 256, "mlp_width": 512, "initializer_std": 0.02, "qk_norm": True})
    tree = jax.jit(transformer.init, static_argnums=0)(Spec(model, 512, "float32"), jax.random.key(0))
    layers = tree["layers"]
    for weight in (tree["embedding"], tree["head"], layers["attention"]["query"], layers["mlp"]["gate"]):
        assert float(jnp.std(weight)) == pytest.approx(0.02, rel=0.02)
    for weight in (layers["attention"]["output"], layers["mlp"]["down"]):
        assert float(jnp.std(weight)) == pytest.approx(0.02 / math.sqrt(4), rel=0.02)
    for norm in (tree["final_norm"], layers["mlp_norm"], layers["attention_norm"], layers["attention"]["query_norm"]):
        assert bool(jnp.all(norm == 1))
    assert not bool(jnp.all(layers["mlp"]["up"][0] == layers["mlp"]["up"][1]))


@pytest.mark.parametrize("options", [{}, {"tied_head": True, "qk_norm": True, "head_dim": 24}])
def test_every_parameter_has_logical_axes_of_its_rank(options: dict[str, object]) -> None:
    model = MODEL.model_copy(update=options)
    tree = jax.eval_shape(lambda key: transformer.init(Spec(model, 128, "float32"), key), jax.random.key(0))
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)}
    assert {name: len(transformer.LOGICAL_AXES[name]) for name in named} == {name: leaf.ndim for name, leaf in named.items()}
    optional = {"head", "layers.attention.query_norm", "layers.attention.key_norm"}
    assert set(transformer.LOGICAL_AXES) - set(named) <= optional
    assert ("head" in named) != model.tied_head


def test_cached_decoding_gives_the_logits_of_the_whole_forward(params: Params) -> None:
    ids = [random_ids(LENGTH, 0), random_ids(LENGTH, 1)]
    whole = forward(params, ids, [[1] * LENGTH] * 2)
    cached = transformer.empty_cache(SPEC, 2, LENGTH)
    step = jax.jit(transformer.decode, static_argnums=1)
    for position in range(LENGTH):
        logits, cached = step(params, SPEC, jnp.asarray([row[position] for row in ids], jnp.int32), jnp.int32(position), cached)
        np.testing.assert_allclose(logits, whole[:, position], atol=1e-5)


def test_loss_is_weighted_nats_of_the_targets() -> None:
    logits_BTV = np.log(np.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.2, 0.6]]], np.float32)) + 7
    targets_BT, weights_BT = jnp.array([[0, 2, 1]], jnp.int32), jnp.array([[1.0, 2.0, 0.0]])
    nats, weight = loss.weighted_sum(jnp.asarray(logits_BTV), targets_BT, weights_BT)
    assert float(nats) == pytest.approx(-math.log(0.5) - 2 * math.log(0.8), rel=1e-5)
    assert float(weight) == 3
    each = loss.negative_log_likelihood(jnp.asarray(logits_BTV), targets_BT)
    np.testing.assert_allclose(each, [[-math.log(0.5), -math.log(0.8), -math.log(0.2)]], rtol=1e-5)


def test_shapes_are_checked_at_the_border(params: Params) -> None:
    ids, short = jnp.zeros((2, 8), jnp.int32), jnp.zeros((2, 7), jnp.int32)
    with pytest.raises(TypeCheckError, match="segment_ids_BT"):
        transformer.forward(params, SPEC, ids, short, ids)
