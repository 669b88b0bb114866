"""The flags that several commands share, in groups: a command inherits from those that it takes."""

import dataclasses
import datetime
import math
import re
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
from jax.sharding import Mesh

from ..data.encode import RowOptions
from ..data.sources import parse_rename
from ..devices.mesh import make_mesh, parse_mesh
from ..errors import ConfigError
from ..model.adapters import TARGETS, Part, Target, Training, check_lora
from ..model.attention_choice import Attention
from ..model.compute import Compute, choose_dtype
from ..training.optimizers import Dtype, OptimizerName


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The model and the data sets to read."""

    model: str
    """Llama, Mistral or Qwen: a directory of config.json, safetensors and tokenizer.json, or org/name[@revision]."""
    dataset: tuple[str, ...]
    """Preferences: files, patterns, saved directories, hub ids (org/name[:config][@revision]); mixed: A=0.7 B=0.3."""
    chat_template: Path | None = None
    """File with a chat template (jinja) instead of the model's own; the export carries it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """The head of the model, where its files leave a choice."""

    head: str | None = None
    """Row of lm_head that is the head of a causal LM, such as lm_head:0 of Nemotron-70B-Reward-HF."""
    label_weights: tuple[float, ...] = ()
    """Weights of the labels of a head with several, whose sum is the reward."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions, SourceOptions):
    """The comparisons made from the rows, and their order in updates."""

    split: str = "train"
    """Split of --dataset; slices such as train[:5%] work, and a file is one split, train."""
    rename: tuple[str, ...] = ()
    """Columns to read under other names, such as chosen=response_j rejected=response_k prompt=question."""
    chat_template_date: datetime.date | None = None
    """Today's date for chat templates that ask; by default the one that the model was trained with, else 2024-07-26."""
    streaming: bool = False
    """Read only as many rows as the updates need (--max-steps), shuffled within 10,000 rows."""
    max_steps: int | None = None
    """Updates in all, whatever --epochs says."""
    batch_size: int = 16
    """Comparisons of an update."""
    drop_last: bool = False
    """Leave out the last, short batch of an epoch."""
    shuffle: bool = True
    """Shuffle the data, anew every epoch."""
    seed: int = 0
    """Seed of the new score head and of the order of the data."""

    def __post_init__(self):
        check_positive(self, "max_length", "batch_size", "max_steps")
        parse_rename(self.rename)
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"--seed must be between 0 and 2**32 - 1, found {self.seed}")
        if self.streaming and self.max_steps is None:
            raise ConfigError("--streaming needs --max-steps, which says how many rows to read")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingOptions:
    """The speed of reading data."""

    num_proc: int = 1
    """Processes that tokenize."""
    cache: bool = True
    """Keep tokenized data in the cache of datasets, and read them from there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions(ReadingOptions, DataOptions):
    """All options of the data path."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "num_proc")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """The type of the computation."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations and matrix products; losses and the score head stay float32. auto is bfloat16 on TPUs and on
    GPUs since Ampere, else float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """The devices and the attention implementation: the results are the same up to rounding."""

    attention: Attention = "auto"
    """Attention implementation; auto takes the fastest of the platform that is exact for the rows."""
    mesh: str | None = None
    """Devices to use together, such as fsdp=8 or data=2,fsdp=4 (of data, fsdp, tensor, context); by default one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForwardOptions(DeviceOptions, PrecisionOptions):
    """The computation of rewards."""

    def compute(self) -> Compute:
        """The options as the library takes them."""
        return Compute(dtype=self.dtype, attention=self.attention, mesh=choose_mesh(self.mesh))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpdateOptions(DeviceOptions):
    """The devices of an update, and the place of the optimizer's state."""

    offload: bool = False
    """Keep the optimizer's state in the host's memory; every update moves it through the device."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StateOptions:
    """The state kept for every parameter."""

    optimizer: OptimizerName = "adamw"
    """Optimizer; its memory is what python -m rm plan shows."""
    moments: Dtype = "float32"
    """Type of the optimizer's moments; bfloat16 halves their memory and is rounded stochastically."""
    parameters: Dtype = "float32"
    """Type of the parameters; bfloat16 parameters are rounded stochastically at every update."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartOptions:
    """The part of the model that trains."""

    train: Part = "model"
    """model, or head: the score head alone."""
    freeze_layers: int = 0
    """Number of the first layers that do not train, nor does the embedding then."""
    lora_rank: int = 0
    """Rank of low-rank adapters (LoRA), which train with the head in place of the model; 0 for none."""
    lora_alpha: float | None = None
    """Adapters are scaled by this over the rank; by default twice the rank."""
    lora_targets: tuple[Target, ...] = TARGETS
    """Matrices that get an adapter."""
    rslora: bool = False
    """Scale adapters by --lora-alpha over the square root of the rank."""

    def part(self) -> Training:
        """The options as the library takes them.

        **Raises:** `ConfigError` for options that contradict each other.
        """
        if self.train == "head" and (self.freeze_layers or self.lora_rank):
            raise ConfigError("--train head trains the head alone: leave out --freeze-layers and --lora-rank")
        if self.freeze_layers < 0 or self.lora_rank < 0:
            raise ConfigError("--freeze-layers and --lora-rank must not be negative")
        check_positive(self, "lora_alpha")
        if self.lora_rank:
            check_lora(self.lora_rank, self.lora_targets)
        elif self.lora_alpha is not None or self.rslora or self.lora_targets != TARGETS:
            raise ConfigError("--lora-alpha, --lora-targets and --rslora need --lora-rank")
        names = names_of(PartOptions) - {"train"}
        return Training(part=self.train, **{name: getattr(self, name) for name in names})


Options = TypeVar("Options", bound=PrecisionOptions)


def on_this_device(args: Options, *, say: bool = True) -> Options:
    """The same arguments with the type that `--dtype auto` is on this device; says so where it rounds."""
    chosen = dataclasses.replace(args, dtype=choose_dtype(args.dtype).name)
    if say and args.dtype == "auto" and chosen.dtype != "float32":
        print(f"computes in {chosen.dtype}; --dtype float32 gives the rewards of other devices", flush=True)
    return chosen


def choose_mesh(sizes: str | None) -> Mesh | None:
    """The mesh of `--mesh`; without it a single process takes a single device, and several spread out over `fsdp`.

    A single process may take fewer devices than it has, the first ones.
    """
    if sizes is not None:
        parsed = parse_mesh(sizes)
        count = math.prod(parsed.values()) if jax.process_count() == 1 else jax.device_count()
        return make_mesh(**parsed, devices=jax.devices()[: max(count, 1)])  # pyright: ignore[reportArgumentType]
    return make_mesh(fsdp=jax.device_count()) if jax.process_count() > 1 else None


def names_of(*groups: type) -> set[str]:
    """The names of the fields of groups.

    >>> sorted(names_of(PrecisionOptions, DeviceOptions))
    ['attention', 'dtype', 'mesh']
    """
    return {field.name for group in groups for field in dataclasses.fields(group)}


def flag(name: str) -> str:
    """The command line's spelling of an argument.

    >>> flag("max_length")
    '--max-length'
    """
    return f"--{name.replace('_', '-')}"


def parse_duration(name: str, duration: str) -> int:
    """The seconds of a duration in days, hours, minutes and seconds.

    **Raises:** `ConfigError`, naming the flag.

    >>> parse_duration("--join-timeout", "1h30m"), parse_duration("--join-timeout", "90")
    (5400, 90)
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", duration, re.ASCII)
    parts = found.groups("0") if found else "0000"
    seconds = sum(int(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=True))
    if not 0 < seconds < 10**9:
        raise ConfigError(f"{name}: expected a duration such as 90s, 10m or 3h50m, found {duration!r}")
    return seconds


def parse_head_std(text: str | None, hidden_size: int) -> float | None:
    """The standard deviation of `--head-std`; `instructgpt` is `1/√(D + 1)`.

    **Raises:** `ConfigError`.

    **Source:** Stiennon et al. 2020, arXiv 2009.01325, appendix B.1; InstructGPT and Tulu 3 do the same.

    >>> parse_head_std("instructgpt", 99), parse_head_std("0.01", 99)
    (0.1, 0.01)
    """
    if text is None:
        return None
    if text == "instructgpt":
        return (hidden_size + 1) ** -0.5
    try:
        std = float(text)
    except ValueError:
        std = math.nan
    if not 0 <= std < math.inf:
        raise ConfigError(f"--head-std: expected a number that is not negative, or instructgpt, found {text!r}")
    return std


def check_positive(arguments: Any, *names: str) -> None:
    """Raises `ConfigError`, naming the flag, for an argument that is given and not greater than 0."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{flag(name)} must be greater than 0, found {value}")


def check_not_negative(arguments: Any, *names: str) -> None:
    """Raises `ConfigError`, naming the flag, for an argument less than 0."""
    for name in names:
        if getattr(arguments, name) < 0:
            raise ConfigError(f"{flag(name)} must not be negative, found {getattr(arguments, name)}")


def check_finite(arguments: Any) -> None:
    """Raises `ConfigError`, naming the flag, for infinite numbers and NaN."""
    for name, value in vars(arguments).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{flag(name)} must be finite, found {value}")
