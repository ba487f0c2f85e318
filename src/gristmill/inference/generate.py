"""Text by sampling, token by token, from parameters; the cache makes each token cost one position.

Letters: B sequences, P positions (prompt and new tokens), V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import NDArray

from gristmill.model import transformer
from gristmill.model.transformer import Cache, Params, Spec


class Sampling(NamedTuple):
    """How text is continued."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int = 2**31 - 1
    """Only the k most likely tokens can be drawn."""
    top_p: float = 1.0
    """Only the fewest tokens that together reach this probability can be drawn, after temperature and top_k; the likeliest always can."""
    seed: int = 0


def generate(params: Params, spec: Spec, prompts: Sequence[Sequence[int]], sampling: Sampling, *, eos_id: int) -> list[list[int]]:
    """New ids after each prompt, up to EOS, which is left out, or `max_new_tokens`.

    The i-th prompt's draws depend on the seed, i and how many ids came before them, not on the other prompts. Each prompt holds at
    least one id (BOS). Compiles once for each number of prompts and longest length.
    """
    lengths = [len(prompt) for prompt in prompts]
    prompts_BP = np.zeros((len(prompts), max(lengths) + sampling.max_new_tokens), np.int32)
    for row, prompt in zip(prompts_BP, prompts, strict=True):
        row[: len(prompt)] = prompt
    numbers = jax.tree.map(jnp.asarray, sampling._replace(seed=np.uint32(sampling.seed)))
    ids_BP = np.asarray(_continue(params, spec, numbers, jnp.asarray(prompts_BP), jnp.asarray(lengths, jnp.int32)))
    return [_until(ids_BP[index, length : length + sampling.max_new_tokens], eos_id) for index, length in enumerate(lengths)]


def _until(ids: NDArray[np.int32], eos_id: int) -> list[int]:
    ends = np.flatnonzero(ids == eos_id)
    return ids[: ends[0] if ends.size else ids.size].tolist()


@partial(jax.jit, static_argnames="spec")
def _continue(
    params: Params, spec: Spec, sampling: Sampling, prompts_BP: Int[Array, "B P"], lengths_B: Int[Array, " B"]
) -> Int[Array, "B P"]:
    """Prompts with each position past its prompt's length filled in."""
    sequences, positions = prompts_BP.shape
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(sampling.seed), jnp.arange(sequences))

    def advance(carry: tuple[Array, Cache], position: Array) -> tuple[tuple[Array, Cache], Array]:
        ids_B, cached = carry
        logits_BV, cached = transformer.decode(params, spec, ids_B, position, cached)
        drawn_B = draw(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, position), sampling)
        ids_B = jnp.where(position + 1 < lengths_B, prompts_BP[:, position + 1], drawn_B)
        return (ids_B, cached), ids_B

    start = (prompts_BP[:, 0], transformer.empty_cache(spec, sequences, positions))
    _, ids_PB = jax.lax.scan(advance, start, jnp.arange(positions - 1))
    return jnp.concatenate([prompts_BP[:, :1], ids_PB.T], axis=1)


def draw(logits_BV: Float[Array, "B V"], keys_B: Key[Array, " B"], sampling: Sampling) -> Int[Array, " B"]:
    """One id for each row of logits, with a random key for each."""
    return jax.lax.cond(
        sampling.temperature == 0,
        lambda: jnp.argmax(logits_BV, axis=-1).astype(jnp.int32),
        lambda: _draw_by_chance(logits_BV / sampling.temperature, keys_B, sampling),
    )


def _draw_by_chance(logits_BV: Array, keys_B: Array, sampling: Sampling) -> Array:
    # Sorted, so that a cut leaves exactly k ids where logits are equal.
    sorted_BV, ids_BV = jax.lax.top_k(logits_BV, logits_BV.shape[1])
    sorted_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < sampling.top_k, sorted_BV, -jnp.inf)
    probabilities_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(probabilities_BV, axis=-1) - probabilities_BV
    # The likeliest has nothing before it; a sum rounded to 1 must not shut out the last ids when all are allowed.
    allowed_BV = (before_BV < sampling.top_p) | (sampling.top_p == 1)
    places_B = jax.vmap(jax.random.categorical)(keys_B, jnp.where(allowed_BV, sorted_BV, -jnp.inf))
    return jnp.take_along_axis(ids_BV, places_B[:, None], axis=1)[:, 0].astype(jnp.int32)
