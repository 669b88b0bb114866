"""An optimizer as an update calls it: any of optax's, with what it asks for beside the gradients."""

from typing import Any

import optax

Optimizer = optax.GradientTransformation | optax.MultiSteps


def as_transformation(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """The transformation of an `optax.MultiSteps` object; one that asks for gradients alone ignores what else it gets.

    >>> rule = as_transformation(optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2))
    >>> isinstance(rule, optax.GradientTransformationExtraArgs)
    True
    """
    rule = optimizer.gradient_transformation() if isinstance(optimizer, optax.MultiSteps) else optimizer
    return optax.with_extra_args_support(rule)


def optimizer_step(
    optimizer: Optimizer, gradients: Any, opt_state: optax.OptState, params: Any, **extra: Any
) -> tuple[Any, optax.OptState]:
    """The optimizer's change of `params` and its new state.

    **Raises:** `TypeError` if it needs a `value_fn` that `extra` lacks.
    """
    try:
        return as_transformation(optimizer).update(gradients, opt_state, params, **extra)
    except TypeError as error:
        if "value_fn" not in str(error) or "value_fn" in extra:
            raise
        advice = "jit rm.update, which has it, in place of rm.jit_update"
        raise TypeError(f"the optimizer's line search needs the loss as a function (value_fn); {advice}") from None
