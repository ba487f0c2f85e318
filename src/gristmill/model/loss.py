"""Next-token loss from logits, in nats. Letters: B sequences, T positions, V vocabulary."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def negative_log_likelihood(logits_BTV: Float[Array, "B T V"], targets_BT: Int[Array, "B T"]) -> Float[Array, "B T"]:
    """Nats that each target costs, float32."""
    wide_BTV = logits_BTV.astype(jnp.float32)
    target_logits_BT = jnp.take_along_axis(wide_BTV, targets_BT[:, :, None], axis=-1)[:, :, 0]
    return jax.nn.logsumexp(wide_BTV, axis=-1) - target_logits_BT


def weighted_sum(
    logits_BTV: Float[Array, "B T V"], targets_BT: Int[Array, "B T"], weights_BT: Float[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Sum of weight * nats, and sum of weights. Their quotient over a whole global batch is its loss."""
    return jnp.sum(weights_BT * negative_log_likelihood(logits_BTV, targets_BT)), jnp.sum(weights_BT)
