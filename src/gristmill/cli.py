"""The command line: one command a stage, and the only place where an error becomes an exit code.

Stages are imported when they are called, so that the data commands work without JAX and metrics are served before anything slow.
"""

import contextlib
import importlib
import json
import signal
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, override

import click
import yaml

from gristmill import errors, jobfile, plan, segments, storage, telemetry
from gristmill.config import Job
from gristmill.errors import GristmillError, JobError, PreemptedError
from gristmill.manifest import Context

if TYPE_CHECKING:
    from gristmill.stages.sample import Sampled

STAGES = {
    "corpus": "Read the sources: ids, duplicates, held-out documents.",
    "tokenizer": "Train the tokenizer on the corpus.",
    "shards": "Encode the corpus and pack it into rows.",
    "train": "Train the model, from its newest checkpoint on.",
    "evaluate": "Score the trained model on held-out documents.",
    "sample": "Continue the job's prompts with the trained model.",
    "export": "Write the trained model as Hugging Face files.",
}


def main() -> None:
    """Entry point of the command `gristmill`."""
    telemetry.configure()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with _exit_codes():
        commands(standalone_mode=False)


class _Stopped(BaseException):
    """Told to stop by a signal. No KeyboardInterrupt, of which click makes an error of its own."""


def _stop(number: int, _frame: FrameType | None) -> None:
    raise _Stopped(signal.Signals(number).name)


@contextlib.contextmanager
def _exit_codes() -> Generator[None]:
    """Ends the process as `errors` says; anything unexpected keeps its traceback and ends with 1."""
    try:
        yield
    except _Stopped as stopped:
        _fail(
            PreemptedError(
                "told to stop",
                found=f"the signal {stopped}",
                expected="finished tasks and checkpoints are kept",
                next_step="run the same command again to go on from there",
            )
        )
    except GristmillError as error:
        _fail(error)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(JobError.exit_code)
    except click.ClickException as error:
        _fail(
            JobError(
                "the command line cannot be read",
                found=error.format_message(),
                expected="a command and options of gristmill",
                next_step="see gristmill --help, or gristmill COMMAND --help",
            )
        )
    except (OSError, RuntimeError, ValueError) as error:
        expected = errors.from_os_error(error)
        if expected is None:
            raise
        _fail(expected)


def _fail(error: GristmillError) -> None:
    if sys.stderr.isatty():
        click.secho(f"{type(error).__name__}: {error}", fg="red", err=True)
    else:
        telemetry.log().error(
            error.what,
            error=type(error).__name__,
            exit_code=error.exit_code,
            found=error.found,
            expected=error.expected,
            next=error.next_step,
        )
    sys.exit(error.exit_code)


class _InOrder(click.Group):
    """Lists its commands in the order they were added: the pipeline's."""

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_InOrder, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="gristmill")
def commands() -> None:
    """Raw text in; a tokenizer, shards and a trained, evaluated, exported language model out.

    `gristmill run JOB` does everything a job file asks for; run it again and what is done is skipped.
    """


_JOB = click.Argument(["job_file"], metavar="JOB", type=click.Path(path_type=Path))
_SET = click.Option(["--set", "overrides"], multiple=True, metavar="KEY=VALUE", help="Override a key, as in train.seed=1.")
_STAGE_OPTIONS = (
    _JOB,
    _SET,
    click.Option(["--worker"], default="0/1", metavar="I/N", show_default=True, help="Do tasks I, I+N, ... of a data stage."),
    click.Option(["--take-over"], is_flag=True, help="Claim a run from a process that cannot be reached."),
    click.Option(["--metrics-port"], type=click.IntRange(1, 65_535), help="Serve Prometheus metrics on this port."),
)


def _add(name: str, about: str, callback: Callable[..., None], *parameters: click.Parameter) -> None:
    commands.add_command(click.Command(name, callback=callback, params=list(parameters), help=about))


def _stages(names: Sequence[str]) -> Callable[..., None]:
    """The command that runs some stages in order."""

    def command(
        *, job_file: Path, overrides: Sequence[str], worker: str, take_over: bool, metrics_port: int | None, prompts: Sequence[str] = ()
    ) -> None:
        if metrics_port is not None:
            telemetry.serve_metrics(metrics_port)
        job = jobfile.load(job_file, overrides)
        context = _context(worker, take_over=take_over)
        if prompts:
            _print_samples(_stage("sample").continue_prompts(job, prompts))
            return
        if "train" in names:
            for quantity, value in plan.lines(job):
                telemetry.log().info(quantity, value=value)
        for name in names:
            if _stage(name).run(job, context) is None:
                return
        _print_results(job, names)

    return command


def _stage(name: str):  # noqa: ANN202  # a module: its run has the stage's own manifest type
    try:
        return importlib.import_module(f"gristmill.stages.{name}")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("gristmill"):
            raise
        raise errors.MachineError(
            f"the {name} stage cannot run here",
            found=f"no Python package {error.name}",
            expected="the packages of gristmill[train]",
            next_step="install gristmill[train], or gristmill[tpu] on a TPU",
        ) from error


def _context(worker: str, *, take_over: bool) -> Context:
    index, _, count = worker.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise JobError(
            "--worker cannot be read", found=repr(worker), expected="I/N with 0 <= I < N", next_step="write for instance --worker 0/4"
        )
    return Context(worker_index=int(index), worker_count=int(count), take_over=take_over)


def _print_samples(samples: "Sequence[Sampled]") -> None:
    for sampled in samples:
        click.echo(f"{click.style(sampled.prompt, bold=True)}{sampled.text}\n")


def _print_results(job: Job, names: Sequence[str]) -> None:
    """What a person wants to see of finished stages, on standard output."""
    if "sample" in names:
        _print_samples(_stage("sample").read(job))
    if "evaluate" in names:
        for source, score in _stage("evaluate").read(job).items():
            click.echo(f"held-out bits per byte of {source}: {score['bits_per_byte']:.4f} (loss {score['loss']:.4f} nats a token)")
    if "export" in names:
        click.echo(f"export: {_stage('export').folder(job)}")


_add("run", "Run all stages in order; what is done is skipped.", _stages(list(STAGES)), *_STAGE_OPTIONS)
for _name, _about in STAGES.items():
    _prompt = click.Option(["--prompt", "prompts"], multiple=True, help="Continue this text and print it, instead of the job's prompts.")
    _add(_name, _about, _stages([_name]), *_STAGE_OPTIONS, *([_prompt] if _name == "sample" else []))


def _show(job_file: Path, overrides: Sequence[str]) -> None:
    job = jobfile.load(job_file, overrides)
    click.echo(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True).rstrip())
    click.echo()
    for quantity, value in plan.lines(job):
        click.echo(f"{quantity:>15}: {value}")


def _schema() -> None:
    click.echo(json.dumps(Job.model_json_schema(), indent=1))


def _metrics(run: str, *, bucket: str, ledger: bool) -> None:
    folder = storage.join(bucket, "runs", run, "ledger" if ledger else "metrics")
    if not storage.names(folder):
        raise errors.InputError(
            f"the run {run} has no {folder.rpartition('/')[2]}",
            found=f"no files in {folder}",
            expected="a run whose training has reached a checkpoint",
            next_step="check RUN, and --bucket if it is not ./out",
        )
    for record in segments.read(folder):
        click.echo(json.dumps(record))


_add("show", "Print the resolved job and its chain of arithmetic.", _show, _JOB, _SET)
_add("schema", "Print the JSON schema of job files.", _schema)
_add(
    "metrics",
    "Print a run's metrics, or its ledger, as one clean stream.",
    _metrics,
    click.Argument(["run"], metavar="RUN"),
    click.Option(["--bucket"], default="./out", show_default=True, help="The bucket of the run."),
    click.Option(["--ledger"], is_flag=True, help="Print the ledger of batches instead."),
)
