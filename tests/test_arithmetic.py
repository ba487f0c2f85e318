"""model/arithmetic.py: what a model costs, against published counts and against the real tree."""

import subprocess
import sys

import jax
import pytest

from gristmill import config
from gristmill.model import arithmetic, transformer

NANO = config.Model(layers=12, width=768, heads=12, kv_heads=4, mlp_width=2048)
PUBLISHED = {
    "nano": (NANO, 65536, 176_179_968),
    "llammlein-120m": (NANO, 32000, 124_668_672),
    "lilLM": (config.Model(layers=12, width=512, heads=16, kv_heads=8, mlp_width=1408, tied_head=True), 8192, 39_596_544),
    "lilLM-300m": (config.Model(layers=24, width=1024, heads=16, kv_heads=8, mlp_width=2816, tied_head=True), 8192, 291_554_304),
    "brotchen-1b": (config.Model(layers=22, width=2048, heads=32, kv_heads=4, mlp_width=5632), 65536, 1_237_411_840),
    "baguettotron": (config.Model(layers=80, width=576, heads=9, kv_heads=3, mlp_width=1536), 65536, 358_705_728),
    "qwen3-0.6b-brotchen": (
        config.Model(layers=28, width=1024, heads=16, kv_heads=8, head_dim=128, mlp_width=3072, tied_head=True, qk_norm=True),
        65536,
        507_576_320,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_published_and_as_in_the_tree(name: str) -> None:
    model, vocab_size, published = PUBLISHED[name]
    assert arithmetic.parameter_count(model, vocab_size) == published
    spec = transformer.Spec(model, vocab_size, "float32")
    tree = jax.eval_shape(lambda key: transformer.init(spec, key), jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == published


def test_flops_are_six_a_multiplied_parameter_and_causal_attention() -> None:
    # 12 layers of 2,097,152 + 3 * 768 * 2048 - 524,288 matrix parameters and a head of 50,331,648; the embedding is only looked up.
    matrices = 12 * (2 * 768 * 768 + 2 * 768 * 256 + 3 * 768 * 2048) + 65536 * 768
    assert arithmetic.flops_per_token(NANO, 65536, 2048) == 6 * matrices + 6 * 12 * 768 * 2048


def test_a_tied_head_is_multiplied_though_counted_once() -> None:
    tied = NANO.model_copy(update={"tied_head": True})
    assert arithmetic.flops_per_token(tied, 65536, 2048) == arithmetic.flops_per_token(NANO, 65536, 2048)


def test_arithmetic_needs_no_jax() -> None:
    code = "import sys; from gristmill.model import arithmetic; assert 'jax' not in sys.modules, 'jax was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
