"""The arguments of `python -m rm train`, in groups, and which of them may change when a run is resumed."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..errors import ConfigError
from ..files.hub import is_repository
from ..model.compute import Compute
from ..planning.advice import LEAST_TOKENS
from ..training.optimizers import Schedule, check_rates
from .options import (
    HeadOptions,
    PartOptions,
    PrecisionOptions,
    ReadingOptions,
    ReadOptions,
    StateOptions,
    UpdateOptions,
    check_finite,
    check_not_negative,
    check_positive,
    choose_mesh,
    flag,
    names_of,
    parse_duration,
    parse_head_std,
)
from .run_directory import Resume


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(HeadOptions, PartOptions, StateOptions, PrecisionOptions):
    """The objective and the optimizer."""

    epochs: float = 1.0
    """Passes over the data."""
    learning_rate: float = 5e-6
    """Peak learning rate."""
    learning_rate_end: float = 0.0
    """Learning rate that the schedule ends at."""
    schedule: Schedule = "linear"
    """Decay of the learning rate after the warm-up."""
    warmup_ratio: float = 0.0
    """Share of the updates over which the learning rate rises from 0."""
    warmup_steps: int | None = None
    """Number of the updates over which it rises, in place of --warmup-ratio."""
    adam_beta1: float = 0.9
    """Decay rate of AdamW's first moment; with muon, of the parameters that AdamW trains there."""
    adam_beta2: float = 0.999
    """Decay rate of AdamW's second moment, likewise."""
    adam_epsilon: float = 1e-8
    """Added to the square root of AdamW's second moment, likewise."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases do not decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    skip_spikes: float | None = None
    """Skip updates whose gradient has more than this many times the median norm of the 50 before."""
    center_rewards_coefficient: float = 0.1
    """Weight of the centering penalty, which holds rewards around 0."""
    head_std: str | None = None
    """Standard deviation of a new score head: a number, or instructgpt for 1/sqrt(hidden size + 1), which InstructGPT
    and Tulu 3 take; by default the model's initializer_range."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The output of a run, and when it evaluates and saves."""

    output: Path
    """Directory of the run; metrics.jsonl, run.json, checkpoints/ and model/ appear in it."""
    resume: Resume = "never"
    """auto goes on from the newest whole checkpoint in --output, or begins where there is none; required refuses to
    begin. Give the same arguments as before; --max-steps and --epochs may be larger, also when the run is finished, and
    what does not decide what is computed may change, such as --mesh, --offload and the flags of evaluations."""
    eval_dataset: tuple[str, ...] = ()
    """Data sets to evaluate on, each like --dataset, one by one."""
    eval_split: str | None = None
    """Split to evaluate on: of every --eval-dataset (default: train), or of --dataset where there is none."""
    log_every: int = 10
    """Updates between lines of metrics.jsonl."""
    eval_every: int | None = None
    """Updates between evaluations; the last update is always evaluated where there is something to evaluate on."""
    eval_on_start: bool = False
    """Evaluate before the first update as well."""
    save_every: int | None = None
    """Updates between checkpoints; there is always one at the end, and where SIGTERM or SIGINT stops the run."""
    keep: int = 3
    """Number of the newest checkpoints to keep."""
    keep_best: str | None = None
    """Metric of the evaluations, such as eval_pairs_accuracy, whose best checkpoint stays as well (of a loss, the
    lowest); updates that are both evaluated and saved count."""
    load_best: bool = False
    """Export the model of the best evaluation by --keep-best, not the last; every evaluated update is saved."""
    save_final_only: bool = False
    """Save checkpoints only where a signal or --time-limit stops the run; in the end, the model alone."""
    time_limit: str | None = None
    """Time, such as 3h50m, after which the run saves and ends, as by SIGTERM; less than what a cluster allows."""
    max_skipped: int = 10
    """Updates in a row that may be skipped, because their loss or gradient is not finite; then the run stops."""
    wandb: str | None = None
    """Project of Weights & Biases to send metrics to as well; WANDB_MODE=offline only writes them to --output."""
    tensorboard: bool = False
    """Write the metrics as TensorBoard's event files, too, in --output/tensorboard."""
    trackio: str | None = None
    """Project of trackio to write the metrics to as well: on this machine, or to the Space in TRACKIO_SPACE_ID."""
    run_name: str | None = None
    """Name of the run at Weights & Biases and in trackio; by default that of --output."""
    quiet: bool = False
    """Say nothing but warnings and errors."""
    push_to: str | None = None
    """Repository of the hub, org/name, that the reward model is uploaded to in the end; a new one is private."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """Several processes of one run."""

    distributed: bool = False
    """Join the other processes of the run; they are found on SLURM, Open MPI, GKE and TPU pods."""
    coordinator: str | None = None
    """Address of process 0, HOST:PORT, where --distributed cannot find it."""
    num_processes: int | None = None
    """Number of processes, with --coordinator."""
    process_id: int | None = None
    """Number of this process, counted from 0, with --coordinator."""
    join_timeout: str = "10m"
    """The longest wait for the other processes, such as 90s or 10m."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryOptions(UpdateOptions):
    """The memory of an update: by default, what the device has."""

    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """Recomputation in the backward pass: full needs the least memory, none the least time; auto is the least that fits
    the device by the formula of python -m rm plan, and full where the device does not tell its memory, as CPUs."""
    micro_batch_tokens: Literal["auto"] | int = "auto"
    """Tokens that a device computes at once; auto is 4096, or up to 32768 where a device has memory for them."""


# groups that may change when a run is resumed: they do not decide what it computes
_MAY_CHANGE = names_of(ReadingOptions, MemoryOptions, RunOptions, ProcessOptions)
MAY_GROW = {"epochs", "max_steps"}
ADAM = {"b1": "adam_beta1", "b2": "adam_beta2", "eps": "adam_epsilon"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(ProcessOptions, RunOptions, MemoryOptions, TrainingOptions, ReadOptions):
    """Train a reward model on preference pairs."""

    common: ClassVar = (
        "model",
        "dataset",
        "output",
        "resume",
        "eval_dataset",
        "epochs",
        "learning_rate",
        "batch_size",
        "max_length",
        "lora_rank",
        "dtype",
        "mesh",
        "save_every",
        "wandb",
    )

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "epochs", "learning_rate", "log_every", "eval_every", "save_every", "keep")
        check_positive(self, "max_skipped", "skip_spikes")
        if self.micro_batch_tokens != "auto":
            check_positive(self, "micro_batch_tokens")
        check_finite(self)
        check_not_negative(self, "max_grad_norm", "weight_decay", "learning_rate_end")
        self.part()
        check_rates(self.optimizer, names={name: flag(each) for name, each in ADAM.items()}, **self.rates())
        parse_head_std(self.head_std, hidden_size=1)
        given = [name for name in ("coordinator", "num_processes", "process_id") if getattr(self, name) is not None]
        if given and (not self.distributed or len(given) < 3):
            raise ConfigError("--coordinator, --num-processes and --process-id go together, with --distributed")
        parse_duration("--join-timeout", self.join_timeout)
        if self.push_to is not None and not is_repository(self.push_to):
            raise ConfigError(f"--push-to: expected org/name, found {self.push_to!r}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"--warmup-ratio must be between 0 and 1, found {self.warmup_ratio}")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ConfigError(f"--warmup-steps must not be negative, found {self.warmup_steps}")
        if self.warmup_steps is not None and self.warmup_ratio:
            raise ConfigError("--warmup-steps and --warmup-ratio are two ways to say one thing; leave one out")
        if self.eval_on_start and not (self.eval_dataset or self.eval_split):
            raise ConfigError("--eval-on-start needs something to evaluate on: --eval-dataset or --eval-split")
        if self.load_best and self.keep_best is None:
            raise ConfigError("--load-best needs --keep-best, the metric that says which evaluation is the best")
        if self.save_final_only and (self.save_every or self.keep_best):
            raise ConfigError("--save-final-only saves no checkpoints: leave out --save-every and --keep-best")
        if self.time_limit is not None:
            parse_duration("--time-limit", self.time_limit)

    def compute(self) -> Compute:
        """The options of `rm.rewards`, for an objective of your own as for the usual one."""
        remat = "full" if self.remat == "auto" else self.remat
        return Compute(dtype=self.dtype, remat=remat, attention=self.attention, mesh=choose_mesh(self.mesh))

    @property
    def micro_batch(self) -> int:
        """The tokens that a device computes at once."""
        return LEAST_TOKENS if self.micro_batch_tokens == "auto" else self.micro_batch_tokens

    def rates(self) -> dict[str, float]:
        """What `rm.make_optimizer` calls AdamW's numbers."""
        return {name: getattr(self, each) for name, each in ADAM.items()}

    def decisive(self) -> dict[str, Any]:
        """The arguments that decide what the run computes; when it is resumed, they stay or, as its length, grow."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in _MAY_CHANGE}
