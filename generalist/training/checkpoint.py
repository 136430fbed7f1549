"""Checkpoints: weights, optimizer and data position in one orbax step, written so that a half-written one is never read."""

import logging
from pathlib import Path
from typing import Any

import grain.checkpoint
import orbax.checkpoint as ocp

from generalist.training.step import TrainState

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax explains every step at length


class Checkpoints:
    """The checkpoints of one run. A save goes on in the background; orbax renames it into place once it is whole.

    Args:
        folder: where they are kept, `<folder>/<step>`.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    @property
    def latest(self) -> int | None:
        """The newest whole checkpoint's step, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: Any) -> None:
        """Saves the state and the position of the data iterator that it has consumed up to; returns before it is on disk.

        Raises:
            OSError: an earlier save failed, for instance on a full disk; earlier checkpoints are untouched.
        """
        step = int(state.step)
        if step == self.latest:
            return
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(iterator)
                ),
            )
        except Exception as error:
            raise OSError(self._explain(error)) from error

    def restore(self, abstract_state: TrainState, iterator: Any) -> TrainState:
        """The newest state, laid out as `abstract_state` says, on any mesh; sets the iterator's position.

        Raises:
            ValueError: the checkpoint does not fit the model, or is damaged.
        """
        step = self.latest
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract_state), data=grain.checkpoint.CheckpointRestore(iterator)
                ),
            )
        except Exception as error:
            raise ValueError(
                f"checkpoint {self.folder / str(step)} can't be read ({type(error).__name__}: {first_line(error)}); "
                "delete that folder to go on from the one before it"
            ) from error
        return restored["state"]

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
    folder: Path, abstract_params: Any, abstract_frozen: Any, step: int | None = None, *, mean: bool = False
) -> tuple[Any, Any, int]:
    """The weights alone of a checkpoint, the newest unless `step` is given; returns the trained ones (or their moving average,
    with `mean`), the frozen ones and their step.

    Raises:
        FileNotFoundError: there is no checkpoint.
    """
    with ocp.CheckpointManager(folder.absolute()) as manager:
        step = manager.latest_step() if step is None else step
    path = folder.absolute() / str(step) / "state"
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
