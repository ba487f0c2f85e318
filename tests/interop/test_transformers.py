"""Exports against transformers itself, in an environment of its own: `make test-interop`.

GRISTMILL_PYTHON is the Python that has gristmill.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy_llama
import tiny

SHAPES = {"untied": "LlamaForCausalLM", "tied": "LlamaForCausalLM", "grouped": "LlamaForCausalLM", "qk_norm": "Qwen3ForCausalLM"}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    script = Path(__file__).with_name("export_example.py")
    subprocess.run([os.environ["GRISTMILL_PYTHON"], str(script), str(folder)], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_gives_our_logits(name: str, exports: Path) -> None:
    model, loading = AutoModelForCausalLM.from_pretrained(exports / name, output_loading_info=True)
    assert type(model).__name__ == SHAPES[name]
    assert not any(loading[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert next(model.parameters()).dtype == torch.float32
    expected = np.load(exports / name / "expected.npz")
    with torch.no_grad():
        found = model(torch.tensor(expected["ids"].astype(np.int64))).logits.numpy()
    difference = np.abs(found - expected["logits"]).max()
    assert difference < 1e-4


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_continues_a_prompt_as_we_do(name: str, exports: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exports / name)
    expected = np.load(exports / name / "expected.npz")
    prompt = torch.tensor(expected["prompt"].astype(np.int64))[None]
    count = len(expected["continuation"])
    found = model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)
    # min_new_tokens forbids EOS, so that rows where the model would choose it are left out of the comparison.
    ours = expected["continuation"].tolist()
    kept = ours.index(502) if 502 in ours else count
    assert found[0, prompt.shape[1] :].tolist()[:kept] == ours[:kept]


@pytest.mark.parametrize("name", SHAPES)
def test_the_configuration_is_read_as_meant(name: str, exports: Path) -> None:
    settings = AutoConfig.from_pretrained(exports / name)
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (501, 502, 511)
    assert settings.max_position_embeddings == 256
    theta = settings.rope_theta if hasattr(settings, "rope_theta") else settings.rope_parameters["rope_theta"]
    assert theta == (500.0 if name == "grouped" else 10_000.0)


def test_an_export_of_the_pipeline_loads_with_its_tokenizer(tmp_path: Path) -> None:
    job = tiny.write_job(tmp_path)
    subprocess.run(
        [os.environ["GRISTMILL_PYTHON"], "-m", "gristmill", "run", str(job)], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}
    )
    folder = tmp_path / "out" / "runs" / "tiny" / "export"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|bos|>", "<|eos|>", "<|pad|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (373, 382, 383)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (373, 382)
    text = "the und 123; naïve café 🙂\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert max(ids) < model.config.vocab_size == 384
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, numpy_llama.logits(folder, ids), atol=1e-4, rtol=0)
