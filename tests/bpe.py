"""What the tests of `gristmill.rustbpe` share: a pattern, a corpus, and encoders trained on it."""

import sysconfig
from functools import cache
from pathlib import Path

import tiktoken

from gristmill import rustbpe

PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
# Means the same to Python's `re`, which the naive reference uses.
SIMPLE_PATTERN = " ?[^ ]+| +"
WHOLE_TEXT = r"[\s\S]+"
VOCAB_SIZE = 4096
BOS = "<|bos|>"
EOS = "<|eos|>"

MIXED_LINES = [
    "Die Straße führt über den Fluß; wir'll sehen, ob's geht. Größenordnung: 12.345,67 €!",
    "The quick brown fox DON'T jump over 1234567890 lazy dogs\u2014it's he'Ll I\u2019ve.",
    "def f(x: int) -> dict[str, int]:\n\treturn {'a': x ** 2}  # comment\r\n\r\n",
    "👩‍👩‍👧‍👦 🇩🇪 emoji 🏳️‍🌈 and combining e\u0301 n\u0303, CJK 漢字かな, العربية, हिन्दी",
    "   leading\n\n\n   \t  trailing   \n ",
    "\x00\x01 NUL \u00a0 no-break \u3000 wide \u2028 line \ufeff mark 'ſ",
    "",
]


@cache
def corpus() -> tuple[str, ...]:
    """The Python standard library's own modules, a few megabytes of English and code."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return tuple(path.read_text(encoding="utf-8") for path in paths)


@cache
def merges() -> tuple[tuple[int, int], ...]:
    return tuple(rustbpe.train(iter(corpus()), vocab_size=VOCAB_SIZE, pattern=PATTERN))


@cache
def encoder() -> rustbpe.Encoder:
    specials = {BOS: VOCAB_SIZE, EOS: VOCAB_SIZE + 1}
    return rustbpe.Encoder(rustbpe.ranks(merges()), pattern=PATTERN, special_tokens=specials)


@cache
def reference() -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "reference",
        pat_str=PATTERN,
        mergeable_ranks={token: rank for rank, token in enumerate(rustbpe.ranks(merges()))},
        special_tokens={BOS: VOCAB_SIZE, EOS: VOCAB_SIZE + 1},
    )


def bytes_encoder(pattern: str = PATTERN) -> rustbpe.Encoder:
    return rustbpe.Encoder(rustbpe.ranks([]), pattern=pattern, special_tokens={})
