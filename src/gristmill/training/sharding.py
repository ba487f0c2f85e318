"""Devices: the mesh, where each array lies on it, and how fast a device can be.

One table, RULES, from logical axis to mesh axis; the placement of parameters, optimizer state and batch follows from it.
Letters: A microbatches of a step, B sequences of a microbatch, T positions.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from gristmill import config
from gristmill.data.packing import Batch
from gristmill.errors import MachineError
from gristmill.model.transformer import LOGICAL_AXES

type Device = Any
"""A `jax.Device`, whose type JAX does not show to type checkers."""

AXES = ("data", "fsdp", "tensor")

RULES: Mapping[str, tuple[str, ...]] = {
    "sequences": ("data", "fsdp"),
    "vocab": ("tensor",),
    "width": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp_width": ("tensor",),
    "layers": (),
    "head_width": (),
    "norm": (),
    "positions": (),
    "microbatches": (),
}
"""Mesh axes that each logical axis is split over."""

PEAK_FLOPS_PER_SECOND: Mapping[str, float] = {
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 peak by the start of JAX's device kind; the first that fits counts (vendors' data sheets, SXM boards)."""

_MEASURED_WIDTH = 1024
_MEASURED_REPEATS = 8


class DeviceBatch(NamedTuple):
    """A global batch on devices; each array [A, B, T], or [B, T] for one microbatch."""

    inputs: jax.Array
    targets: jax.Array
    segment_ids: jax.Array
    positions: jax.Array
    weights: jax.Array


def make_mesh(mesh: config.Mesh, devices: Sequence[Device]) -> Mesh:
    """Devices as (data, fsdp, tensor); data takes what the other two leave.

    Raises:
        MachineError: fsdp * tensor does not divide the devices, or a host would hold no whole share of the batch.
    """
    group = mesh.fsdp * mesh.tensor
    if len(devices) % group:
        raise MachineError(
            "the mesh does not fit the devices",
            found=f"{len(devices)} devices; cluster.train.mesh.fsdp {mesh.fsdp} x tensor {mesh.tensor} = {group}",
            expected="fsdp x tensor divides the number of devices",
            next_step=f"set cluster.train.mesh so that fsdp x tensor is one of {_divisors(len(devices))}",
        )
    processes = len({device.process_index for device in devices})
    shares = len(devices) // mesh.tensor
    if shares % processes:
        raise MachineError(
            "a tensor group would reach over hosts",
            found=f"cluster.train.mesh.tensor {mesh.tensor} with {len(devices) // processes} devices a host",
            expected="tensor divides the devices of one host, as each host feeds its own sequences",
            next_step=f"set cluster.train.mesh.tensor to one of {_divisors(len(devices) // processes)}",
        )
    shape = (len(devices) // group, mesh.fsdp, mesh.tensor)
    return jax.make_mesh(shape, AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def _divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def check_model_fits(mesh: Mesh, model: config.Model, vocab_size: int) -> None:
    """Whether every split axis of the model divides evenly.

    Raises:
        MachineError: an axis does not; the message names the key and the values that do.
    """
    sizes = {
        "model.width": ("width", model.width),
        "model.heads": ("heads", model.heads),
        "model.kv_heads": ("kv_heads", model.kv_heads),
        "model.mlp_width": ("mlp_width", model.mlp_width),
        "tokenizer.vocab_size": ("vocab", vocab_size),
    }
    for key, (axis, size) in sizes.items():
        (mesh_axis,) = RULES[axis]
        if size % mesh.shape[mesh_axis]:
            raise MachineError(
                f"the model cannot be split over the {mesh_axis} axis of the mesh",
                found=f"{key} {size} over cluster.train.mesh.{mesh_axis} {mesh.shape[mesh_axis]}",
                expected=f"cluster.train.mesh.{mesh_axis} divides {key}",
                next_step=f"set cluster.train.mesh.{mesh_axis} to one of {_divisors(math.gcd(size, mesh.size))}, or change {key}",
            )


def check_batch_fits(mesh: Mesh, sequences_per_step: int, accumulation: int) -> None:
    """Whether a microbatch splits evenly over the devices that share it.

    Raises:
        MachineError: it does not.
    """
    shares = math.prod(mesh.shape[axis] for axis in RULES["sequences"])
    if sequences_per_step % (accumulation * shares):
        raise MachineError(
            "a microbatch cannot be split over the devices",
            found=f"{sequences_per_step} sequences a step, train.accumulation_steps {accumulation}, "
            f"data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']} = {shares}",
            expected=f"the sequences of a step are a multiple of {accumulation} x {shares} = {accumulation * shares}",
            next_step="change train.global_batch_tokens or train.accumulation_steps, use fewer devices, or raise cluster.train.mesh.tensor",
        )


def sharding(mesh: Mesh, logical_axes: Sequence[str]) -> NamedSharding:
    """Placement of an array with these logical axes."""
    return NamedSharding(mesh, PartitionSpec(*(RULES[axis] or None for axis in logical_axes)))


def logical_axes(path: tuple[Any, ...]) -> tuple[str, ...]:
    """Logical axes of the parameter at a path of the tree."""
    return LOGICAL_AXES[jax.tree_util.keystr(path, simple=True, separator=".")]


def parameter_shardings(mesh: Mesh, params: Any) -> Any:
    """Placement of each parameter, in the parameters' tree."""
    return jax.tree_util.tree_map_with_path(lambda path, _: sharding(mesh, logical_axes(path)), params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Placement of a batch's [A, B, T] arrays."""
    return sharding(mesh, ("microbatches", "sequences", "positions"))


def put_batch(local_batch: Batch, mesh: Mesh, accumulation: int) -> DeviceBatch:
    """This process's sequences as its part of the global batch on devices, cut into microbatches.

    With n processes, process i holds sequences [i*S/n, (i+1)*S/n) of the S of a step, and each of its microbatches takes a contiguous
    run of them. So what a microbatch holds depends on n; what a step sums over does not.
    """
    placement = batch_sharding(mesh)

    def put(local_ST: NDArray[Any]) -> jax.Array:
        return jax.make_array_from_process_local_data(placement, local_ST.reshape(accumulation, -1, local_ST.shape[1]))

    return DeviceBatch(*(put(array) for array in local_batch))


def peak_flops_per_second(device: Device) -> float:
    """Peak of one device, for MFU: from a table for accelerators; else (CPU) measured.

    The measure is the best of a few 1024 x 1024 float32 matrix products on that device alone. Virtual CPU devices share their cores, so the
    sum of their peaks is no peak of the machine.
    """
    known = next((peak for kind, peak in PEAK_FLOPS_PER_SECOND.items() if device.device_kind.startswith(kind)), None)
    return _measured_flops_per_second(device) if known is None else known


def _measured_flops_per_second(device: Device) -> float:
    matrix = jax.device_put(jnp.ones((_MEASURED_WIDTH, _MEASURED_WIDTH), jnp.float32), device)
    product = jax.jit(lambda left: jnp.matmul(left, left, precision="highest")).lower(matrix).compile()
    seconds: list[float] = []
    for _ in range(_MEASURED_REPEATS):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * _MEASURED_WIDTH**3 / min(seconds)
