"""What a process says while it works: logs, progress bars, and Prometheus metrics.

Logs go to standard error, as a console a person likes on a terminal and as one JSON object a line otherwise; results go to standard output.
"""

import contextlib
import functools
import logging
import sys
import time
from collections.abc import Callable, Generator
from typing import override

import structlog
from prometheus_client import Counter, Gauge, start_http_server
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gristmill.errors import MachineError

_QUIET_SECONDS = 10.0

PROGRESS = Gauge("gristmill_progress", "How much of its work a stage has done.", ["stage", "unit"])
PROGRESS_TOTAL = Gauge("gristmill_progress_total", "How much work a stage has in all.", ["stage", "unit"])
STEP = Gauge("gristmill_train_step", "Optimizer updates completed.")
TOKENS = Counter("gristmill_train_tokens", "Tokens trained on by this process's run since it started.")
LOSS = Gauge("gristmill_train_loss_nats", "Mean loss of the last reported step, in nats per token.")
LEARNING_RATE = Gauge("gristmill_train_learning_rate", "Learning rate of the last reported step.")
GRADIENT_NORM = Gauge("gristmill_train_gradient_norm", "Global norm of the gradient before clipping.")
TOKENS_PER_SECOND = Gauge("gristmill_train_tokens_per_second", "Tokens trained on per second, all hosts together.")
MFU = Gauge("gristmill_train_mfu_ratio", "Model FLOPs utilisation, 0 to 1.")
HELD_OUT_LOSS = Gauge("gristmill_held_out_loss_nats", "Held-out loss in nats per token.")
HELD_OUT_BITS_PER_BYTE = Gauge("gristmill_held_out_bits_per_byte", "Held-out bits per byte of text.")
CHECKPOINT_STEP = Gauge("gristmill_checkpoint_step", "Step of the newest checkpoint handed to the writer.")


class _Structured(logging.Handler):
    """What libraries say through Python's own loggers, in the form of ours."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        log().log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def configure() -> None:
    """Sets the form of logs for this process."""
    logging.basicConfig(level=logging.WARNING, handlers=[_Structured()])
    terminal = sys.stderr.isatty()
    renderer = (
        structlog.dev.ConsoleRenderer(pad_event_to=0, pad_level=False, sort_keys=False) if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
            structlog.processors.format_exc_info,
            renderer,
        ],
        # Looked up at each line, as a progress bar stands in for standard error while it is shown.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def log() -> structlog.typing.FilteringBoundLogger:
    """The process's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def serve_metrics(port: int) -> None:
    """Serves /metrics on a port from now until the process ends.

    Raises:
        MachineError: the port is taken.
    """
    try:
        start_http_server(port)
    except OSError as error:
        raise MachineError(
            "metrics cannot be served",
            found=f"port {port}: {error.strerror}",
            expected="a free port",
            next_step="end the process that listens there, or pass another --metrics-port",
        ) from error


@functools.cache
def console() -> Console:
    """The terminal, for progress bars."""
    return Console(stderr=True)


@contextlib.contextmanager
def progress(stage: str, *, total: int, unit: str, done: int = 0) -> Generator[Callable[[int], None]]:
    """Shows how far a stage is; yields a function that is told of each amount done.

    A terminal gets a bar with rate and time left, anything else a log line every ten seconds.
    """
    count = done
    PROGRESS_TOTAL.labels(stage, unit).set(total)
    PROGRESS.labels(stage, unit).set(count)
    started = last = time.monotonic()
    terminal = console().is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console(), disable=not terminal, transient=True)
    task = bar.add_task(stage, total=total, completed=done, rate="")

    def advance(amount: int) -> None:
        nonlocal count, last
        count += amount
        PROGRESS.labels(stage, unit).set(count)
        now = time.monotonic()
        per_second = (count - done) / max(now - started, 1e-9)
        bar.update(task, completed=count, rate=f"{per_second:,.1f} {unit}/s")
        if not terminal and now - last > _QUIET_SECONDS:
            last = now
            left_seconds = round((total - count) / max(per_second, 1e-9))
            log().info(
                "progress", stage=stage, done=count, total=total, unit=unit, per_second=round(per_second, 1), left_seconds=left_seconds
            )

    with bar:
        yield advance
