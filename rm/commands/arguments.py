"""The flags of `python -m rm train`."""

import dataclasses
from pathlib import Path

from ..errors import ConfigError
from ..files.hub import is_repository
from ..model.attention_choice import Attention
from ..model.compute import Remat
from ..training.optimizers import Dtype, OptimizerName, Schedule
from .flags import check_finite, check_not_negative, check_positive
from .read import DataOptions
from .run import Resume


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainArguments(DataOptions):
    """Train a reward model on preference pairs."""

    output: Path
    """Directory of the run; metrics.jsonl, run.json, checkpoints/ and model/ appear in it."""
    eval_dataset: tuple[str, ...] = ()
    """Data sets to evaluate on, each like --dataset, one by one."""
    eval_split: str | None = None
    """Split to evaluate on: of every --eval-dataset (default: train), or of --dataset where there is none."""
    epochs: float = 1.0
    """Passes over the data."""
    learning_rate: float = 5e-6
    """Peak learning rate."""
    learning_rate_end: float = 0.0
    """Learning rate that the schedule ends at."""
    schedule: Schedule = "linear"
    """How the learning rate goes down after the warm-up."""
    warmup_ratio: float = 0.0
    """Share of the updates over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices; norms and biases do not decay."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this global norm; 0 turns clipping off."""
    center_rewards_coefficient: float = 0.1
    """Weight of the centering penalty, which holds rewards around 0."""
    dtype: Dtype = "float32"
    """Type of activations and matrix products; losses and the score head stay float32."""
    attention: Attention = "auto"
    """How attention is computed; auto takes the fastest form of the platform that is exact for the rows."""
    optimizer: OptimizerName = "adamw"
    """Optimizer; its memory is what python -m rm plan shows."""
    moments: Dtype = "float32"
    """Type that the optimizer's moments are kept in; bfloat16 halves them and is rounded stochastically."""
    parameters: Dtype = "float32"
    """Type that the parameters are kept in; bfloat16 ones are rounded stochastically at every update."""
    offload: bool = False
    """Keep the optimizer's state in the host's memory; it visits the device in every update."""
    remat: Remat = "full"
    """What the backward pass computes again instead of keeping: full needs least memory, none least time."""
    log_every: int = 10
    """Updates between lines of metrics.jsonl."""
    eval_every: int | None = None
    """Updates between evaluations; the last update is always evaluated where there is something to evaluate on."""
    save_every: int | None = None
    """Updates between checkpoints; there is always one at the end, and where SIGTERM or SIGINT stops the run."""
    keep: int = 3
    """How many of the newest checkpoints stay."""
    keep_best: str | None = None
    """Metric of the evaluations, such as eval_pairs_accuracy, whose best checkpoint stays as well (of a loss, the
    lowest); updates that are both evaluated and saved count."""
    resume: Resume = "never"
    """auto goes on from the newest whole checkpoint in --output, or begins where there is none; required refuses to
    begin. Give the same arguments as before, but any --mesh."""
    max_skipped: int = 10
    """Updates in a row that may be skipped, because their loss or gradient is not finite; then the run stops."""
    skip_spikes: float | None = None
    """Skip updates whose gradient has more than this many times the median norm of the 50 before."""
    wandb: str | None = None
    """Project of Weights & Biases to send metrics to as well; WANDB_MODE=offline only writes them to --output."""
    tensorboard: bool = False
    """Write the metrics as TensorBoard's event files, too, in --output/tensorboard."""
    trackio: str | None = None
    """Project of trackio to write the metrics to as well: on this machine, or to the Space in TRACKIO_SPACE_ID."""
    quiet: bool = False
    """Say nothing but warnings and errors."""
    push_to: str | None = None
    """Repository of the hub, org/name, that the reward model is uploaded to in the end; a new one is private."""
    mesh: str | None = None
    """Devices to use together, such as fsdp=8 or data=2,fsdp=4 (of data, fsdp, tensor, context); by default one."""
    distributed: bool = False
    """This is one of several processes; they find each other on SLURM, Open MPI, GKE and TPU pods."""
    coordinator: str | None = None
    """Address of process 0, HOST:PORT, where --distributed cannot find it."""
    num_processes: int | None = None
    """How many processes there are, with --coordinator."""
    process_id: int | None = None
    """Which of them this is, counted from 0, with --coordinator."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "epochs", "learning_rate", "log_every", "eval_every", "save_every", "keep")
        check_positive(self, "max_skipped", "skip_spikes")
        check_finite(self)
        check_not_negative(self, "max_grad_norm", "weight_decay", "learning_rate_end")
        given = [name for name in ("coordinator", "num_processes", "process_id") if getattr(self, name) is not None]
        if given and (not self.distributed or len(given) < 3):
            raise ConfigError("--coordinator, --num-processes and --process-id go together, with --distributed")
        if self.push_to is not None and not is_repository(self.push_to):
            raise ConfigError(f"--push-to: expected org/name, found {self.push_to!r}")
        if not 0 <= self.warmup_ratio <= 1:
            raise ConfigError(f"--warmup-ratio must be between 0 and 1, found {self.warmup_ratio}")
