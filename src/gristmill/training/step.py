"""The mathematics of one step, as pure functions of arrays; reads and writes nothing.

The loss of a step is the sum of weight * nats over the sum of weights of its whole global batch: microbatches and devices only ever sum.
Letters: A microbatches of a step, B sequences of a microbatch, T positions, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.stages import Wrapped
from jaxtyping import Array, Float, Int, UInt32

from gristmill import config
from gristmill.model import loss, transformer
from gristmill.model.transformer import Params, Spec
from gristmill.training import optimizer as optimizers
from gristmill.training import sharding
from gristmill.training.sharding import DeviceBatch


class TrainState(NamedTuple):
    """All that training goes on from; arrays are float32 but for counts."""

    step: Int[Array, ""]
    """Updates completed."""
    params: Params
    optimizer_state: Any


class Metrics(NamedTuple):
    """What one step says of itself, float32 scalars on devices."""

    loss: Float[Array, ""]
    """Nats a target, before the update."""
    learning_rate: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    """Before clipping."""
    target_tokens: Float[Array, ""]
    """Sum of weights."""


class EvalSums(NamedTuple):
    """Sums over a batch, float32 scalars: loss = nats / targets; bits per byte = byte_nats / (ln 2 * bytes)."""

    nats: Float[Array, ""]
    targets: Float[Array, ""]
    byte_nats: Float[Array, ""]
    """Over the targets that stand for bytes, so without special tokens."""
    bytes: Float[Array, ""]


@dataclass(frozen=True)
class Program:
    """The compiled functions of a run on its mesh. Batches come from `sharding.put_batch`."""

    mesh: Mesh
    spec: Spec
    init: Callable[[int], TrainState]
    """A seed to a fresh state, made in its place on the mesh."""
    train_step: Wrapped
    """(TrainState, DeviceBatch) to (TrainState, Metrics): one update. The state that is passed in is given up."""
    eval_step: Wrapped
    """(Params, DeviceBatch, token_bytes_V) to EvalSums, with the number of bytes that each id stands for, int32."""
    abstract_state: TrainState
    """Shape, dtype and sharding of each array of the state."""
    state_shardings: TrainState


def init_state(spec: Spec, optimizer: optax.GradientTransformation, seed: UInt32[Array, ""]) -> TrainState:
    """Step 0 with fresh parameters; the same numbers on every mesh."""
    params = transformer.init(spec, jax.random.key(seed))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def _logits(params: Params, spec: Spec, batch: DeviceBatch) -> Float[Array, "B T V"]:
    return transformer.forward(params, spec, batch.inputs, batch.segment_ids, batch.positions)


def _gradients(params: Params, spec: Spec, batch: DeviceBatch) -> tuple[Float[Array, ""], Float[Array, ""], Params]:
    """Loss of a global batch, its sum of weights, and the loss's gradients; microbatches one after another."""

    def nats(params: Params, microbatch: DeviceBatch) -> tuple[Array, Array]:
        return loss.weighted_sum(_logits(params, spec, microbatch), microbatch.targets, microbatch.weights)

    def add(sums: Any, microbatch: DeviceBatch) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, jax.value_and_grad(nats, has_aux=True)(params, microbatch)), None

    zero = jnp.zeros((), jnp.float32)
    zeros = ((zero, zero), jax.tree.map(jnp.zeros_like, params))
    ((total_nats, weight), gradients), _ = jax.lax.scan(add, zeros, batch)
    return total_nats / weight, weight, jax.tree.map(lambda gradient: gradient / weight, gradients)


def train_step(
    state: TrainState, batch: DeviceBatch, *, spec: Spec, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> tuple[TrainState, Metrics]:
    """One optimizer update on a global batch of [A, B, T] arrays."""
    mean_nats, weight, gradients = _gradients(state.params, spec, batch)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
    metrics = Metrics(mean_nats, jnp.float32(schedule(state.step)), optax.tree.norm(gradients), weight)
    params = optax.apply_updates(state.params, updates)
    return state._replace(step=state.step + 1, params=params, optimizer_state=optimizer_state), metrics


def eval_step(params: Params, batch: DeviceBatch, token_bytes_V: Int[Array, " V"], *, spec: Spec) -> EvalSums:
    """Sums over a batch of [A, B, T] arrays; `token_bytes_V` is the length of each id in bytes, 0 for special tokens."""

    def microbatch_sums(microbatch: DeviceBatch) -> EvalSums:
        nats_BT = microbatch.weights * loss.negative_log_likelihood(_logits(params, spec, microbatch), microbatch.targets)
        bytes_BT = microbatch.weights * token_bytes_V[microbatch.targets]
        return EvalSums(nats_BT.sum(), microbatch.weights.sum(), (nats_BT * (bytes_BT > 0)).sum(), bytes_BT.sum())

    return jax.tree.map(jnp.sum, jax.lax.map(microbatch_sums, batch))


def build(model: config.Model, train: config.Train, mesh: Mesh, *, vocab_size: int, steps: int) -> Program:
    """Everything that is compiled for a run; compiles nothing yet.

    Raises:
        MachineError: the model's axes do not divide over the mesh.
    """
    sharding.check_model_fits(mesh, model, vocab_size)
    hidden = sharding.sharding(mesh, ("sequences", "positions"))
    spec = Spec(model, vocab_size, train.compute_dtype, hidden)
    optimizer, schedule = optimizers.optimizer(train, steps), optimizers.schedule(train, steps)

    def init(seed: UInt32[Array, ""]) -> TrainState:
        return init_state(spec, optimizer, seed)

    def update(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, spec=spec, optimizer=optimizer, schedule=schedule)

    def evaluate(params: Params, batch: DeviceBatch, token_bytes_V: Int[Array, " V"]) -> EvalSums:
        return eval_step(params, batch, token_bytes_V, spec=spec)

    shapes = jax.eval_shape(init, jax.ShapeDtypeStruct((), jnp.uint32))
    shardings = _state_shardings(mesh, shapes, optimizer)
    batch, scalar = sharding.batch_sharding(mesh), sharding.sharding(mesh, ())
    compiled_init = jax.jit(init, out_shardings=shardings)
    return Program(
        mesh=mesh,
        spec=spec,
        init=lambda seed: compiled_init(jnp.uint32(seed)),
        train_step=jax.jit(update, in_shardings=(shardings, batch), out_shardings=(shardings, scalar), donate_argnums=0),
        eval_step=jax.jit(evaluate, in_shardings=(shardings.params, batch, scalar), out_shardings=scalar),
        abstract_state=jax.tree.map(lambda shape, place: shape.update(sharding=place), shapes, shardings),
        state_shardings=shardings,
    )


def _state_shardings(mesh: Mesh, shapes: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
    params, scalar = sharding.parameter_shardings(mesh, shapes.params), sharding.sharding(mesh, ())
    moments = optax.tree.map_params(
        optimizer, lambda _, place: place, shapes.optimizer_state, params, transform_non_params=lambda _: scalar
    )
    return shapes._replace(step=scalar, params=params, optimizer_state=moments)
