"""The training state on disk, through Orbax: a reader sees a whole checkpoint or none."""

from pathlib import Path
from typing import Any

from .errors import RmError
from .update import TrainState


class Checkpoints:
    """The checkpoints of a run: `save` returns at once, writing goes on behind it."""

    def __init__(self, directory: str | Path, *, keep: int | None = None):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def save(self, step: int, state: TrainState, notes: dict[str, Any]) -> None:
        """Saves the state after `step` updates, with `notes` (JSON) beside it."""
        args = self._ocp.args.Composite(state=self._ocp.args.StandardSave(state), notes=self._ocp.args.JsonSave(notes))
        self._manager.save(step, args=args)

    @property
    def latest(self) -> int | None:
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the notes saved at `step`; `like` gives the shapes, types and placement to expect."""
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(like), notes=self._ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=args)
        except (ValueError, KeyError, OSError) as error:
            raise RmError(f"checkpoint {step} cannot be restored: {str(error).partition(chr(10))[0]}") from None
        return restored["state"], restored["notes"]

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()
