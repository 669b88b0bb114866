"""What a server says of itself: which models there are, which of them are ready, what memory they take."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from .models import ServedModel, names_of
from .openai_bodies import ModelCard, ModelList
from .traffic import Metrics

Status = Literal["ready", "not ready"]


class ModelState(msgspec.Struct, kw_only=True):
    """Whether a model is ready, and what its parameters take."""

    status: Status
    parameter_bytes: int


class Health(msgspec.Struct, kw_only=True):
    """Whether all models are ready, and each of them."""

    status: Status
    models: dict[str, ModelState]


def health_of(models: Sequence[ServedModel]) -> Health:
    """The state of every model, and of all together."""
    found = {
        model.name: ModelState(status=_status(model.batcher.is_ready), parameter_bytes=model.parameter_bytes)
        for model in models
    }
    return Health(status=_status(all(model.batcher.is_ready for model in models)), models=found)


def _status(ready: bool) -> Status:
    return "ready" if ready else "not ready"


def list_models(models: Sequence[ServedModel], created: int, max_length: int) -> ModelList:
    """The names that requests may give; `created`, in seconds since 1970."""
    cards = [ModelCard(id=name, created=created, max_model_len=max_length) for name in names_of(models)]
    return ModelList(data=cards)


def watch(models: Sequence[ServedModel], metrics: Metrics) -> None:
    """Has Prometheus read the queue, and the state of every model."""
    from prometheus_client import Gauge

    queue = Gauge("rm_queue_sequences", "Sequences that wait", registry=metrics.registry)
    queue.set_function(lambda: sum(model.batcher.waiting for model in models))
    ready = Gauge("rm_model_ready", "1 where requests are scored at once", ("model",), registry=metrics.registry)
    size = Gauge("rm_model_parameter_bytes", "Memory of parameters", ("model",), registry=metrics.registry)
    for model in models:
        ready.labels(model.name).set_function(lambda batcher=model.batcher: batcher.is_ready)
        size.labels(model.name).set(model.parameter_bytes)
