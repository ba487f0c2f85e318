"""A trained tokenizer as files that everyone reads, and the way back from those files to an encoder.

One table names the special tokens; their ids follow the mergeable ranks, and every file and the manifest take them from there.
"""

import base64
import io
import json
from collections.abc import Sequence

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers

from gristmill import rustbpe, storage
from gristmill.config import Job, Tokenizer
from gristmill.manifest import File, Manifest, digest, require, verified_file

FORMAT = 1
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL_TOKENS = (
    BOS,
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
    EOS,
    PAD,
)
PATTERNS = {
    "nanochat": (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"),
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
}


class TokenizerManifest(Manifest):
    """What the tokenizer stage left."""

    vocab_size: int
    regex: str
    special_tokens: dict[str, int]
    files: dict[str, File]

    @property
    def bos(self) -> int:
        """Id that begins a document."""
        return self.special_tokens[BOS]

    @property
    def eos(self) -> int:
        """Id that ends a document."""
        return self.special_tokens[EOS]

    @property
    def pad(self) -> int:
        """Id that fills a batch of prompts; rows of shards are filled by position, not by it."""
        return self.special_tokens[PAD]


def folder(bucket: str, digest: str) -> str:
    """Where a tokenizer lies."""
    return storage.join(bucket, "tokenizer", digest)


def identity(job: Job, corpus_digest: str) -> str:
    """Digest of the tokenizer that a job makes of a corpus."""
    return digest("tokenizer", FORMAT, job.tokenizer.model_dump(mode="json"), {"corpus": corpus_digest})


def current(job: Job, corpus_digest: str) -> TokenizerManifest:
    """The tokenizer of a job.

    Raises:
        InputError: it has not been trained.
    """
    name = identity(job, corpus_digest)
    return require(TokenizerManifest, folder(job.bucket, name), name, stage="tokenizer")


def regex_of(tokenizer: Tokenizer) -> str:
    """The splitting pattern of a job."""
    return tokenizer.regex if tokenizer.regex is not None else PATTERNS[tokenizer.pattern]


def special_ids(rank_count: int) -> dict[str, int]:
    """The special tokens' ids after the mergeable ranks."""
    return {token: rank_count + index for index, token in enumerate(SPECIAL_TOKENS)}


def artefacts(merges: Sequence[tuple[int, int]], regex: str) -> dict[str, bytes]:
    """The files of a tokenizer, by name."""
    ranks = rustbpe.ranks(merges)
    lengths = [len(rank) for rank in ranks] + [0] * len(SPECIAL_TOKENS)
    return {
        "tokenizer.json": _tokenizer_json(ranks, merges, regex),
        "tokenizer_config.json": _tokenizer_config(),
        "ranks.tiktoken": b"".join(base64.b64encode(rank) + f" {index}\n".encode() for index, rank in enumerate(ranks)),
        "token_bytes.npy": _npy(np.array(lengths, np.int32)),
    }


def _tokenizer_json(ranks: Sequence[bytes], merges: Sequence[tuple[int, int]], regex: str) -> bytes:
    """The `tokenizers` library's own format: bytes are spelt in its printable alphabet."""
    spelling = _byte_alphabet()
    spelt = ["".join(spelling[byte] for byte in rank) for rank in ranks]
    model = models.BPE(
        vocab={text: index for index, text in enumerate(spelt)}, merges=[(spelt[left], spelt[right]) for left, right in merges]
    )
    tokenizer = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated", invert=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return f"{tokenizer.to_str(pretty=True)}\n".encode()


def _byte_alphabet() -> list[str]:
    """GPT-2's spelling of bytes: printable Latin-1 as itself, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _tokenizer_config() -> bytes:
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
    }
    return f"{json.dumps(config, indent=1)}\n".encode()


def _npy(values: NDArray[np.int32]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=False)
    return buffer.getvalue()


def encoder(bucket: str, manifest: TokenizerManifest) -> rustbpe.Encoder:
    """The encoder of a finished tokenizer.

    Raises:
        InputError: its files are missing or damaged.
    """
    lines = read_file(bucket, manifest, "ranks.tiktoken").splitlines()
    ranks = [base64.b64decode(line.split()[0]) for line in lines]
    return rustbpe.Encoder(ranks, pattern=manifest.regex, special_tokens=manifest.special_tokens)


def token_bytes(bucket: str, manifest: TokenizerManifest) -> NDArray[np.int32]:
    """[vocab_size] bytes of text that each id stands for; 0 for special tokens."""
    return np.load(io.BytesIO(read_file(bucket, manifest, "token_bytes.npy")), allow_pickle=False)


def read_file(bucket: str, manifest: TokenizerManifest, name: str) -> bytes:
    """The checked bytes of one of a tokenizer's files."""
    with verified_file(folder(bucket, manifest.digest), manifest.files[name], stage="tokenizer") as path:
        return path.read_bytes()
