"""Signs that a run learns nothing, each said once: what the log has seen, and what is to be said of it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

_DEAD = 3  # updates in a row: one batch alone may hold nothing but pairs that are cut to the same tokens
_NEAR, _FEWEST = 0.01, 20  # distance from ln 2 of a loss that has not moved, and the updates after which it should have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Signs:
    """What the log has seen so far; a checkpoint keeps it."""

    dead: int = 0  # updates in a row with equal rewards and no gradient
    farthest: float = 0.0  # the distance from ln 2 of any mean loss in the log
    told: tuple[str, ...] = ()  # evaluation sets of which something was said


def after_update(signs: Signs, values: Mapping[str, float]) -> tuple[Signs, str]:
    """What an update adds, and what is to be said, if anything.

    A new head of zeros gives equal rewards as well, but has a gradient.

    >>> after_update(Signs(dead=2), {"min_reward": 0.0, "max_reward": 0.0, "grad_norm": 0.1})
    (Signs(dead=0, farthest=0.0, told=()), '')
    """
    equal = values["min_reward"] == values["max_reward"]
    signs = dataclasses.replace(signs, dead=signs.dead + 1 if equal and values["grad_norm"] == 0 else 0)
    text = (
        f"all rewards were {values['max_reward']:g} and the gradient exactly 0 in {_DEAD} updates: the model learns "
        "nothing any more; begin again with a lower --learning-rate, which has most likely destroyed it"
    )
    return signs, text if signs.dead == _DEAD else ""


def after_window(signs: Signs, loss: float) -> Signs:
    """What the mean loss of a line of the log adds."""
    distance = abs(loss - math.log(2))
    return dataclasses.replace(signs, farthest=max(signs.farthest, distance if math.isfinite(distance) else math.inf))


def at_the_end(signs: Signs, steps: int) -> str:
    """What is to be said of a run as a whole, if anything, where its loss is the pairwise one.

    >>> at_the_end(Signs(farthest=0.001), steps=100).partition(":")[0]
    'the loss was ln 2 = 0.693 from the first update to the last'
    """
    if signs.dead >= _DEAD or signs.farthest > _NEAR or steps < _FEWEST:
        return ""
    return (
        "the loss was ln 2 = 0.693 from the first update to the last: the model does not tell chosen from rejected; "
        "likely reasons are too low a --learning-rate or too few updates, preferences that are random, or sides whose "
        "difference is cut off (--truncation) or lost (--rename, a chat template)"
    )


def after_evaluation(signs: Signs, evaluation: Mapping[str, Any]) -> tuple[Signs, list[str]]:
    """What an evaluation adds, and what is to be said of each set.

    >>> after_evaluation(Signs(), {"eval_a_min_reward": 2.0, "eval_a_max_reward": 2.0})[1][0].partition(":")[0]
    'eval_a'
    """
    names = [key.removesuffix("_min_reward") for key in evaluation if key.endswith("_min_reward")]
    flat = [n for n in names if evaluation[f"{n}_min_reward"] == evaluation[f"{n}_max_reward"] and n not in signs.told]
    said = [
        f"{name}: all rewards are {evaluation[f'{name}_min_reward']:g}: the model tells no response from another, and "
        "a tie counts as wrong"
        for name in flat
    ]
    return dataclasses.replace(signs, told=(*signs.told, *flat)), said
