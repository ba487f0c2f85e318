"""Run by gristmill's Python: exports a small model of each shape into argv[1]/<shape>, with what gristmill computes beside it."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gristmill import config
from gristmill.inference.generate import Sampling, generate
from gristmill.interop.huggingface import SpecialIds, export_llama
from gristmill.model import transformer

LLAMA = config.Model(layers=3, width=64, heads=4, kv_heads=4, mlp_width=96, initializer_std=0.1)
SHAPES = {
    "untied": LLAMA,
    "tied": LLAMA.model_copy(update={"tied_head": True}),
    "grouped": LLAMA.model_copy(update={"kv_heads": 2, "rope_theta": 500.0}),
    "qk_norm": LLAMA.model_copy(update={"kv_heads": 2, "qk_norm": True, "head_dim": 24, "tied_head": True, "norm_epsilon": 1e-6}),
}
VOCAB, LENGTH, NEW = 512, 256, 32


def export(model: config.Model, folder: Path) -> None:
    """The files of an export, and expected.npz: ids, their logits, a prompt and its greedy continuation."""
    folder.mkdir(parents=True)
    spec, random = transformer.Spec(model, VOCAB, "float32"), np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + random.normal(0, 0.1, leaf.shape).astype(np.float32), transformer.init(spec, jax.random.key(0))
    )
    export_llama(params, model, folder, sequence_length=LENGTH, special_ids=SpecialIds(bos=501, eos=502, pad=511))
    ids_BT = random.integers(0, 500, (2, LENGTH)).astype(np.int32)
    positions_BT = np.tile(np.arange(LENGTH, dtype=np.int32), (2, 1))
    logits_BTV = jax.jit(transformer.forward, static_argnums=1)(
        params, spec, *map(jnp.asarray, (ids_BT, np.ones_like(ids_BT), positions_BT))
    )
    prompt = ids_BT[0, :16].tolist()
    (continuation,) = generate(params, spec, [prompt], Sampling(NEW), eos_id=-1)
    np.savez(folder / "expected.npz", ids=ids_BT, logits=np.asarray(logits_BTV), prompt=prompt, continuation=continuation)


if __name__ == "__main__":
    for name, shape in SHAPES.items():
        export(shape, Path(sys.argv[1]) / name)
