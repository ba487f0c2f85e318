"""A Llama-like decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Parameters are a plain tree of float32 arrays, each layer's stacked on a leading axis; flax nnx says how they are named and made, and stays
out of compiled code. Attention goes through `attend`, so that training and generation share every other line.

Letters in tensor names and shapes:
    B sequences   T positions   S cached positions   V vocabulary   D width
    L layers      N heads       K kv heads           H head width   M mlp width   F half of a head's width
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float, Int, Key

from gristmill import config

type Params = dict[str, Any]

LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("vocab", "width"),
    "layers.attention_norm": ("layers", "norm"),
    "layers.attention.query": ("layers", "width", "heads", "head_width"),
    "layers.attention.key": ("layers", "width", "kv_heads", "head_width"),
    "layers.attention.value": ("layers", "width", "kv_heads", "head_width"),
    "layers.attention.output": ("layers", "heads", "head_width", "width"),
    "layers.attention.query_norm": ("layers", "norm"),
    "layers.attention.key_norm": ("layers", "norm"),
    "layers.mlp_norm": ("layers", "norm"),
    "layers.mlp.gate": ("layers", "width", "mlp_width"),
    "layers.mlp.up": ("layers", "width", "mlp_width"),
    "layers.mlp.down": ("layers", "mlp_width", "width"),
    "final_norm": ("norm",),
    "head": ("vocab", "width"),
}
"""Logical axes of every parameter, by its path in the tree."""

# Backward keeps what matrices gave and computes attention's [T, T] scores again: a third of the memory, at the same speed on CPU.
_SAVED = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


@dataclass(frozen=True)
class Spec:
    """What is fixed when a model is compiled."""

    model: config.Model
    vocab_size: int
    compute_dtype: Literal["float32", "bfloat16"]
    """What matrices are multiplied in; norms, softmax and logits are float32 in any case."""
    activations: NamedSharding | None = None
    """Where [B, T, D] activations lie; without it the compiler chooses."""


class Cache(NamedTuple):
    """Keys, already rotated, and values of the positions seen so far."""

    keys_LBSKH: Float[Array, "L B S K H"]
    values_LBSKH: Float[Array, "L B S K H"]


class Rotation(NamedTuple):
    """Cosine and sine of each position's angles, float32."""

    cos_BTF: Float[Array, "B T F"]
    sin_BTF: Float[Array, "B T F"]


type Attend = Callable[[Array, Array, Array, Any], tuple[Array, Any]]
"""Queries [B, T, N, H], keys and values [B, T, K, H] and a layer's cache to contexts [B, T, N, H] and the cache's next value."""


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param[Array]:
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32))


def _ones(width: int) -> nnx.Param[Array]:
    return nnx.Param(jnp.ones(width, jnp.float32))


def _rms_norm(inputs: Float[Array, "... D"], scale: nnx.Param[Array], epsilon: float) -> Float[Array, "... D"]:
    wide = inputs.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + epsilon)
    return (wide * inverse * scale[...]).astype(inputs.dtype)


def _project(equation: str, inputs: Float[Array, "..."], weight: nnx.Param[Array]) -> Float[Array, "..."]:
    return jnp.einsum(equation, inputs, weight[...].astype(inputs.dtype))


def _rotate(inputs_BTNH: Float[Array, "B T N H"], rotation: Rotation) -> Float[Array, "B T N H"]:
    first, second = jnp.split(inputs_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation.cos_BTF[:, :, None, :], rotation.sin_BTF[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(inputs_BTNH.dtype)


def _rotation(positions_BT: Int[Array, "B T"], model: config.Model) -> Rotation:
    """Angles of the rotate-half form: a head's dimension i turns with dimension i + H/2, as in the checkpoints of Hugging Face."""
    exponents_F = jnp.arange(0, model.head_width, 2, dtype=jnp.float32) / model.head_width
    angles_BTF = positions_BT[:, :, None].astype(jnp.float32) * model.rope_theta**-exponents_F
    return Rotation(jnp.cos(angles_BTF), jnp.sin(angles_BTF))


class _Attention(nnx.Module):
    def __init__(self, model: config.Model, *, rngs: nnx.Rngs) -> None:
        std, width, head_width = model.initializer_std, model.width, model.head_width
        self.epsilon = model.norm_epsilon
        self.qk_norm = model.qk_norm
        self.query = _normal(rngs, (width, model.heads, head_width), std)
        self.key = _normal(rngs, (width, model.kv_heads, head_width), std)
        self.value = _normal(rngs, (width, model.kv_heads, head_width), std)
        self.output = _normal(rngs, (model.heads, head_width, width), std / math.sqrt(2 * model.layers))
        if model.qk_norm:
            self.query_norm, self.key_norm = _ones(head_width), _ones(head_width)

    def __call__(self, inputs_BTD: Array, rotation: Rotation, attend: Attend, layer_cache: Any) -> tuple[Array, Any]:
        query_BTNH = _project("BTD,DNH->BTNH", inputs_BTD, self.query)
        key_BTKH = _project("BTD,DKH->BTKH", inputs_BTD, self.key)
        value_BTKH = _project("BTD,DKH->BTKH", inputs_BTD, self.value)
        if self.qk_norm:
            query_BTNH = _rms_norm(query_BTNH, self.query_norm, self.epsilon)
            key_BTKH = _rms_norm(key_BTKH, self.key_norm, self.epsilon)
        context_BTNH, layer_cache = attend(_rotate(query_BTNH, rotation), _rotate(key_BTKH, rotation), value_BTKH, layer_cache)
        return _project("BTNH,NHD->BTD", context_BTNH, self.output), layer_cache


class _Mlp(nnx.Module):
    def __init__(self, model: config.Model, *, rngs: nnx.Rngs) -> None:
        self.gate = _normal(rngs, (model.width, model.mlp_width), model.initializer_std)
        self.up = _normal(rngs, (model.width, model.mlp_width), model.initializer_std)
        self.down = _normal(rngs, (model.mlp_width, model.width), model.initializer_std / math.sqrt(2 * model.layers))

    def __call__(self, inputs_BTD: Array) -> Array:
        gate_BTM = jax.nn.silu(_project("BTD,DM->BTM", inputs_BTD, self.gate))
        return _project("BTM,MD->BTD", gate_BTM * _project("BTD,DM->BTM", inputs_BTD, self.up), self.down)


class _Layer(nnx.Module):
    def __init__(self, model: config.Model, *, rngs: nnx.Rngs) -> None:
        self.epsilon = model.norm_epsilon
        self.attention_norm = _ones(model.width)
        self.attention = _Attention(model, rngs=rngs)
        self.mlp_norm = _ones(model.width)
        self.mlp = _Mlp(model, rngs=rngs)

    def __call__(self, hidden_BTD: Array, rotation: Rotation, attend: Attend, layer_cache: Any) -> tuple[Array, Any]:
        normed_BTD = _rms_norm(hidden_BTD, self.attention_norm, self.epsilon)
        attended_BTD, layer_cache = self.attention(normed_BTD, rotation, attend, layer_cache)
        hidden_BTD += attended_BTD
        return hidden_BTD + self.mlp(_rms_norm(hidden_BTD, self.mlp_norm, self.epsilon)), layer_cache


class _Decoder(nnx.Module):
    def __init__(self, spec: Spec, *, rngs: nnx.Rngs) -> None:
        model, table = spec.model, (spec.vocab_size, spec.model.width)
        self.spec = spec
        self.embedding = _normal(rngs, table, model.initializer_std)
        layer_keys = jax.random.split(rngs.params(), model.layers)
        self.layers = nnx.vmap(lambda key: _Layer(model, rngs=nnx.Rngs(params=key)))(layer_keys)
        self.final_norm = _ones(model.width)
        if not model.tied_head:
            self.head = _normal(rngs, table, model.initializer_std)

    def __call__(self, inputs_BT: Array, positions_BT: Array, attend: Attend, layers_cache: Any) -> tuple[Array, Any]:
        # Accelerators multiply float32 in bfloat16 or tf32 unless told otherwise.
        with jax.default_matmul_precision("highest" if self.spec.compute_dtype == "float32" else "default"):
            hidden_BTD, layers_cache = self._hidden(inputs_BT, positions_BT, attend, layers_cache)
            weight_VD = (self.embedding if self.spec.model.tied_head else self.head)[...].astype(hidden_BTD.dtype)
            return jnp.einsum("BTD,VD->BTV", hidden_BTD, weight_VD, preferred_element_type=jnp.float32), layers_cache

    def _hidden(self, inputs_BT: Array, positions_BT: Array, attend: Attend, layers_cache: Any) -> tuple[Array, Any]:
        spec = self.spec
        rotation = _rotation(positions_BT, spec.model)
        layer_structure, layers = nnx.split(self.layers)

        def place(hidden_BTD: Array) -> Array:
            return hidden_BTD if spec.activations is None else jax.lax.with_sharding_constraint(hidden_BTD, spec.activations)

        @partial(jax.checkpoint, policy=_SAVED, prevent_cse=False)
        def run_layer(hidden_BTD: Array, layer_and_cache: tuple[Any, Any]) -> tuple[Array, Any]:
            layer, layer_cache = layer_and_cache
            hidden_BTD, layer_cache = nnx.merge(layer_structure, layer)(hidden_BTD, rotation, attend, layer_cache)
            return place(hidden_BTD), layer_cache

        hidden_BTD = place(self.embedding[...].astype(spec.compute_dtype)[inputs_BT])
        hidden_BTD, layers_cache = jax.lax.scan(run_layer, hidden_BTD, (layers, layers_cache))
        return _rms_norm(hidden_BTD, self.final_norm, spec.model.norm_epsilon), layers_cache


@cache
def _structure(spec: Spec) -> nnx.GraphDef[_Decoder]:
    return nnx.split(nnx.eval_shape(lambda: _Decoder(spec, rngs=nnx.Rngs(0))))[0]


def init(spec: Spec, key: Key[Array, ""]) -> Params:
    """Fresh parameters, float32: normal(initializer_std), output projections less by sqrt(2 layers) (GPT-2), norms one.

    The tree has the paths of LOGICAL_AXES, without `head` when tied and without `*_norm` of queries and keys unless asked.
    """
    return nnx.to_pure_dict(nnx.state(_Decoder(spec, rngs=nnx.Rngs(params=key)), nnx.Param))


def forward(
    params: Params,
    spec: Spec,
    inputs_BT: Int[Array, "B T"],
    segment_ids_BT: Int[Array, "B T"],
    positions_BT: Int[Array, "B T"],
) -> Float[Array, "B T V"]:
    """Logits, float32. A position sees the positions before it, and itself, in its own segment."""
    mask_B1TT = _document_mask(segment_ids_BT)

    def attend(query_BTNH: Array, key_BTKH: Array, value_BTKH: Array, _: None) -> tuple[Array, None]:
        return jax.nn.dot_product_attention(query_BTNH, key_BTKH, value_BTKH, mask=mask_B1TT), None

    return nnx.merge(_structure(spec), params)(inputs_BT, positions_BT, attend, None)[0]


def _document_mask(segment_ids_BT: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    length = segment_ids_BT.shape[1]
    causal_TT = jnp.tril(jnp.ones((length, length), bool))
    return (causal_TT & (segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]))[:, None]


def empty_cache(spec: Spec, sequences: int, positions: int) -> Cache:
    """A cache with room for that many positions of that many sequences, in the compute dtype."""
    shape = (spec.model.layers, sequences, positions, spec.model.kv_heads, spec.model.head_width)
    return Cache(jnp.zeros(shape, spec.compute_dtype), jnp.zeros(shape, spec.compute_dtype))


def decode(
    params: Params, spec: Spec, inputs_B: Int[Array, " B"], position: Int[Array, ""], cached: Cache
) -> tuple[Float[Array, "B V"], Cache]:
    """Logits, float32, after one more token for each sequence, all at the same position; the cache holds the positions before it."""
    seen_11S = (jnp.arange(cached.keys_LBSKH.shape[2]) <= position)[None, None, None, :]

    def attend(query_B1NH: Array, key_B1KH: Array, value_B1KH: Array, layer_cache: Cache) -> tuple[Array, Cache]:
        keys_BSKH = jax.lax.dynamic_update_slice_in_dim(layer_cache.keys_LBSKH, key_B1KH, position, axis=1)
        values_BSKH = jax.lax.dynamic_update_slice_in_dim(layer_cache.values_LBSKH, value_B1KH, position, axis=1)
        context_B1NH = jax.nn.dot_product_attention(query_B1NH, keys_BSKH, values_BSKH, mask=seen_11S)
        return context_B1NH, Cache(keys_BSKH, values_BSKH)

    positions_B1 = jnp.broadcast_to(position, (inputs_B.shape[0], 1))
    logits_B1V, cached = nnx.merge(_structure(spec), params)(inputs_B[:, None], positions_B1, attend, cached)
    return logits_B1V[:, 0], cached
