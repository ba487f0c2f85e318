"""A job that runs in seconds: a few hundred made-up documents and a model of a few thousand parameters."""

import json
import random
from pathlib import Path

_SPOKEN = """
the of and to in is was for on that with as it by from at his an were which are this be had or her
der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es werden aus er hat
Straße Übung größer naïve façade 12 345 6789 x = f(y) != {} [] -> 🙂 漢字 can't we'll I'd
"""
WORDS = _SPOKEN.split()


def text(words: int, seed: int) -> str:
    """Made-up text of so many words, in paragraphs."""
    chooser = random.Random(seed)  # noqa: S311  # repeatable text, no secret
    return "".join(f"{chooser.choice(WORDS)}{chooser.choice([' ', ' ', ' ', ', ', '. ', chr(10)])}" for _ in range(words))


def write_sources(folder: Path, *, documents: int = 120) -> Path:
    """Two sources below a folder: a/*.jsonl and b.txt."""
    (folder / "a").mkdir(parents=True, exist_ok=True)
    for part in range(2):
        lines = [json.dumps({"text": text(30 + seed % 90, seed)}) for seed in range(part * documents, (part + 1) * documents)]
        (folder / "a" / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "b.txt").write_text("\n\n".join(text(40, 10_000 + seed).replace("\n", " ") for seed in range(documents)), encoding="utf-8")
    return folder


def job(folder: Path, bucket: str | None = None) -> dict[str, object]:
    """The job over `write_sources(folder)`; 12 steps."""
    return {
        "run": "tiny",
        "bucket": bucket or str(folder / "out"),
        "corpus": {
            "sources": {
                "a": {"kind": "files", "paths": [str(folder / "a" / "*.jsonl")]},
                "b": {"kind": "files", "paths": [str(folder / "b.txt")]},
            },
            "held_out_fraction": 0.1,
        },
        "tokenizer": {"vocab_size": 384},
        "shards": {"sequence_length": 32},
        "model": {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "mlp_width": 64},
        "train": {
            "token_budget": 12 * 256,
            "global_batch_tokens": 256,
            "learning_rate": 1.0e-2,
            "warmup_steps": 2,
            "compute_dtype": "float32",
            "mixture": {"a": 3, "b": 1},
            "evaluate_every_steps": 4,
            "save_every_steps": 3,
            "log_every_steps": 1,
        },
        "sample": {"prompts": ["the", ""], "max_new_tokens": 8},
    }


def write_job(folder: Path, **changes: object) -> Path:
    """A job file over new sources in a folder, with top-level keys replaced."""
    write_sources(folder)
    path = folder / "job.yaml"
    path.write_text(json.dumps({**job(folder), **changes}), encoding="utf-8")
    return path
