"""Checkpoints of the training state, saved by Orbax: a reader sees complete ones only, and detects damage."""

import copy
import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, SingleDeviceSharding

from ..devices.agreement import agree
from ..devices.mesh import shardings, standard_mesh
from ..devices.processes import leads
from ..errors import CheckpointError, OutputError, first_line, system_reason
from ..files.checksum import checksums, key_data, named_leaves
from ..model.sharding import partition_specs
from ..training.step import TrainState
from .matching import Mismatch, as_stored, describe, match, take

_LONGEST_SAVE = 30 * 86400  # seconds; slow disks are no error, nor is a clock that was put forward


class Checkpoints:
    """The checkpoints of a run; `save` returns at once and writes in the background.

    The state may hold any arrays: those of the model, and what optax transformations keep, such as bools and PRNG keys.

    **Arguments:** `keep`, the number of newest checkpoints to keep, by default all; `best`, a metric given to `save`
    whose best checkpoint is also kept (the lowest value if its name ends in `loss`, else the highest); `read_only`,
    for reading a directory that a run may be writing to.

    **Raises:** `OutputError` for a path that Orbax could not read from again.
    """

    def __init__(
        self, directory: str | Path, *, keep: int | None = None, best: str | None = None, read_only: bool = False
    ):
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

        check_name(Path(directory))
        self._ocp, self._best, self.directory = ocp, best, Path(directory).absolute()
        policies: list[Any] = [LatestN(n=keep)]
        if best is not None:
            policies.append(BestN(get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            best_fn=self._value if best is not None else None,  # else Orbax would not write metrics down
            async_options=ocp.options.AsyncOptions(timeout_secs=_LONGEST_SAVE),
        )
        handlers = {"state": ocp.PyTreeCheckpointHandler(), "notes": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

    def _value(self, metrics: Mapping[str, float]) -> float:
        """The value of the best metric, higher for a better checkpoint."""
        value = float(metrics.get(self._best or "", math.nan))
        sign = -1 if self._best and self._best.endswith("loss") else 1
        return sign * value if math.isfinite(value) else -math.inf

    @property
    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    @property
    def best_step(self) -> int | None:
        """The step of the checkpoint with the best metric, or `None` if none has it; of equal ones the newest."""
        values = {step: self._value(self._manager.metrics(step) or {}) for step in self.steps}
        known = [step for step, value in values.items() if value > -math.inf]
        return max(known, key=lambda step: (values[step], step), default=None)

    @property
    def set_aside(self) -> list[str]:
        """The names of the checkpoints that `restore_newest` found damaged and renamed."""
        return sorted(path.name for path in self.directory.glob("damaged-*"))

    def save(self, step: int, state: TrainState, notes: dict[str, Any], metrics: Mapping[str, float] = {}) -> None:
        """Saves the state after `step` updates, with `notes` (JSON) beside it; one that is saved already stays.

        **Raises:** `OutputError` where this checkpoint, or the one before it, cannot be written, and where a later one,
        or one of this step with another state, is there: a run that went back would lose what it saves.
        """
        if self._is_saved(step, state):
            return
        copied = copy.deepcopy(notes)  # they are written later, when the caller may have changed them
        record = _seal({"step": step, "notes": copied, "checksums": checksums(state), "leaves": describe(state)})
        arrays = jax.tree.map(lambda leaf: key_data(leaf) if leaf.size else None, state)  # Orbax takes none of size 0
        parts = {"state": self._ocp.args.PyTreeSave(arrays), "notes": self._ocp.args.JsonSave(record)}
        values = {name: float(value) for name, value in metrics.items()} if self._best else None
        with self._writing():
            self._manager.save(step, args=self._ocp.args.Composite(**parts), metrics=values)

    def _is_saved(self, step: int, state: TrainState) -> bool:
        """Whether this very state is there; refuses a step that Orbax would not save, without a word."""
        newest = max(self.steps, default=-1)
        if step > newest:
            return False
        if step in self.steps:
            self.wait()
            if self._notes(step)["checksums"] == checksums(state):
                return True
        what = f"checkpoint {newest}" if newest > step else "another state of this step"
        advice = "to go on from an earlier step, save to another directory, or remove the later checkpoints first"
        raise OutputError(f"{self.directory}: step {step} cannot be saved, {what} is there already; {advice}")

    def _notes(self, step: int) -> dict[str, Any]:
        """What was written beside the state."""
        args = self._ocp.args
        return self._manager.restore(step, args=args.Composite(notes=args.JsonRestore()))["notes"]

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The state and the notes saved at `step`; `like` has the expected shapes, types and placement.

        The mesh may be another one than that of the state saved, and `keep_on_host` may be around the optimizer or not.

        **Raises:** `CheckpointError` where the data read differ from the data saved, or where `like` is the state of
        another model or optimizer.
        """
        with self._reading(step):
            return self._restore(step, like)

    def restore_model(self, step: int, like: Any, *, mesh: Mesh | None = None) -> Any:
        """The model of the state saved at `step`, without reading the optimizer's state.

        **Arguments:** `like`, the expected shapes and types; `mesh`, the devices that the model is sharded over.

        **Raises:** `CheckpointError` where the data read differ from the data saved, or where `like` is another model.
        """
        placement: Any = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), like)
        if mesh is not None:
            mesh = standard_mesh(mesh)
            placement = shardings(partition_specs(like, mesh), mesh)
        placed = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), like, placement)
        with self._reading(step):
            return self._restore(step, {"model": placed})[0]["model"]

    def _restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """What was saved of the fields of `like`, in its form, and the notes."""
        args, record = self._ocp.args, self._notes(step)
        _check_record(record, step)
        tree = self._manager.item_metadata(step)["state"].tree
        sources = match(record.get("leaves") or describe(tree), like)  # older ones do not say
        read = {sources[name]: as_stored(leaf) for name, leaf in named_leaves(like).items() if leaf.size}
        placed = [read.get(name, self._ocp.PLACEHOLDER) for name in named_leaves(tree)]
        item = jax.tree.unflatten(jax.tree.structure(tree), placed)
        restore = self._ocp.checkpoint_utils.construct_restore_args(item)
        parts = args.Composite(state=args.PyTreeRestore(item, restore_args=restore))
        arrays = named_leaves(self._manager.restore(step, args=parts)["state"])
        arrays = {name: arrays[name] for name in read}
        _check_arrays(arrays, record)
        return take(arrays, sources, like), record["notes"]

    def restore_newest(self, like: TrainState, report: Callable[[str], None]) -> tuple[int, TrainState, dict[str, Any]]:
        """Restores the newest intact checkpoint; damaged ones are reported and renamed to `damaged-STEP`.

        **Raises:** `CheckpointError` where there is none.
        """
        for step in reversed(self.steps):
            error = None
            try:
                state, notes = self.restore(step, like)
            except Mismatch:
                raise
            except CheckpointError as damage:
                error, state, notes = damage, None, {}
            if agree(error is None):
                return step, state, notes  # pyright: ignore[reportReturnType]
            names = (f"damaged-{step}" + f"-{again}" * (again > 1) for again in itertools.count(1))
            aside = next(path for path in (self.directory / name for name in names) if not path.exists())
            report(f"{error or f'checkpoint {step} cannot be restored by another process'}; it is now {aside.name}")
            if leads():
                (self.directory / str(step)).rename(aside)
            agree(True)  # wait until it is renamed
            self._manager.reload()
        found = f"those damaged are set aside as {', '.join(self.set_aside)}" if self.set_aside else "it is empty"
        raise CheckpointError(
            f"{self.directory}: no checkpoint that can be restored ({found}); begin again in another directory"
        )

    @contextmanager
    def _reading(self, step: int) -> Iterator[None]:
        try:
            yield
        except jax.errors.JaxRuntimeError:  # out of memory, or another process has died
            raise
        except Mismatch as error:
            raise Mismatch(f"{self.directory / str(step)}: {error}") from None
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
            reason = system_reason(error)
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


def _check_record(record: Any, step: int) -> None:
    """Refuses notes that have changed since they were saved."""
    if not isinstance(record, dict) or _seal(record) != record or record["step"] != step:
        raise CheckpointError("its notes have changed since they were written")


def _check_arrays(arrays: dict[str, Any], record: dict[str, Any]) -> None:
    """Refuses arrays that have changed since they were saved."""
    for name, value in checksums(arrays).items():
        if record["checksums"][name] != value:
            raise CheckpointError(f"{name} has changed since it was written")


def _seal(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the SHA-256 hash of its other fields."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def check_name(directory: Path) -> None:
    """Refuses a path with `[`: Orbax takes it for a pattern, finds nothing, and leaves a checkpoint without its arrays.

    **Raises:** `OutputError`.
    """
    if "[" in str(directory.absolute()):
        raise OutputError(
            f"{directory.absolute()}: Orbax cannot read checkpoints from a path with [; choose another name"
        )


def abstract(state: TrainState) -> TrainState:
    """The shapes, types and placement of a state, without its arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
