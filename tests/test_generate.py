"""inference/generate.py: tokens from the cache are the model's tokens, and draws repeat."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gristmill import config
from gristmill.inference import generate as generation
from gristmill.inference.generate import Sampling, generate
from gristmill.model import transformer
from gristmill.model.transformer import Params, Spec

SPEC = Spec(config.Model(layers=2, width=64, heads=4, kv_heads=2, mlp_width=96, qk_norm=True, initializer_std=0.3), 64, "float32")
NEVER = -1
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10]]


@pytest.fixture(scope="module")
def params() -> Params:
    return jax.jit(transformer.init, static_argnums=0)(SPEC, jax.random.key(0))


def test_greedy_takes_the_argmax_of_the_uncached_forward(params: Params) -> None:
    length = 6 + 12
    uncached = jax.jit(transformer.forward, static_argnums=1)
    for prompt, found in zip(PROMPTS, generate(params, SPEC, PROMPTS, Sampling(12), eos_id=NEVER), strict=True):
        ids = list(prompt)
        for _ in range(12):
            row = jnp.asarray([ids + [0] * (length - len(ids))], jnp.int32)
            logits = uncached(params, SPEC, row, jnp.ones_like(row), jnp.arange(length, dtype=jnp.int32)[None])
            ids.append(int(jnp.argmax(logits[0, len(ids) - 1])))
        assert found == ids[len(prompt) :]


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_a_narrow_draw_is_greedy(params: Params, narrow: dict[str, Any]) -> None:
    greedy = generate(params, SPEC, PROMPTS, Sampling(12), eos_id=NEVER)
    assert generate(params, SPEC, PROMPTS, Sampling(12, temperature=1.5, seed=3, **narrow), eos_id=NEVER) == greedy


def test_draws_repeat_for_a_seed_and_differ_for_another(params: Params) -> None:
    def draw(seed: int) -> list[list[int]]:
        return generate(params, SPEC, PROMPTS, Sampling(12, temperature=1.0, seed=seed), eos_id=NEVER)

    assert draw(2**32 - 1) == draw(2**32 - 1)
    assert draw(1) != draw(2)


def test_rows_of_other_lengths_change_nothing(params: Params) -> None:
    together = generate(params, SPEC, PROMPTS, Sampling(12), eos_id=NEVER)
    assert together == [generate(params, SPEC, [prompt], Sampling(12), eos_id=NEVER)[0] for prompt in PROMPTS]
    drawn = Sampling(12, temperature=1.0, seed=5)
    assert generate(params, SPEC, PROMPTS, drawn, eos_id=NEVER)[0] == generate(params, SPEC, PROMPTS[:1], drawn, eos_id=NEVER)[0]


def test_equal_prompts_of_one_call_are_drawn_apart(params: Params) -> None:
    first, second = generate(params, SPEC, [[1, 2], [1, 2]], Sampling(12, temperature=1.0), eos_id=NEVER)
    assert first != second


def test_each_row_stops_before_its_own_eos(params: Params) -> None:
    free = generate(params, SPEC, PROMPTS, Sampling(12), eos_id=NEVER)
    eos = free[0][4]
    stopped = generate(params, SPEC, PROMPTS, Sampling(12), eos_id=eos)
    assert stopped == [row[: row.index(eos)] if eos in row else row for row in free]
    assert len(stopped[0]) <= 4


def counts(sampling: Sampling) -> np.ndarray:
    logits_BV = jnp.log(jnp.tile(jnp.array([0.1, 0.4, 0.2, 0.3]), (4000, 1)))
    drawn = generation.draw(logits_BV, jax.random.split(jax.random.key(0), 4000), jax.tree.map(jnp.asarray, sampling))
    return np.bincount(np.asarray(drawn), minlength=4) / 4000


def test_draws_follow_the_probabilities() -> None:
    np.testing.assert_allclose(counts(Sampling(1, temperature=1.0)), [0.1, 0.4, 0.2, 0.3], atol=0.03)
    squared = np.array([0.01, 0.16, 0.04, 0.09])
    np.testing.assert_allclose(counts(Sampling(1, temperature=0.5)), squared / squared.sum(), atol=0.03)


def test_top_k_and_top_p_keep_the_likeliest_tokens() -> None:
    np.testing.assert_allclose(counts(Sampling(1, temperature=1.0, top_k=2)), [0, 4 / 7, 0, 3 / 7], atol=0.03)
    np.testing.assert_allclose(counts(Sampling(1, temperature=1.0, top_p=0.75)), [0, 4 / 9, 2 / 9, 3 / 9], atol=0.03)
    assert counts(Sampling(1, temperature=1.0, top_p=0.35))[1] == 1
