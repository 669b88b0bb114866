"""Where a model comes from: what run.json, rm.json and the model card say of the run."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..data.sources import is_file_name, parse_source
from ..text.tokenizer import Tokenizer
from .arguments import TrainArguments
from .prepare import Prepared
from .run import MAY_CHANGE, run_id, versions


def describe_run(args: TrainArguments, prepared: Prepared, steps: int) -> dict[str, Any]:
    """What run.json says from the beginning on."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(prepared.model))
    return {
        "arguments": dataclasses.asdict(args),
        "run_id": run_id(args.output),
        "versions": versions(),
        "data": prepared.tables,
        "data_sha256": prepared.hashes,
        "model": dataclasses.asdict(prepared.model.config)
        | {"parameters": parameters, "pad_token": prepared.tokenizer.pad_token},
        "row_shapes": [dataclasses.asdict(shape) for shape in prepared.plan.shapes],
        "steps": steps,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def pool_rewards(evaluation: Mapping[str, float], counts: Mapping[str, int]) -> dict[str, Any]:
    """Mean and spread of the rewards of all evaluation sets together, every reward with the same weight.

    `mean = Σ nᵢ mᵢ / Σ nᵢ` and `std² = Σ nᵢ (sᵢ² + (mᵢ - mean)²) / Σ nᵢ`, which need not what each reward was.

    **Arguments:** `evaluation`, with `eval_NAME_mean_reward` and `eval_NAME_std_reward`; `counts`, the rewards of each
    set, two for a comparison.

    >>> found = {"eval_a_mean_reward": 1.0, "eval_a_std_reward": 1.0}  # of 0, 0, 2, 2
    >>> found |= {"eval_b_mean_reward": 4.0, "eval_b_std_reward": 0.0}  # of 4, 4
    >>> pool_rewards(found, {"a": 4, "b": 2})
    {'mean': 2.0, 'std': 1.632993161855452, 'count': 6, 'data': ['a', 'b']}
    """
    sizes = list(counts.values())
    means, stds = (np.array([evaluation[f"eval_{name}_{kind}_reward"] for name in counts]) for kind in ("mean", "std"))
    mean = np.average(means, weights=sizes)
    std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, weights=sizes))
    return {"mean": float(mean), "std": float(std), "count": sum(sizes), "data": list(counts)}


def provenance(args: TrainArguments, tokenizer: Tokenizer, record: dict[str, Any]) -> dict[str, Any]:
    """What the export says of the run; it is made to be given away, so local files are named without their place."""
    base, template = parse_source(args.model), tokenizer.chat_template
    how = MAY_CHANGE | {"model", "dataset", "chat_template"}
    hyperparameters = {name: value for name, value in record["arguments"].items() if name not in how}
    return {
        "base_model": _public_name(base.path),
        "base_model_is_hub_id": _is_hub_id(base.path),
        "dataset": [_public_name(parse_source(dataset).path) for dataset in args.dataset],
        "data": {
            name: table | {"source": _public_name(table["source"]), "hub": _is_hub_id(table["source"])}
            for name, table in record["data"].items()
        },
        "hyperparameters": json.loads(json.dumps(hyperparameters, default=str)),
        "steps": record["steps"],
        "parameters": record["model"]["parameters"],
        "chat_template_sha256": hashlib.sha256(template.encode()).hexdigest() if template else None,
        "evaluation": record["evaluation"],
        **({"reward": record["reward"]} if "reward" in record else {}),
        "repository": args.push_to,
        "versions": record["versions"],
    }


def _is_hub_id(path: str) -> bool:
    return not Path(path).exists() and not is_file_name(path)


def _public_name(path: str) -> str:
    return path if _is_hub_id(path) else Path(path).resolve().name
