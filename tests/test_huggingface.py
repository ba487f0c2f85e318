"""interop/huggingface.py: an exported folder, read by an independent implementation, gives our logits."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

import numpy_llama
from gristmill import config
from gristmill.interop.huggingface import SpecialIds, export_llama
from gristmill.model import arithmetic, transformer
from gristmill.model.transformer import Params, Spec

LLAMA = config.Model(layers=2, width=64, heads=4, kv_heads=4, mlp_width=96, initializer_std=0.1)
SHAPES = {
    "untied": LLAMA,
    "tied": LLAMA.model_copy(update={"tied_head": True}),
    "grouped": LLAMA.model_copy(update={"kv_heads": 2, "rope_theta": 500.0}),
    "qk_norm": LLAMA.model_copy(update={"kv_heads": 1, "qk_norm": True, "head_dim": 24, "norm_epsilon": 1e-6}),
}
VOCAB, IDS = 128, [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
SPECIAL = SpecialIds(bos=117, eos=119, pad=127)


def made(model: config.Model, folder: Path) -> tuple[Params, tuple[str, ...]]:
    """Parameters whose norms are not all one, and the files of their export."""
    params = jax.jit(transformer.init, static_argnums=0)(Spec(model, VOCAB, "float32"), jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + random.normal(0, 0.1, leaf.shape).astype(np.float32), params)
    return params, export_llama(params, model, folder, sequence_length=256, special_ids=SPECIAL)


@pytest.mark.parametrize("name", SHAPES)
def test_an_export_read_by_numpy_gives_our_logits(name: str, tmp_path: Path) -> None:
    params, _ = made(SHAPES[name], tmp_path)
    ids = jnp.asarray([IDS], jnp.int32)
    positions = jnp.arange(len(IDS), dtype=jnp.int32)[None]
    forward = jax.jit(transformer.forward, static_argnums=1)
    ours = forward(params, Spec(SHAPES[name], VOCAB, "float32"), ids, jnp.ones_like(ids), positions)
    np.testing.assert_allclose(ours[0], numpy_llama.logits(tmp_path, IDS), atol=1e-4, rtol=0)
    assert np.abs(ours).max() > 0.5


@pytest.mark.parametrize("name", SHAPES)
def test_an_export_holds_every_parameter_once_as_float32(name: str, tmp_path: Path) -> None:
    made(SHAPES[name], tmp_path)
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert sum(tensor.size for tensor in tensors.values()) == arithmetic.parameter_count(SHAPES[name], VOCAB)
    assert {tensor.dtype for tensor in tensors.values()} == {np.dtype(np.float32)}
    assert ("lm_head.weight" in tensors) != SHAPES[name].tied_head


def test_the_configuration_names_the_architecture_and_the_special_ids(tmp_path: Path) -> None:
    made(SHAPES["qk_norm"], tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["architectures"], settings["model_type"]) == (["Qwen3ForCausalLM"], "qwen3")
    assert settings["rope_parameters"] == {"rope_theta": 10_000.0, "rope_type": "default"}
    assert (settings["head_dim"], settings["vocab_size"], settings["max_position_embeddings"]) == (24, 128, 256)
    ids = {"bos_token_id": 117, "eos_token_id": 119, "pad_token_id": 127}
    assert ids.items() <= settings.items()
    assert json.loads((tmp_path / "generation_config.json").read_text()) == ids


def test_two_exports_of_the_same_parameters_are_equal_in_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    written: list[tuple[str, ...]] = []
    for folder in folders:
        folder.mkdir()
        written.append(made(SHAPES["untied"], folder)[1])
    for name in written[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert {path.name for path in folders[0].iterdir()} == set(written[0])
