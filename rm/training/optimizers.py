"""Optimizers and schedules composed from optax; any other optax transformation works as well."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import optax
from jaxtyping import Array

from ..errors import ConfigError
from ..model.llama import RewardModel
from .layerwise import per_layer
from .offload import keep_on_host
from .rounding import keep_moments

Schedule = Literal["linear", "cosine", "constant"]
OptimizerName = Literal["adamw", "lion", "muon", "adafactor"]
Dtype = Literal["float32", "bfloat16"]

_ADAM = {"b1": 0.9, "b2": 0.999, "eps": 1e-8}  # AdamW's, by default


def learning_rate_schedule(
    kind: Schedule, *, peak: float, steps: int, end: float = 0.0, warmup_steps: int = 0
) -> optax.Schedule:
    """The learning rate of updates `0 … steps - 1`: linear warm-up from 0 to `peak`, then decay to `end`.

    It follows the updates of the run (`state.step`): skipped ones count.

    **Arguments:** `kind`, the decay: `linear`, `cosine` (half a period) or `constant` (none); `warmup_steps`, the
    updates before `peak` is reached.

    >>> rate = learning_rate_schedule("linear", peak=1.0, steps=4)
    >>> [float(rate(step)) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    """
    down = max(1, steps - warmup_steps)
    after = {
        "linear": lambda: optax.linear_schedule(peak, end, down),
        "cosine": lambda: optax.cosine_decay_schedule(peak, down, alpha=end / peak),
        "constant": lambda: optax.constant_schedule(peak),
    }[kind]()
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def adamw(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    moments: Dtype = "float32",
) -> optax.GradientTransformation:
    """AdamW after clipping by global norm, with TRL's defaults; no weight decay on norms and biases.

    **Arguments:** `b1`, `b2`, decay rates of the first and the second moment; `eps`, added to the square root of the
    second moment, as `torch.optim.AdamW` does.

    **Raises:** `ConfigError` for a decay rate outside of `[0, 1)` and an `eps` that is not positive.

    **Source:** Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2.

    >>> adamw(1e-5, b2=0.95, eps=1e-5).init({"weight": jax.numpy.zeros(2)})[1][0].nu["weight"].shape
    (2,)
    """
    options: Any = {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm, "moments": moments}
    return make_optimizer("adamw", learning_rate, b1=b1, b2=b2, eps=eps, **options)


def make_optimizer(
    name: OptimizerName,
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
    moments: Dtype = "float32",
    offload: bool = False,
) -> optax.GradientTransformation:
    """One of optax's optimizers after clipping by global norm; no weight decay on norms and biases.

    | name        | moments, in bytes per parameter               | source                                       |
    |-------------|-----------------------------------------------|----------------------------------------------|
    | `adamw`     | two moments: 8, or 4 with bfloat16 `moments`  | Loshchilov & Hutter 2019, arXiv 1711.05101   |
    | `lion`      | one: 4 or 2                                   | Chen et al. 2023, arXiv 2302.06675, alg. 2   |
    | `muon`      | one for matrices of blocks, else as `adamw`   | Liu et al. 2025, arXiv 2502.16982, eq. 4     |
    | `adafactor` | sums over rows and columns: almost none       | Shazeer & Stern 2018, arXiv 1804.04235, alg. 4 |

    **Arguments:** `b1`, `b2`, `eps`, those of AdamW, also of the part that Muon leaves to it; `moments`, their type
    between updates; bfloat16 ones are rounded stochastically (`keep_moments`); `offload`, whether to keep them in host
    memory between updates (`keep_on_host`).

    **Raises:** `ConfigError` where `b1`, `b2` or `eps` is changed for Lion or Adafactor, which have no such number or
    another one, and for a decay rate outside of `[0, 1)` or an `eps` that is not positive.

    >>> make_optimizer("lion", 1e-4).init({"weight": jax.numpy.zeros((2, 2))})[1][0].mu["weight"].shape
    (2, 2)
    """
    check_rates(name, b1=b1, b2=b2, eps=eps)
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask)
    rule = {
        "adamw": lambda: adam,
        "lion": lambda: optax.lion(learning_rate, weight_decay=weight_decay, mask=decay_mask),
        "muon": lambda: _muon(learning_rate, weight_decay, rest=adam),
        "adafactor": lambda: _adafactor(learning_rate, weight_decay),
    }[name]()
    clip = optax.identity() if max_grad_norm is None else optax.clip_by_global_norm(max_grad_norm)
    rule = rule if moments == "float32" else keep_moments(rule)
    return optax.chain(clip, keep_on_host(rule) if offload else rule)


def check_rates(name: OptimizerName, *, names: Mapping[str, str] = {}, **rates: float) -> None:
    """Refuses decay rates and epsilons that no AdamW has, and such as the optimizer would not use.

    **Arguments:** `rates`, of `b1`, `b2` and `eps`; `names`, what the user calls them.

    **Raises:** `ConfigError`, naming the argument.

    >>> check_rates("adafactor", names={"b2": "--adam-beta2"}, b2=0.95)
    Traceback (most recent call last):
    rm.errors.ConfigError: --adam-beta2 0.95 has no effect on adafactor; leave it out, or take adamw or muon
    """
    for argument, value in rates.items():
        if not isinstance(value, int | float):
            continue  # traced, as by `optax.inject_hyperparams`
        shown = names.get(argument, argument)
        if not (0 < value < math.inf if argument == "eps" else 0 <= value < 1):
            expected = "greater than 0" if argument == "eps" else "at least 0 and less than 1"
            raise ConfigError(f"{shown} must be {expected}, found {value}")
        if name in ("lion", "adafactor") and value != _ADAM[argument]:
            raise ConfigError(f"{shown} {value} has no effect on {name}; leave it out, or take adamw or muon")


def _adafactor(learning_rate: optax.ScalarOrSchedule, weight_decay: float) -> optax.GradientTransformation:
    """Adafactor of every layer, for its rates follow the size of an array; optax's own decay has no learning rate."""
    rule = per_layer(optax.adafactor(learning_rate))
    if not weight_decay:
        return rule
    decay = optax.add_decayed_weights(weight_decay, mask=decay_mask)
    decay = optax.chain(decay, optax.scale_by_learning_rate(learning_rate))

    def init(params: optax.Params) -> tuple[Any, Any]:
        return rule.init(params), decay.init(params)

    def update(updates: optax.Updates, state: Any, params: optax.Params | None = None):
        moved, rule_state = rule.update(updates, state[0], params)
        decayed, decay_state = decay.update(jax.tree.map(jax.numpy.zeros_like, moved), state[1], params)
        return jax.tree.map(jax.numpy.add, moved, decayed), (rule_state, decay_state)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def _muon(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float, *, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Muon for the matrices of blocks, AdamW for the rest; Muon's updates have AdamW's size, so rates carry over."""
    from optax.contrib import MuonDimensionNumbers, muon

    def kinds(params: RewardModel) -> RewardModel:
        def kind(path: tuple, _: Array) -> str:
            return "matrix" if jax.tree_util.keystr(path).endswith("_proj.weight") else "rest"

        return jax.tree_util.tree_map_with_path(kind, params)

    def axes(params: RewardModel) -> RewardModel:  # in and out features of matrices that may be stacked
        return jax.tree.map(lambda leaf: MuonDimensionNumbers(leaf.ndim - 1, leaf.ndim - 2), params)

    matrix = muon(learning_rate, weight_decay=weight_decay, muon_weight_dimension_numbers=axes, consistent_rms=0.2)  # pyright: ignore
    return optax.partition({"matrix": matrix, "rest": rest}, kinds)


def decay_mask(model: RewardModel) -> RewardModel:
    """The mask of weight decay: true for matrices, false for norms and biases."""

    def decays(path: tuple, _: Array) -> bool:
        name = jax.tree_util.keystr(path)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(decays, model)
