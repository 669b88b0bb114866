"""An optimizer as an update calls it: any of optax's, with what it asks for beside the gradients."""

from typing import Any

import optax

Optimizer = optax.GradientTransformation | optax.MultiSteps


def as_transformation(optimizer: Optimizer) -> optax.GradientTransformationExtraArgs:
    """The optimizer as a transformation that accepts extra arguments; one that needs only gradients ignores them.

    >>> rule = as_transformation(optax.MultiSteps(optax.sgd(0.1), every_k_schedule=2))
    >>> isinstance(rule, optax.GradientTransformationExtraArgs)
    True
    """
    if isinstance(optimizer, optax.MultiSteps):  # its own `gradient_transformation` drops what an optimizer asks for
        return optax.GradientTransformationExtraArgs(optimizer.init, optimizer.update)  # pyright: ignore
    return optax.with_extra_args_support(optimizer)


def optimizer_step(
    optimizer: Optimizer, gradients: Any, opt_state: optax.OptState, params: Any, **extra: Any
) -> tuple[Any, optax.OptState]:
    """The optimizer's change of `params` and its new state.

    **Raises:** `TypeError` if it needs a `value_fn` that it is not given.
    """
    if isinstance(optimizer, optax.MultiSteps):
        extra.pop("value_fn", None)  # that of the last batches, where the gradient is the mean of several
    try:
        return as_transformation(optimizer).update(gradients, opt_state, params, **extra)
    except TypeError as error:
        if "value_fn" not in str(error):
            raise
        advice = "jit rm.update in place of rm.jit_update, or give it to rm.apply_gradients"
        if "value_fn" in extra or isinstance(optimizer, optax.MultiSteps):
            advice = "it cannot be inside optax.MultiSteps, keep_on_host or per_layer"
        raise TypeError(f"the optimizer's line search needs the loss as a function (value_fn): {advice}") from None
