"""training/optimizer.py: rates by step, what decays, and rates that cannot be right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gristmill import config
from gristmill.model import transformer
from gristmill.training import optimizer

TRAIN = config.Train(token_budget=10**6, global_batch_tokens=1000, learning_rate=1e-3, warmup_steps=10, mixture={"a": 1.0})
MODEL = config.Model(layers=2, width=32, heads=2, kv_heads=1, mlp_width=48, qk_norm=True)


def ones() -> transformer.Params:
    spec = transformer.Spec(MODEL, 64, "float32")
    shapes = jax.eval_shape(lambda key: transformer.init(spec, key), jax.random.key(0))
    return jax.tree.map(lambda shape: jnp.ones(shape.shape, shape.dtype), shapes)


def rates(train: config.Train, steps: int) -> np.ndarray:
    return np.array([optimizer.schedule(train, steps)(step) for step in range(steps)])


def test_warmup_begins_above_zero_and_reaches_the_peak() -> None:
    np.testing.assert_allclose(rates(TRAIN, 100)[:10], [1e-4 * (step + 1) for step in range(10)], rtol=1e-5)


def test_cosine_falls_to_the_final_fraction_at_the_last_step() -> None:
    found = rates(TRAIN, 100)
    assert np.all(np.diff(found[9:]) < 0)
    assert found[-1] == pytest.approx(1e-4, rel=1e-5)
    assert found[9 + 45] == pytest.approx(0.55e-3, rel=1e-3)


def test_wsd_stays_at_the_peak_and_falls_linearly_over_the_last_part() -> None:
    train = TRAIN.model_copy(update={"schedule": "wsd", "decay_fraction": 0.2})
    found = rates(train, 100)
    assert optimizer.first_decay_step(train, 100) == 79
    np.testing.assert_allclose(found[9:80], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(np.diff(found[79:]), -0.9e-3 / 20, rtol=1e-3)
    assert found[-1] == pytest.approx(1e-4, rel=1e-5)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_without_warmup_begins_at_the_peak(schedule: str) -> None:
    train = TRAIN.model_copy(update={"schedule": schedule, "warmup_steps": 0})
    assert rates(train, 50)[0] == pytest.approx(1e-3)
    assert rates(train, 1)[0] == pytest.approx(1e-3)


def test_a_longer_wsd_run_has_the_same_rates_until_the_shorter_decays() -> None:
    train = TRAIN.model_copy(update={"schedule": "wsd"})
    shared = optimizer.first_decay_step(train, 100)
    np.testing.assert_array_equal(rates(train, 100)[:shared], rates(train, 200)[:shared])


def test_weight_decay_leaves_norms_alone() -> None:
    train = TRAIN.model_copy(update={"weight_decay": 0.5})
    params = ones()
    chain = optimizer.optimizer(train, 100)
    updates = jax.jit(lambda params: chain.update(jax.tree.map(jnp.zeros_like, params), chain.init(params), params)[0])(params)
    for path, update in jax.tree.leaves_with_path(updates):
        assert bool(jnp.any(update != 0)) != ("norm" in jax.tree_util.keystr(path)), path


def test_gradients_are_clipped_by_their_global_norm() -> None:
    chain = optimizer.optimizer(TRAIN.model_copy(update={"beta1": 0.0}), 100)
    params = ones()
    state = jax.jit(lambda params: chain.update(jax.tree.map(lambda leaf: 100 * leaf, params), chain.init(params), params)[1])(params)
    first_moments = [leaf for path, leaf in jax.tree.leaves_with_path(state) if ".mu" in jax.tree_util.keystr(path)]
    assert float(jnp.sqrt(sum(jnp.sum(moment**2) for moment in first_moments))) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("learning_rate", "parameters", "token_budget", "warned"),
    [
        (6e-6, 176_179_968, 30_400_000_000, "189 times below"),
        (6e-4, 176_179_968, 30_400_000_000, None),
        (3e-3, 1_262_720, 600_000, None),
        (0.5, 1_262_720, 600_000, "times above"),
    ],
)
def test_an_implausible_learning_rate_is_warned_about(learning_rate: float, parameters: int, token_budget: int, warned: str | None) -> None:
    warning = optimizer.learning_rate_warning(learning_rate, parameters, token_budget)
    assert (warning is None) == (warned is None)
    if warning is not None and warned is not None:
        assert warned in warning
        assert f"train.learning_rate {learning_rate:g}" in warning
