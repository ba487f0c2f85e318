"""An independent reading of an exported folder: Llama (and Qwen3) logits in numpy, float64, one sequence, plain loops."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

type Floats = NDArray[np.float64]


def logits(folder: Path, ids: list[int]) -> Floats:
    """[tokens, vocabulary] logits of one document."""
    settings = json.loads((folder / "config.json").read_text())
    weights = {name: tensor.astype(np.float64) for name, tensor in load_file(folder / "model.safetensors").items()}
    hidden = weights["model.embed_tokens.weight"][ids]
    for layer in range(settings["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        own = {name.removeprefix(prefix).removesuffix(".weight"): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        hidden = hidden + _attention(_norm(hidden, own["input_layernorm"], settings), own, settings)
        normed = _norm(hidden, own["post_attention_layernorm"], settings)
        gate = normed @ own["mlp.gate_proj"].T
        hidden = hidden + (gate / (1 + np.exp(-gate)) * (normed @ own["mlp.up_proj"].T)) @ own["mlp.down_proj"].T
    hidden = _norm(hidden, weights["model.norm.weight"], settings)
    head = weights["model.embed_tokens.weight"] if settings["tie_word_embeddings"] else weights["lm_head.weight"]
    return hidden @ head.T


def _norm(values: Floats, scale: Floats, settings: dict[str, Any]) -> Floats:
    return scale * values / np.sqrt(np.mean(values**2, axis=-1, keepdims=True) + settings["rms_norm_eps"])


def _turn(vector: Floats, position: int, theta: float) -> Floats:
    """Rotate the pairs (i, i + half) of one head's vector."""
    half = vector.size // 2
    turned = vector.copy()
    for index in range(half):
        angle = position * theta ** (-2 * index / vector.size)
        x, y = vector[index], vector[index + half]
        turned[index] = x * np.cos(angle) - y * np.sin(angle)
        turned[index + half] = y * np.cos(angle) + x * np.sin(angle)
    return turned


def _heads(values: Floats, own: dict[str, Floats], which: str, settings: dict[str, Any], *, rotated: bool) -> Floats:
    """[heads, tokens, head_dim]."""
    projected = values @ own[f"self_attn.{which}_proj"].T
    heads = projected.reshape(len(values), -1, settings["head_dim"]).transpose(1, 0, 2)
    if f"self_attn.{which}_norm" in own:
        heads = _norm(heads, own[f"self_attn.{which}_norm"], settings)
    if rotated:
        heads = np.array([[_turn(vector, position, settings["rope_theta"]) for position, vector in enumerate(head)] for head in heads])
    return heads


def _attention(values: Floats, own: dict[str, Floats], settings: dict[str, Any]) -> Floats:
    queries = _heads(values, own, "q", settings, rotated=True)
    keys = _heads(values, own, "k", settings, rotated=True)
    contents = _heads(values, own, "v", settings, rotated=False)
    shared = len(queries) // len(keys)
    contexts = np.zeros((len(values), len(queries), settings["head_dim"]))
    for head, query in enumerate(queries):
        for token in range(len(values)):
            scores = keys[head // shared][: token + 1] @ query[token] / np.sqrt(settings["head_dim"])
            odds = np.exp(scores - scores.max())
            contexts[token, head] = odds @ contents[head // shared][: token + 1] / odds.sum()
    return contexts.reshape(len(values), -1) @ own["self_attn.o_proj"].T
