"""Checkpoints of the training state, saved by Orbax: a reader sees complete ones only, and detects damage."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from ..devices.mesh import shardings, standard_mesh
from ..devices.processes import agree, leads
from ..errors import CheckpointError, OutputError, first_line
from ..files.checksum import checksums
from ..model.sharding import partition_specs
from ..training.step import TrainState

_LONGEST_SAVE = 30 * 86400  # seconds; slow disks are no error, nor is a clock that was put forward


class Checkpoints:
    """The checkpoints of a run; `save` returns at once and writes in the background.

    **Arguments:** `keep`, the number of newest checkpoints to keep, by default all; `best`, a metric given to `save`
    whose best checkpoint is also kept (the lowest value if its name ends in `loss`, else the highest); `read_only`,
    for reading a directory that a run may be writing to.
    """

    def __init__(
        self, directory: str | Path, *, keep: int | None = None, best: str | None = None, read_only: bool = False
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        self._ocp, self._best, self.directory = ocp, best, Path(directory).absolute()
        lowest = best is not None and best.endswith("loss")
        policies: list[Any] = [LatestN(n=keep)]
        if best is not None:
            policies.append(
                BestN(
                    get_metric_fn=lambda metrics: metrics["best"],
                    reverse=lowest,
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            async_options=ocp.options.AsyncOptions(timeout_secs=_LONGEST_SAVE),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, notes: dict[str, Any], metrics: Mapping[str, float] = {}) -> None:
        """Saves the state after `step` updates, with `notes` (JSON) beside it.

        **Raises:** `OutputError` where this checkpoint, or the one before it, cannot be written.
        """
        if step in self.steps:
            return
        copied = copy.deepcopy(notes)  # they are written later, when the caller may have changed them
        record = _seal({"step": step, "notes": copied, "checksums": checksums(state)})
        parts = {"state": self._ocp.args.StandardSave(state), "notes": self._ocp.args.JsonSave(record)}
        best = {"best": float(metrics[self._best])} if self._best and self._best in metrics else None
        with self._writing():
            self._manager.save(step, args=self._ocp.args.Composite(**parts), metrics=best)

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the notes saved at `step`; `like` has the expected shapes, types and placement.

        **Raises:** `CheckpointError` where the data read differ from the data saved.
        """
        parts = {"state": self._ocp.args.StandardRestore(like), "notes": self._ocp.args.JsonRestore()}
        with self._reading(step):
            restored = self._manager.restore(step, args=self._ocp.args.Composite(**parts))
            _check(restored["state"], restored["notes"], step)
        return restored["state"], restored["notes"]["notes"]

    def restore_model(self, step: int, like: Any, *, mesh: Mesh | None = None) -> Any:
        """The model of the state saved at `step`, without reading the optimizer's state.

        **Arguments:** `like`, the expected shapes and types; `mesh`, the devices that the model is sharded over.

        **Raises:** `CheckpointError` where the data read differ from the data saved.
        """
        placement: Any = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), like)
        if mesh is not None:
            mesh = standard_mesh(mesh)
            placement = shardings(partition_specs(like, mesh), mesh)
        placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, placement)
        restore = self._ocp.checkpoint_utils.construct_restore_args({"model": placed})
        part = self._ocp.args.PyTreeRestore({"model": placed}, restore_args=restore, partial_restore=True)
        with self._reading(step):
            restored = self._manager.restore(
                step, args=self._ocp.args.Composite(state=part, notes=self._ocp.args.JsonRestore())
            )
            _check({"model": restored["state"]["model"]}, restored["notes"], step)
        return restored["state"]["model"]

    def restore_newest(self, like: TrainState, report: Callable[[str], None]) -> tuple[int, TrainState, dict[str, Any]]:
        """Restores the newest intact checkpoint; damaged ones are reported and renamed to `damaged-STEP`.

        **Raises:** `CheckpointError` where there is none.
        """
        for step in reversed(self.steps):
            error = None
            try:
                state, notes = self.restore(step, like)
            except CheckpointError as damage:
                error, state, notes = damage, None, {}
            if agree(error is None):
                return step, state, notes  # pyright: ignore[reportReturnType]
            aside = self.directory / f"damaged-{step}"
            report(f"{error or f'checkpoint {step} cannot be restored by another process'}; it is now {aside.name}")
            if leads():
                (self.directory / str(step)).rename(aside)
            agree(True)  # wait until it is renamed
            self._manager.reload()
        raise CheckpointError(f"{self.directory}: no checkpoint that can be restored; remove it to start again")

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # out of memory, or another process has died
            raise
        except Exception as error:  # damage can raise any error in the reader
            where = self.directory / str(step)
            raise CheckpointError(f"{where}: cannot be restored ({first_line(error)})") from None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            advice = "earlier ones are intact, and --resume auto continues from them"
            raise OutputError(f"{self.directory}: a checkpoint cannot be written ({reason}); {advice}") from None

    def wait(self) -> None:
        """Waits until all checkpoints are written.

        **Raises:** `OutputError` where one cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until all checkpoints are written, and releases the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()


def _check(tree: Any, record: Any, step: int) -> None:
    """Refuses notes or arrays that have changed since they were saved."""
    if not isinstance(record, dict) or _seal(record) != record or record["step"] != step:
        raise CheckpointError("its notes have changed since they were written")
    changed = [name for name, value in checksums(tree).items() if record["checksums"].get(name) != value]
    if changed:
        raise CheckpointError(f"{changed[0]} has changed since it was written")


def _seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 hash of its other fields."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def abstract(state: TrainState) -> TrainState:
    """The shapes, types and placement of a state, without its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
