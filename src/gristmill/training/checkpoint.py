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


@dataclass(frozen=True)
class Checkpoints:
    """The open checkpoints of a run."""

    folder: str
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

    def restore_parameters(self, step: int, abstract: Params) -> Params:
        """The parameters of a step.

        Raises:
            InputError: there is no such checkpoint.
        """
        steps = list(self.manager.all_steps())
        if step not in steps:
            raise InputError(
                f"there is no checkpoint of step {step}",
                found=f"steps {sorted(steps)} in {self.folder}",
                expected=f"step {step}, as the run's manifest says",
                next_step="run `gristmill train JOB` again",
            )
        found: Any = self.manager.restore(step, args=ocp.args.Composite(parameters=ocp.args.StandardRestore(abstract)))
        return found["parameters"]


@contextmanager
def open_checkpoints(run_folder: str, keep: int) -> Generator[Checkpoints]:
    """The checkpoints below a run's folder; leaving waits until the last one is complete."""
    folder = storage.join(run_folder, "checkpoints")
    path = folder if storage.is_remote(folder) else str(Path(folder).absolute())
    keep_best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[_HELD_OUT_LOSS], reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), keep_best]),
        step_format_fixed_length=9,
        cleanup_tmp_directories=True,
    )
    manager = ocp.CheckpointManager(path, options=options)
    try:
        yield Checkpoints(folder, manager)
    finally:
        manager.close()
