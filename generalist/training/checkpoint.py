"""Checkpoints: weights, optimizer state and position in the data as one orbax step. An incomplete one is never read.

    <folder>/<step>/state     the arrays; every process writes its part
                    position  position in the data, of all shards
                    metrics   what `training.keep_best` compares

A checkpoint does not depend on the mesh or on the number of processes that wrote it. The folder may be in a bucket.
"""

import logging
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from generalist.config.run import TrainingConfig
from generalist.training.state import TrainState

# Orbax logs through absl at every checkpoint, in the middle of the progress line. Its errors still show.
logging.getLogger("absl").setLevel(logging.ERROR)


def absolute(folder: str) -> epath.Path:
    """The absolute path of a local folder; a bucket's address as it is."""
    # Orbax refuses relative paths. `absolute` would turn gs://bucket into a local path below the working directory.
    return epath.Path(folder) if "://" in folder else epath.Path(folder).absolute()


def kept(training: TrainingConfig) -> preservation_policy.AnyPreservationPolicy:
    """Which checkpoints stay: the newest, every n-th, and those with the lowest metric."""
    policies: list[preservation_policy.PreservationPolicy] = [preservation_policy.LatestN(training.keep)]
    if training.keep_every:
        policies.append(preservation_policy.EveryNSteps(training.keep_every))
    if training.keep_best:
        best = preservation_policy.BestN(
            get_metric_fn=lambda metrics: metrics[training.best_metric],
            # Orbax keeps the end of the sorted list; descending order puts the lowest value there.
            reverse=True,
            n=training.keep_best,
            # Otherwise every checkpoint saved before `keep_best` was set would be kept for good.
            keep_checkpoints_without_metrics=False,
        )
        policies.append(best)
    return preservation_policy.AnyPreservationPolicy(policies)


class Checkpoints:
    """The checkpoints of one run. If there are several processes, all of them must call every method together.

    Saving continues in the background. Orbax renames a checkpoint into place once it is complete, and only then removes older
    ones.

    Args:
        folder: a local folder or a bucket's address.
        training: decides which checkpoints are kept.
    """

    def __init__(self, folder: str, training: TrainingConfig):
        self.folder, self._best = folder, training.best_metric if training.keep_best else None
        self._manager = ocp.CheckpointManager(
            absolute(folder),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=kept(training), enable_async_checkpointing=True, enable_background_delete=True
            ),
        )

    @property
    def latest(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, position: Mapping[str, Any], metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state together with the position in the data that it has reached; returns before they are on disk.

        Args:
            position: JSON values.
            metrics: the state's metrics; with `training.keep_best` they must include `training.best_metric`.

        Raises:
            ValueError: `training.best_metric` is not among the metrics.
            OSError: this or an earlier save failed, for instance on a full disk; earlier checkpoints are untouched.
        """
        step = int(state.step)
        # A run that stops right after a checkpoint saves the same step again, which orbax refuses.
        if step == self.latest:
            return
        if self._best is not None and self._best not in (metrics or {}):
            known = ", ".join(sorted(metrics or {})) or "none yet"
            raise ValueError(f"training.best_metric = {self._best} is not a metric of this run; there are: {known}")
        try:
            self._manager.save(
                step,
                metrics=dict(metrics) if self._best is not None and metrics else None,
                args=ocp.args.Composite(state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(dict(position))),
            )
        except Exception as error:  # orbax and tensorstore raise many types for one cause, a full disk
            raise OSError(self._explain(error)) from error

    def restore(self, abstract_state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads the newest checkpoint, whatever mesh and number of processes wrote it.

        Args:
            abstract_state: shapes, dtypes and shardings that the state gets.

        Returns:
            The state, and the position in the data.

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
                "delete that folder to continue from the checkpoint before it"
            ) from error
        return restored["state"], restored["position"]

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
            OSError: a save failed; earlier checkpoints are untouched.
        """
        # A save in the background reports its error only here, or when the next one begins.
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise OSError(self._explain(error)) from error

    def close(self) -> None:
        self._manager.close()

    def _explain(self, error: Exception) -> str:
        return (
            f"saving a checkpoint under {self.folder} failed ({type(error).__name__}: {first_line(error)}); earlier checkpoints "
            "are complete: free some space and run the same command again"
        )


def restore_params(
    folder: str, abstract_params: Any, abstract_frozen: Any, step: int | None = None, *, mean: bool = False
) -> tuple[Any, Any, int]:
    """Reads only the weights of a checkpoint.

    Args:
        abstract_params: shapes, dtypes and shardings of the trained parameters that are to be read.
        abstract_frozen: the same of the frozen ones.
        step: which checkpoint; None: the newest.
        mean: read the moving average of the trained parameters instead of themselves.

    Returns:
        Trained parameters, frozen ones, and their step.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    # Read-only: the run may still be training into this folder.
    with ocp.CheckpointManager(absolute(folder), options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        step = manager.latest_step() if step is None else step
    path = absolute(folder) / str(step) / "state"
    if step is None or not path.exists():
        raise FileNotFoundError(f"no checkpoint in {folder}; train first, with the same preset and run name")
    trained = "mean_params" if mean else "params"
    # `partial_restore` leaves the rest of the state unread: Adam's moments alone are twice the size of the weights.
    item = {name: part for name, part in ((trained, abstract_params), ("frozen", abstract_frozen)) if part}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            path,
            args=ocp.args.PyTreeRestore(
                item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item), partial_restore=True
            ),
        )
    return restored[trained], restored.get("frozen", {}), step


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 200 characters: orbax's messages can fill pages."""
    return (str(error).strip().splitlines() or [""])[0][:200]
