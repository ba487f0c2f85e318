"""The chain of arithmetic of a job, from its token budget to floating-point operations, before anything runs."""

from gristmill.config import Job
from gristmill.model import arithmetic


def lines(job: Job) -> list[tuple[str, str]]:
    """Pairs of a quantity and its value."""
    train, sequence = job.train, job.shards.sequence_length
    parameters = arithmetic.parameter_count(job.model, job.tokenizer.vocab_size)
    per_token = arithmetic.flops_per_token(job.model, job.tokenizer.vocab_size, sequence)
    trained_tokens = job.steps * train.global_batch_tokens
    return [
        ("token budget", f"{train.token_budget:,} tokens"),
        ("sequences", f"{-(-train.token_budget // sequence):,} of {sequence:,} tokens"),
        ("a step", f"{train.global_batch_tokens:,} tokens = {job.sequences_per_step:,} sequences"),
        (
            "a microbatch",
            f"{job.sequences_per_step // train.accumulation_steps:,} sequences, {train.accumulation_steps} a step, split over data x fsdp devices",
        ),
        (
            "steps",
            f"{job.steps:,} = {trained_tokens:,} tokens; warmup {train.warmup_steps:,}, {train.schedule}, peak {train.learning_rate:g}",
        ),
        ("parameters", f"{parameters:,}; {trained_tokens / parameters:.1f} tokens a parameter"),
        ("training state", f"{12 * parameters / 2**30:.2f} GiB of weights and moments in float32"),
        (
            "work",
            f"{per_token:.3g} FLOPs a token, {per_token * train.global_batch_tokens:.3g} a step, {per_token * trained_tokens:.3g} in all",
        ),
    ]
