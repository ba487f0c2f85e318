"""Checkpoints of a run: parameters apart from the rest, so that sampling and export read nothing else.

Written by Orbax in the background, whole or not at all. Hides which are kept: the newest few and the one with the lowest held-out loss.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from gristmill import storage
from gristmill.errors import InputError
from gristmill.model.transformer import Params
from gristmill.training.step import TrainState

_HELD_OUT_LOSS = "held_out_loss"
_STEP_DIGITS = 9


@dataclass(frozen=True)
class Checkpoints:
    """The open checkpoints of a run."""

    manager: ocp.CheckpointManager

    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self.manager.latest_step()

    def save(self, step: int, state: TrainState, held_out_loss: float | None) -> None:
        """Begins to write a checkpoint, after the one before it is complete. Its arrays are copied before this returns."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(state.params),
                optimizer=ocp.args.StandardSave({"step": state.step, "state": state.optimizer_state}),
            ),
            metrics=None if held_out_loss is None else {_HELD_OUT_LOSS: held_out_loss},
            force=True,
        )

    def wait(self) -> None:
        """Returns when the checkpoint that was begun is complete."""
        self.manager.wait_until_finished()

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, each array where the abstract state says."""
        found = self.manager.restore(
            step,
            args=ocp.args.Composite(
                parameters=ocp.args.StandardRestore(abstract.params),
                optimizer=ocp.args.StandardRestore({"step": abstract.step, "state": abstract.optimizer_state}),
            ),
        )
        return TrainState(found["optimizer"]["step"], found["parameters"], found["optimizer"]["state"])


def read_parameters(run_folder: str, step: int, abstract: Params) -> Params:
    """The parameters of a step, each array where the abstract ones say; leaves alone what a trainer may be writing.

    Raises:
        InputError: there is no such checkpoint.
    """
    options = ocp.CheckpointManagerOptions(step_format_fixed_length=_STEP_DIGITS, read_only=True)
    with ocp.CheckpointManager(_folder(run_folder), options=options) as manager:
        steps = sorted(manager.all_steps())
        if step not in steps:
            raise InputError(
                f"there is no checkpoint of step {step}",
                found=f"steps {steps} in {run_folder}/checkpoints",
                expected=f"step {step}, as the run's manifest says",
                next_step="restore the checkpoint, or delete the run's manifest.json and run `gristmill train JOB`",
            )
        found: Any = manager.restore(step, args=ocp.args.Composite(parameters=ocp.args.StandardRestore(abstract)))
    return found["parameters"]


@contextmanager
def open_checkpoints(run_folder: str, keep: int) -> Generator[Checkpoints]:
    """The checkpoints below a run's folder; leaving waits until the last one is complete."""
    keep_best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[_HELD_OUT_LOSS], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
        step_format_fixed_length=_STEP_DIGITS,
        cleanup_tmp_directories=True,
    )
    with ocp.CheckpointManager(_folder(run_folder), options=options) as manager:
        yield Checkpoints(manager)


def _folder(run_folder: str) -> str:
    folder = storage.join(run_folder, "checkpoints")
    return folder if storage.is_remote(folder) else str(Path(folder).absolute())
