"""One case of `gpu.py` in rm; prints a line of JSON."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_cases import LENGTHS, MARK, SHAPES, TIMED, WARM_UP, Case

import rm
from rm.data.comparisons import TokenizedComparisons, flatten
from rm.model.config import LlamaConfig
from rm.planning.flops import count_work, update_flops
from rm.training.optimizers import make_optimizer


def llama(case: Case) -> LlamaConfig:
    return LlamaConfig(**SHAPES[case.shape].config())


def comparisons_of(case: Case) -> TokenizedComparisons:
    """Random tokens in comparisons of the case's lengths."""
    config, rng = llama(case), np.random.default_rng(0)
    sequences = []
    for prompt, *responses in LENGTHS[case.lengths]:
        prefix = rng.integers(3, config.vocab_size, prompt)
        own = [np.append(k + 3, rng.integers(3, config.vocab_size, n - 1)) for k, n in enumerate(responses)]
        sequences.append([np.concatenate([prefix, tokens]) for tokens in own])
    return flatten(sequences, [0.0] * len(sequences), config)


def random_model(case: Case) -> rm.RewardModel:
    """Random weights, drawn leaf by leaf, because blocks and their stack together would not fit."""
    config, dtype = llama(case), jnp.dtype(case.parameters)
    shapes = jax.eval_shape(partial(rm.init_reward_model, config, key=jax.random.key(0), dtype=dtype))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), len(leaves))  # threefry's counters take gigabytes
    draw = jax.jit(lambda key, shape, dtype: 0.02 * jax.random.normal(key, shape, dtype), static_argnums=(1, 2))
    return jax.tree.unflatten(tree, [draw(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)])


def time_updates(case: Case) -> dict[str, Any]:
    """The update of a loop in Python, as a notebook has it, with what the command takes by default."""
    comparisons, compute = comparisons_of(case), rm.Compute(dtype="auto", remat=case.setting)  # pyright: ignore
    plan = rm.plan_batches(comparisons, len(comparisons), micro_batch_tokens=16384, shuffle=False)
    moments = "bfloat16" if case.parameters == "bfloat16" else "float32"

    def objective(model: rm.RewardModel, batch: rm.PreferenceBatch):
        r = rm.rewards(model, batch, compute)
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    optimizer = make_optimizer("adamw", 1e-5, moments=moments)
    state = rm.init_state(random_model(case), optimizer)
    advance, batches = rm.jit_update(objective, optimizer), plan.batch_at(0)
    seconds, metrics = [], {}
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(advance(state, batches))
        seconds.append(time.perf_counter() - start)
    work = update_flops(llama(case), count_work(comparisons.lengths)).total
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "items": len(comparisons),
        "flops": work,
        "loss": float(metrics["loss"]),
        "rows": [[len(batch.tokens), *batch.regions] for batch in batches],
    }


def time_scores(case: Case) -> dict[str, Any]:
    """`rm.score_sequences` of both sides of every pair, four times over."""
    from rm.evaluation.scoring import score_sequences

    comparisons, model = comparisons_of(case), random_model(case)
    sequences = _sequences(comparisons)
    run = partial(score_sequences, model, sequences * 4, batch_size=32, compute=rm.Compute(dtype="auto"))
    run()
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "items": 4 * len(sequences)}


def _sequences(comparisons: TokenizedComparisons) -> list[np.ndarray]:
    tokens, found = comparisons.tokens, []
    for bounds in comparisons.offsets.tolist():
        prefix = tokens[bounds[0] : bounds[1]]
        found += [np.concatenate([prefix, tokens[a:b]]) for a, b in pairwise(bounds[1:])]
    return found


def time_command(case: Case) -> dict[str, Any]:
    """`python -m rm train` as a whole process: the rate of its own log after the first updates."""
    from rm.saving.examples import write_llama

    updates, pairs = WARM_UP + TIMED, len(LENGTHS[case.lengths])
    with tempfile.TemporaryDirectory() as folder:
        texts, model, run = Path(folder) / "llama", Path(folder) / "model", Path(folder) / "run"
        texts.mkdir()
        write_llama(texts, ["a b"])
        rm.save_reward_model(model, random_model(case), rm.load_tokenizer(texts))
        rows = []
        for number in range(updates * pairs):
            prompt, chosen, rejected = ("a" * (n - 1) for n in LENGTHS[case.lengths][number % pairs])  # a token each
            rows.append({"prompt": prompt, "chosen": "b" + chosen, "rejected": "c" + rejected})
        (Path(folder) / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "rm", "train", "--model", model, "--dataset", Path(folder) / "pairs.jsonl"]
        command += ["--output", run, "--batch-size", str(pairs), "--log-every", "1", "--quiet", "--save-final-only"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [line["pairs_per_second"] for line in lines if "pairs_per_second" in line][WARM_UP:]
    return {"seconds": pairs / statistics.median(rates), "items": pairs}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    result = {"update": time_updates, "score": time_scores, "command": time_command}[case.what](case)
    device = jax.local_devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use") if case.what != "command" else None
    print(MARK + json.dumps(result | {"peak_bytes": peak, "device": device.device_kind}), flush=True)


if __name__ == "__main__":
    main()
