"""Parameters as a folder that Hugging Face transformers, vLLM and llama.cpp read: safetensors, config and generation config.

Reads nothing, writes three files whose bytes depend on the arguments alone. The architecture is LlamaForCausalLM, or Qwen3ForCausalLM when
queries and keys are normalised; both keep rotary halves as we do, so that weights are only reshaped.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gristmill import config

type Tensors = dict[str, NDArray[np.float32]]

_WEIGHTS, _CONFIG, _GENERATION = "model.safetensors", "config.json", "generation_config.json"


@dataclass(frozen=True)
class SpecialIds:
    """Ids with a role in the exported configuration."""

    bos: int
    eos: int
    pad: int


def export_llama(
    params: Mapping[str, Any], model: config.Model, folder: Path, *, sequence_length: int, special_ids: SpecialIds
) -> tuple[str, ...]:
    """Write parameters, as numpy arrays in our tree, into an existing folder.

    Returns:
        Names of the files written.
    """
    vocab_size = params["embedding"].shape[0]
    ids = {"bos_token_id": special_ids.bos, "eos_token_id": special_ids.eos, "pad_token_id": special_ids.pad}
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in _tensors(params, model).items()}
    # transformers refuses files whose metadata does not say which framework's layout they have.
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    _write_json(folder / _CONFIG, {**_architecture(model, vocab_size, sequence_length), **ids})
    _write_json(folder / _GENERATION, ids)
    return (_WEIGHTS, _CONFIG, _GENERATION)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _architecture(model: config.Model, vocab_size: int, sequence_length: int) -> dict[str, Any]:
    """Keys of config.json; rotary positions stand in the forms of both transformers 4 and 5."""
    return {
        "architectures": ["Qwen3ForCausalLM" if model.qk_norm else "LlamaForCausalLM"],
        "model_type": "qwen3" if model.qk_norm else "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "head_dim": model.head_width,
        "hidden_act": "silu",
        "hidden_size": model.width,
        "initializer_range": model.initializer_std,
        "intermediate_size": model.mlp_width,
        "max_position_embeddings": sequence_length,
        "num_attention_heads": model.heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.kv_heads,
        "rms_norm_eps": model.norm_epsilon,
        "rope_parameters": {"rope_theta": model.rope_theta, "rope_type": "default"},
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": model.tied_head,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": vocab_size,
        **({"use_sliding_window": False} if model.qk_norm else {"mlp_bias": False}),
    }


def _tensors(params: Mapping[str, Any], model: config.Model) -> Tensors:
    tensors: Tensors = {"model.embed_tokens.weight": params["embedding"], "model.norm.weight": params["final_norm"]}
    if not model.tied_head:
        tensors["lm_head.weight"] = params["head"]
    for index in range(model.layers):
        for name, tensor in _layer_tensors(params["layers"], index, model).items():
            tensors[f"model.layers.{index}.{name}.weight"] = tensor
    return tensors


def _layer_tensors(layers: Mapping[str, Any], index: int, model: config.Model) -> Tensors:
    """Torch's linear layers hold [outputs, inputs], ours [inputs, outputs], with heads apart from their width."""
    attention, mlp = layers["attention"], layers["mlp"]
    tensors: Tensors = {
        "input_layernorm": layers["attention_norm"][index],
        "self_attn.q_proj": attention["query"][index].reshape(model.width, -1).T,
        "self_attn.k_proj": attention["key"][index].reshape(model.width, -1).T,
        "self_attn.v_proj": attention["value"][index].reshape(model.width, -1).T,
        "self_attn.o_proj": attention["output"][index].reshape(-1, model.width).T,
        "post_attention_layernorm": layers["mlp_norm"][index],
        "mlp.gate_proj": mlp["gate"][index].T,
        "mlp.up_proj": mlp["up"][index].T,
        "mlp.down_proj": mlp["down"][index].T,
    }
    if model.qk_norm:
        tensors["self_attn.q_norm"] = attention["query_norm"][index]
        tensors["self_attn.k_norm"] = attention["key_norm"][index]
    return tensors
