"""training/sharding.py: meshes, placements and what cannot be split."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from gristmill import config
from gristmill.data.packing import Batch
from gristmill.errors import MachineError
from gristmill.training import sharding

MODEL = config.Model(layers=2, width=64, heads=4, kv_heads=2, mlp_width=96)


def mesh(fsdp: int = 1, tensor: int = 1, devices: int = 8) -> jax.sharding.Mesh:
    return sharding.make_mesh(config.Mesh(fsdp=fsdp, tensor=tensor), jax.devices()[:devices])


def test_the_data_axis_takes_what_fsdp_and_tensor_leave() -> None:
    assert dict(mesh(fsdp=2, tensor=2).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert dict(mesh(devices=1).shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_a_mesh_that_does_not_fit_the_devices_says_what_would() -> None:
    with pytest.raises(MachineError) as error:
        mesh(fsdp=3)
    assert error.value.exit_code == 78
    assert "8 devices; cluster.train.mesh.fsdp 3 x tensor 1 = 3" in error.value.found
    assert "one of [1, 2, 4, 8]" in error.value.next_step


def test_a_tensor_group_stays_on_one_host() -> None:
    hosts = [SimpleNamespace(process_index=index // 2) for index in range(8)]
    with pytest.raises(MachineError, match="with 2 devices a host") as error:
        sharding.make_mesh(config.Mesh(tensor=4), hosts)
    assert "one of [1, 2]" in error.value.next_step


@pytest.mark.parametrize(
    ("change", "vocab_size", "shape", "found"),
    [
        ({}, 256, {"tensor": 4}, "model.kv_heads 2 over cluster.train.mesh.tensor 4"),
        ({"kv_heads": 4}, 256, {"tensor": 8}, "model.heads 4 over cluster.train.mesh.tensor 8"),
        ({"mlp_width": 97}, 256, {"tensor": 2}, "model.mlp_width 97 over cluster.train.mesh.tensor 2"),
        ({"width": 60}, 256, {"fsdp": 8}, "model.width 60 over cluster.train.mesh.fsdp 8"),
        ({}, 257, {"tensor": 2}, "tokenizer.vocab_size 257 over cluster.train.mesh.tensor 2"),
    ],
)
def test_a_model_that_cannot_be_split_names_the_key(change: dict[str, int], vocab_size: int, shape: dict[str, int], found: str) -> None:
    with pytest.raises(MachineError) as error:
        sharding.check_model_fits(mesh(**shape), MODEL.model_copy(update=change), vocab_size)
    assert error.value.found == found
    assert "one of [1" in error.value.next_step


def test_a_microbatch_that_cannot_be_split_says_the_multiple() -> None:
    sharding.check_batch_fits(mesh(fsdp=2, tensor=2), 16, 4)
    with pytest.raises(MachineError, match="multiple of 4 x 8 = 32"):
        sharding.check_batch_fits(mesh(fsdp=2), 16, 4)


def test_parameters_are_split_by_the_rules() -> None:
    leaf = jax.ShapeDtypeStruct((2, 64, 4, 16), np.float32)
    (placement,) = jax.tree.leaves(sharding.parameter_shardings(mesh(fsdp=2, tensor=2), {"layers": {"attention": {"query": leaf}}}))
    assert placement.shard_shape(leaf.shape) == (2, 32, 2, 16)


def test_a_batch_is_cut_into_microbatches_over_data_and_fsdp() -> None:
    ids_BT = np.arange(16 * 4, dtype=np.int32).reshape(16, 4)
    local = Batch(ids_BT, ids_BT + 1, ids_BT + 2, ids_BT + 3, np.ones((16, 4), np.float32))
    batch = sharding.put_batch(local, mesh(fsdp=2, tensor=2), 2)
    assert all(array.shape == (2, 8, 4) for array in batch)
    assert batch.inputs.sharding.shard_shape((2, 8, 4)) == (2, 2, 4)
    np.testing.assert_array_equal(batch.targets, (ids_BT + 1).reshape(2, 8, 4))
    assert batch.weights.dtype == np.float32


def test_a_known_device_has_its_published_peak_and_a_cpu_a_measured_one() -> None:
    kinds = {
        "TPU v6 lite": 918e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
    }
    for kind, peak in kinds.items():
        assert sharding.peak_flops_per_second(SimpleNamespace(device_kind=kind)) == peak
    assert 1e9 < sharding.peak_flops_per_second(jax.devices()[0]) < 1e13
