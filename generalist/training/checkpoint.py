"""Checkpoints: weights, optimizer and data position in one orbax step, written so that a half-written one is never read.

    <folder>/<step>/state     every process writes its part of the arrays
                    position  where the data stood, all shards of it
                    metrics   what `training.keep_best` compares

A checkpoint does not depend on the mesh or the number of processes that wrote it. The folder may be in a bucket.
"""

import logging
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from generalist.config.run import TrainingConfig
from generalist.training.state import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains every step at length


def where(folder: str) -> epath.Path:
    """The folder's absolute path; of a bucket, its address."""
    return epath.Path(folder) if "://" in folder else epath.Path(folder).absolute()


def kept(training: TrainingConfig) -> preservation_policy.AnyPreservationPolicy:
    """Which checkpoints stay: the newest, those of every so many steps, those with the lowest metric."""
    policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(training.keep)]
    if training.keep_every:
        policies.append(preservation_policy.EveryNSteps(training.keep_every))
    if training.keep_best:
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[training.best_metric],
            reverse=True,
            n=training.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(best)
    return preservation_policy.AnyPreservationPolicy(policies)


class Checkpoints:
    """The checkpoints of one run. A save goes on in the background; orbax renames it into place once it is whole, and only then
    removes older ones. Of several processes, all call every method together.

    Args:
        folder: a local folder or a bucket's address.
        training: which of them are kept.
    """

    def __init__(self, folder: str, training: TrainingConfig):
        self.folder, self._best = folder, training.best_metric if training.keep_best else None
        self._manager = ocp.CheckpointManager(
            where(folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept(training), enable_async_checkpointing=True, enable_background_delete=True
            ),
        )

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint's step, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state and the position in the data (JSON values) that it has consumed up to; returns before it is on disk.

        Args:
            metrics: what is known of the state; with `training.keep_best` it must have `training.best_metric`.

        Raises:
            ValueError: the metric that decides which checkpoints are kept is not among them.
            OSError: an earlier save failed, for instance on a full disk; earlier checkpoints are untouched.
        """
        step = int(state.step)
        if step == self.latest:
            return
        if self._best is not None and self._best not in (metrics or {}):
            known = ", ".join(sorted(metrics or {})) or "none yet"
            raise ValueError(f"training.best_metric = {self._best} is no metric of this run; there are: {known}")
        try:
            self._manager.save(
                step,
                metrics=dict(metrics) if self._best is not None and metrics else None,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(dict(position))),
            )
        except Exception as error:
            raise OSError(self._explain(error)) from error

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest state, laid out as `abstract_state` says, on any mesh and by any number of processes; and the position.

        Raises:
            ValueError: the checkpoint does not fit the model, or is damaged.
        """
        step = self.latest
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), position=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise ValueError(
                f"checkpoint {self.folder}/{step} can't be read ({type(error).__name__}: {first_line(error)}); "
                "delete that folder to go on from the one before it"
            ) from error
        return restored["state"], restored["position"]

    def wait(self) -> None:
        """Until every save is on disk.

        Raises:
            OSError: a save failed; earlier checkpoints are untouched.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise OSError(self._explain(error)) from error

    def close(self) -> None:
        self._manager.close()

    def _explain(self, error: Exception) -> str:
        return (
            f"saving a checkpoint under {self.folder} failed ({type(error).__name__}: {first_line(error)}); earlier checkpoints "
            "are whole: free some space and run the same command again"
        )


def restore_params(
    folder: str, abstract_params: Any, abstract_frozen: Any, step: int | None = None, *, mean: bool = False
) -> tuple[Any, Any, int]:
    """The weights alone of a checkpoint, the newest unless `step` is given; returns the trained ones (or their moving average,
    with `mean`), the frozen ones and their step.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    with ocp.CheckpointManager(where(folder), options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step() if step is None else step
    path = where(folder) / str(step) / "state"
    if step is None or not path.exists():
        raise FileNotFoundError(f"no checkpoint in {folder}; train first, with the same preset and run name")
    trained = "mean_params" if mean else "params"
    item = {trained: abstract_params, "frozen": abstract_frozen}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
        )
    return restored[trained], restored["frozen"], step


def first_line(error: Exception) -> str:
    """The first line of an error's message, for errors that print pages."""
    return (str(error).strip().splitlines() or [""])[0][:200]
