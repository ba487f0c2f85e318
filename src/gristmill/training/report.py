"""What training says of its steps: the log, Prometheus, and the run's metrics."""

import math
import time
from dataclasses import dataclass, field

import jax

from gristmill import telemetry
from gristmill.config import Job
from gristmill.errors import DivergedError
from gristmill.segments import Segments
from gristmill.training import sharding
from gristmill.training.held_out import Score
from gristmill.training.step import Metrics


@dataclass
class Report:
    """Reports each step while the next one is computed, so that fetching its numbers keeps no device waiting."""

    job: Job
    metrics: Segments
    flops_per_token: float
    peak_flops_per_second: float = field(default_factory=lambda: sum(map(sharding.peak_flops_per_second, jax.devices())))
    _pending: tuple[int, Metrics] | None = None
    _since: float = field(default_factory=time.monotonic)

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """Takes the numbers of a step that is being computed, and reports the step before it.

        Raises:
            DivergedError: the loss of the step before is not finite.
        """
        self.drain()
        self._pending = (step, metrics)

    def drain(self) -> None:
        """Waits for the last step that was dispatched, and reports it.

        Raises:
            DivergedError: its loss is not finite.
        """
        if self._pending is None:
            return
        step, device_metrics = self._pending
        self._pending = None
        loss, learning_rate, gradient_norm, _ = (float(value) for value in jax.device_get(device_metrics))
        now = time.monotonic()
        tokens_per_second = self.job.train.global_batch_tokens / (now - self._since)
        self._since = now
        mfu = tokens_per_second * self.flops_per_token / self.peak_flops_per_second
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            raise DivergedError(
                "training diverged",
                found=f"loss {loss}, gradient norm {gradient_norm} at step {step}",
                expected="finite numbers",
                next_step="lower train.learning_rate or raise train.warmup_steps, and give the job another `run` name",
            )
        self.metrics.append(
            step,
            loss=loss,
            learning_rate=learning_rate,
            gradient_norm=gradient_norm,
            tokens_per_second=tokens_per_second,
            mfu=mfu,
            unix_seconds=time.time(),
        )
        self._publish(step, loss, learning_rate, gradient_norm, tokens_per_second, mfu)

    def _publish(self, step: int, loss: float, learning_rate: float, gradient_norm: float, tokens_per_second: float, mfu: float) -> None:
        telemetry.STEP.set(step)
        telemetry.TOKENS.inc(self.job.train.global_batch_tokens)
        telemetry.LOSS.set(loss)
        telemetry.LEARNING_RATE.set(learning_rate)
        telemetry.GRADIENT_NORM.set(gradient_norm)
        telemetry.TOKENS_PER_SECOND.set(tokens_per_second)
        telemetry.MFU.set(mfu)
        if step % self.job.train.log_every_steps == 0 or step == self.job.steps:
            telemetry.log().info(
                "train",
                step=step,
                of=self.job.steps,
                loss=round(loss, 4),
                learning_rate=float(f"{learning_rate:.3g}"),
                gradient_norm=round(gradient_norm, 3),
                tokens_per_second=round(tokens_per_second),
                mfu=round(mfu, 3),
            )

    def held_out(self, step: int, score: Score) -> None:
        """Reports a held-out score; the time it took counts for no step."""
        self._since = time.monotonic()
        loss, perplexity, bits_per_byte = score.loss, score.perplexity, score.bits_per_byte
        self.metrics.append(
            step, held_out_loss=loss, held_out_perplexity=perplexity, held_out_bits_per_byte=bits_per_byte, unix_seconds=time.time()
        )
        telemetry.HELD_OUT_LOSS.set(loss)
        telemetry.HELD_OUT_BITS_PER_BYTE.set(bits_per_byte)
        telemetry.log().info(
            "held out", step=step, loss=round(loss, 4), perplexity=round(perplexity, 2), bits_per_byte=round(bits_per_byte, 4)
        )
