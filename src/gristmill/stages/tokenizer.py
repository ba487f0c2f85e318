"""The training part of a corpus to a tokenizer.

Reads the corpus; writes tokenizer/<digest>/ with tokenizer.json, tokenizer_config.json, ranks.tiktoken and token_bytes.npy. Hides which
documents the tokenizer is trained on.
"""

from collections.abc import Iterator
from fractions import Fraction

from gristmill import rustbpe, storage, telemetry
from gristmill.config import Job
from gristmill.errors import JobError
from gristmill.manifest import Context, committed, describe, find
from gristmill.text import documents, tokenizers
from gristmill.text.documents import CorpusManifest
from gristmill.text.tokenizers import SPECIAL_TOKENS, TokenizerManifest


def run(job: Job, context: Context) -> TokenizerManifest | None:
    """Trains the tokenizer of a job; None for a worker that has no part in it.

    Raises:
        InputError: the corpus is missing or damaged.
        JobError: the pattern is wrong, or the corpus has too few different words for the vocabulary.
    """
    corpus = documents.current(job)
    name = tokenizers.identity(job, corpus.digest)
    folder = tokenizers.folder(job.bucket, name)
    manifest = find(TokenizerManifest, folder, name)
    if manifest is not None:
        telemetry.log().info("tokenizer is done already", digest=name[:12])
        return manifest
    if context.worker_index:
        return None
    regex = tokenizers.regex_of(job.tokenizer)
    merges = _train(job, corpus, regex)
    files = {}
    for file_name, data in tokenizers.artefacts(merges, regex).items():
        with storage.scratch(storage.join(folder, file_name)) as scratch:
            scratch.write_bytes(data)
            files[file_name] = describe(file_name, scratch)
            storage.commit_file(storage.join(folder, file_name), scratch)
    manifest = TokenizerManifest(
        stage="tokenizer",
        format=tokenizers.FORMAT,
        digest=name,
        inputs={"corpus": corpus.digest},
        vocab_size=job.tokenizer.vocab_size,
        regex=regex,
        special_tokens=tokenizers.special_ids(256 + len(merges)),
        files=files,
    )
    committed(folder, manifest)
    return manifest


def _train(job: Job, corpus: CorpusManifest, regex: str) -> list[tuple[int, int]]:
    rank_count = job.tokenizer.vocab_size - len(SPECIAL_TOKENS)
    total = sum(counts.train.bytes for counts in corpus.sources.values())
    with telemetry.progress("tokenizer", total=total, unit="bytes") as advance:

        def texts() -> Iterator[str]:
            for document in sample(job, corpus, total):
                advance(len(document.text.encode()))
                yield document.text

        try:
            merges = rustbpe.train(texts(), vocab_size=rank_count, pattern=regex)
        except ValueError as error:
            raise JobError(
                "the tokenizer cannot be trained",
                found=str(error),
                expected="a pattern that matches every character",
                next_step="correct tokenizer.regex",
            ) from error
    if len(merges) < rank_count - 256:
        raise JobError(
            "tokenizer.vocab_size is too large for the corpus",
            found=f"{job.tokenizer.vocab_size}",
            expected=f"at most {256 + len(merges) + len(SPECIAL_TOKENS)}, as this corpus has no more pairs to merge",
            next_step="lower tokenizer.vocab_size or add text",
        )
    return merges


def sample(job: Job, corpus: CorpusManifest, total_bytes: int) -> Iterator[documents.Document]:
    """About sample_bytes of the training documents, evenly over sources: a function of each document's id alone."""
    share = min(Fraction(1), Fraction(job.tokenizer.sample_bytes, max(total_bytes, 1)))
    for part in range(len(corpus.parts)):
        for document in documents.read(job.bucket, corpus, part, "train"):
            # The id's other half, as its first digits decide what is held out.
            if int(document.id[32:], 16) < share * 16**32:
                yield document
