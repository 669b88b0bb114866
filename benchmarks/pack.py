"""How full packed rows are, how long a plan takes, and how fast batches are made against how fast they are used.

python benchmarks/pack.py [--shared ../shared]
"""

import argparse
import dataclasses
import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

DATA = ("hh-rlhf", "ukp-convarg1", "humanevalpack")
UPDATES = 12


def comparisons_of(shared: Path, name: str, model: str):
    import rm

    tokenizer = rm.load_tokenizer(shared / model)
    config = rm.LlamaConfig(
        vocab_size=tokenizer.max_token_id + 1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    start = time.perf_counter()
    rows = rm.load_comparisons(shared / f"data/{name}/pairs.jsonl.gz")
    comparisons, table = rm.tokenize_comparisons(rows, tokenizer, config, cache=False)
    return comparisons, table["tokens"] / (time.perf_counter() - start)


def fill(shared: Path) -> None:
    """One whole epoch, by lengths."""
    import rm
    from rm.model.attention_choice import Layout

    print("\n| data | layout | batch size | shapes | filled | fit s |\n|---|---|---|---|---|---|")
    for name in DATA:
        comparisons, _ = comparisons_of(shared, name, "tokenizers/smollm2-135m-instruct")
        for layout, batch_size in itertools.product(get_args(Layout), (8, 16, 64)):
            start = time.perf_counter()
            plan = rm.plan_batches(comparisons, batch_size, layout=layout)
            seconds = time.perf_counter() - start
            row = f"| {name} | {layout} | {batch_size} | {len(plan.shapes)} | {plan.fill():.1%} | {seconds:.1f} |"
            print(row, flush=True)


def plan_a_million(shared: Path, batch_size: int) -> None:
    """Every row of an epoch of 1,000,000 pairs with the lengths of hh-rlhf, on one core; in a process of its own."""
    import numpy as np

    import rm

    os.sched_setaffinity(0, {0})
    real, _ = comparisons_of(shared, "hh-rlhf", "tokenizers/smollm2-135m-instruct")
    lengths = real.lengths[np.random.default_rng(0).integers(0, len(real), 1_000_000)]
    offsets = np.concatenate([[0], lengths.ravel().cumsum()])
    million = rm.TokenizedComparisons(
        tokens=real.tokens,  # a plan reads none of them
        offsets=np.stack([offsets[0:-1:3], offsets[1::3], offsets[2::3], offsets[3::3]], 1),
        ends=np.zeros((len(lengths), 2), np.int32),
        keys=np.arange(2 * len(lengths)).reshape(-1, 2),
        margin=np.zeros(len(lengths), np.float32),
        row=np.arange(len(lengths)),
        source=np.zeros(len(lengths), np.int32),
    )
    start = time.perf_counter()
    filled = rm.plan_batches(million, batch_size).fill()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"| {batch_size} | {seconds:.0f} | {peak:.2f} | {filled:.1%} |", flush=True)


def throughput(name: str, model, comparisons) -> None:
    """Logical tokens a second: batches made in one thread, and updates that take them."""
    import jax

    import rm

    plan = rm.plan_batches(comparisons, 16)
    tokens = [int(comparisons.num_tokens[plan.indices_at(step)].sum()) for step in range(10 * UPDATES)]
    start = time.perf_counter()
    for step in range(10 * UPDATES):
        plan.batch_at(step)
    made = sum(tokens) / (time.perf_counter() - start)

    def objective(model, batch):
        rewards = rm.rewards(model, batch)
        return rm.pairwise_loss(rewards[..., 0], rewards[..., 1]), rewards

    optimizer = rm.adamw(1e-5)
    state, step = rm.init_state(model, optimizer), rm.jit_update(objective, optimizer)
    for number in range(UPDATES):  # compiles every shape that the timed updates have
        state, _ = step(state, plan.batch_at(number))
    jax.block_until_ready(state.model.score)
    start = time.perf_counter()
    for batches in rm.prefetch(plan, 0, UPDATES):
        state, _ = step(state, batches)
    jax.block_until_ready(state.model.score)
    used = sum(tokens[:UPDATES]) / (time.perf_counter() - start)
    print(f"| {name} | {made:,.0f} | {used:,.0f} | {made / used:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shared", type=Path, default=Path(__file__).parents[2] / "shared")
    parser.add_argument("--quick", action="store_true", help="without the million pairs, to check the script")
    parser.add_argument("--million", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.shared.is_dir():
        sys.exit(f"{args.shared}: no such folder; --shared names the one with the data and the tokenizers")
    if args.million:
        return plan_a_million(args.shared, args.million)
    fill(args.shared)
    print("\n1,000,000 pairs, one core\n\n| batch size | s | peak GiB | filled |\n|---|---|---|---|", flush=True)
    for batch_size in () if args.quick else (16, 64):
        subprocess.run(
            [sys.executable, __file__, "--shared", args.shared, "--million", str(batch_size)],
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
    import jax

    import rm

    print("\ntokens/s, batch size 16\n\n| model, data | made | used | ratio |\n|---|---|---|---|")
    stories, _ = comparisons_of(args.shared, "hh-rlhf", "models/stories260K")
    smollm, speed = comparisons_of(args.shared, "hh-rlhf", "tokenizers/smollm2-135m-instruct")
    key = jax.random.key(0)
    trained = rm.load_reward_model(args.shared / "models/stories260K", key=key)
    throughput("stories260K, hh-rlhf", trained, stories)
    reference = rm.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    folded = dataclasses.replace(smollm, tokens=smollm.tokens % reference.vocab_size)
    throughput("29 M parameters, hh-rlhf", rm.init_reward_model(reference, key=key), folded)
    print(f"\nread and tokenized, one process: {speed:,.0f} tokens/s")
    return None


if __name__ == "__main__":
    main()
