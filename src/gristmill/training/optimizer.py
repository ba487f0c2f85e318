"""AdamW with a learning-rate schedule, from the job's train section; and whether its peak is plausible."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gristmill import config
from gristmill.training import sharding

_PLAUSIBLE_FACTOR = 10


def first_decay_step(train: config.Train, steps: int) -> int:
    """The step from whose rate on the schedule falls; the rates before it do not depend on `steps` under wsd."""
    peak = _first_peak_step(train)
    return peak if train.schedule == "cosine" else max(peak, steps - 1 - max(1, round(train.decay_fraction * steps)))


def _first_peak_step(train: config.Train) -> int:
    return max(train.warmup_steps - 1, 0)


def schedule(train: config.Train, steps: int) -> optax.Schedule:
    """Learning rate by step, counted from 0.

    It rises as (step + 1) / warmup_steps, so the first step already learns, and reaches the final fraction at the last step:
    along a cosine after warmup, or (wsd) linearly over the last decay_fraction of the steps.
    """
    peak_step, decay_step = _first_peak_step(train), first_decay_step(train, steps)
    decay_steps = max(1, steps - 1 - decay_step)
    rate, final = train.learning_rate, train.learning_rate * train.final_learning_rate_fraction
    decay = (
        optax.cosine_decay_schedule(rate, decay_steps, alpha=train.final_learning_rate_fraction)
        if train.schedule == "cosine"
        else optax.linear_schedule(rate, final, decay_steps)
    )
    after_warmup = optax.join_schedules([optax.constant_schedule(rate), decay], [decay_step - peak_step])
    if not peak_step:
        return after_warmup
    return optax.join_schedules([optax.linear_schedule(rate / train.warmup_steps, rate, peak_step), after_warmup], [peak_step])


def decay_mask(params: Any) -> Any:
    """Which parameters decay: matrices, embedding and head, whose rank without the axis of layers is at least 2."""
    return jax.tree_util.tree_map_with_path(lambda path, _: len(set(sharding.logical_axes(path)) - {"layers"}) > 1, params)


def optimizer(train: config.Train, steps: int) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW with float32 moments."""
    return optax.chain(
        optax.clip_by_global_norm(train.clip_norm),
        optax.adamw(
            schedule(train, steps),
            b1=train.beta1,
            b2=train.beta2,
            eps=train.epsilon,
            mu_dtype=jnp.float32,
            weight_decay=train.weight_decay,
            mask=decay_mask,
        ),
    )


def suggested_learning_rate(parameters: int, token_budget: int) -> float:
    """Peak rate by the scaling law 0.3118 * C^-0.125 with C = 6 * parameters * tokens (DeepSeek LLM, arXiv 2401.02954, section 3)."""
    return 0.3118 * (6.0 * parameters * token_budget) ** -0.125


def learning_rate_warning(learning_rate: float, parameters: int, token_budget: int) -> str | None:
    """A sentence when the peak is more than ten times off the scaling law, either way; None when it is not."""
    suggested = suggested_learning_rate(parameters, token_budget)
    ratio = learning_rate / suggested
    if 1 / _PLAUSIBLE_FACTOR <= ratio <= _PLAUSIBLE_FACTOR:
        return None
    off = f"{1 / ratio:.0f} times below" if ratio < 1 else f"{ratio:.0f} times above"
    return (
        f"train.learning_rate {learning_rate:g} is {off} the {suggested:.1e} that a scaling law suggests "
        f"for {parameters:,} parameters and {token_budget:,} tokens"
    )
