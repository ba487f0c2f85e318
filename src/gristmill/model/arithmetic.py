"""What a model costs, from its job section alone: no arrays and no JAX, so that every command can say it at once."""

from gristmill import config


def _matrix_parameters_per_layer(model: config.Model) -> int:
    query_and_output = 2 * model.width * model.heads * model.head_width
    key_and_value = 2 * model.width * model.kv_heads * model.head_width
    mlp = 3 * model.width * model.mlp_width
    return query_and_output + key_and_value + mlp


def parameter_count(model: config.Model, vocab_size: int) -> int:
    """Trained numbers of a model; a tied head counts once."""
    norms = 2 * model.width + (2 * model.head_width if model.qk_norm else 0)
    tables = (1 if model.tied_head else 2) * vocab_size * model.width
    return tables + model.layers * (_matrix_parameters_per_layer(model) + norms) + model.width


def flops_per_token(model: config.Model, vocab_size: int, sequence_length: int) -> float:
    """Floating-point operations to train on one token: forward, and backward at twice its cost.

    6 for each parameter that is multiplied (layers and head; the embedding is a lookup), and for attention
    6 * layers * heads * head_width * sequence_length: scores and weighted values are 4 * heads * head_width operations for each position
    looked at, causal attention looks at half of the sequence on average, and backward triples it. Shorter documents are masked, yet
    computed, so their length does not enter. The count of PaLM (Chowdhery et al., 2022, appendix B), halved for causality in its
    attention part; recomputation is not counted.
    """
    multiplied = model.layers * _matrix_parameters_per_layer(model) + vocab_size * model.width
    attention = 6 * model.layers * model.heads * model.head_width * sequence_length
    return float(6 * multiplied + attention)
