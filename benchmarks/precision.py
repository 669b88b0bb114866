"""What bfloat16 costs in accuracy: the same training in both types, and the rewards of one model in both.

python benchmarks/precision.py [--shared ../shared] [--updates 300] [--seeds 3]

The small trained Llama of the shared folder learns ukp-convarg1, of which the last tenth is held out. A seed sets the
score head and the order of the data, for both types alike. Beside the rewards in bfloat16 stand those in float32 by
weights rounded to bfloat16 and, where `transformers` is installed, its own in bfloat16: with weights of float32 under
autocast, as TRL trains, and with weights of bfloat16.
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from workload import SHARED

import rm
from rm.data.inputs import encode_inputs

DTYPES = ("float32", "bfloat16")
BATCH_SIZE = 16


def train(model: rm.RewardModel, comparisons, dtype: str, seed: int, updates: int) -> rm.RewardModel:
    def objective(model, batch):
        r = rm.rewards(model, batch, rm.Compute(dtype=dtype, remat="none"))
        return rm.pairwise_loss(r[..., 0], r[..., 1]) + 0.01 * rm.centering_penalty(r[..., 0], r[..., 1]), r

    plan = rm.plan_batches(comparisons, BATCH_SIZE, seed=seed)
    optimizer = rm.adamw(1e-3)
    state, advance = rm.init_state(jax.tree.map(jnp.copy, model), optimizer), rm.jit_update(objective, optimizer)
    for step in range(updates):
        state, _ = advance(state, plan.batch_at(step))
    return state.model


def rounded_weights(model: rm.RewardModel) -> rm.RewardModel:
    """Every matrix but the head as bfloat16 holds it, in float32."""
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32) if x.ndim > 1 else x, model)
    return eqx.tree_at(lambda model: model.score, rounded, model.score)


def transformers_rewards(directory: str, texts: list[list[int]], dtype: str, autocast: bool) -> np.ndarray:
    """The rewards of token ids, one text at a time."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    transformers.utils.logging.disable_progress_bar()
    model = transformers.LlamaForSequenceClassification.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        return np.array([model(torch.tensor([ids])).logits.float().item() for ids in texts])


def differences(model: rm.RewardModel, tokenizer, inputs: list[dict], reference: np.ndarray) -> dict[str, float]:
    """The largest difference from the rewards in float32, `reference`, for each other way to compute them."""
    found = {
        "rm": rm.score(model, tokenizer, inputs, compute=rm.Compute(dtype=jnp.bfloat16)),
        "weights alone": rm.score(rounded_weights(model), tokenizer, inputs),
    }
    if importlib.util.find_spec("transformers"):
        names = [f"input {i}" for i in range(len(inputs))]
        texts = [ids.tolist() for ids in encode_inputs(inputs, tokenizer, model.config, names=names)]
        with tempfile.TemporaryDirectory() as scratch:
            rm.save_reward_model(f"{scratch}/model", model, tokenizer)
            for name, dtype, autocast in (("autocast", "float32", True), ("transformers", "bfloat16", False)):
                found[name] = transformers_rewards(f"{scratch}/model", texts, dtype, autocast)
    return {name: float(np.abs(rewards - reference).max()) for name, rewards in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that has data/ and models/")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    directory = args.shared / "models/stories260K"
    tokenizer = rm.load_tokenizer(directory)
    rows = rm.load_comparisons(args.shared / "data/ukp-convarg1/pairs.jsonl.gz")
    print("| seed | accuracy, float32 | accuracy, bfloat16 | rewards, float32: spread | largest differences |")
    print("|---|---|---|---|---|")
    accuracies = []
    for seed in range(args.seeds):
        base = rm.load_reward_model(directory, key=jax.random.key(seed))
        base, matched = rm.match_tokenizer(base, tokenizer)
        comparisons, _ = rm.tokenize_comparisons(rows, matched, base.config, max_length=512)
        kept = np.random.default_rng(0).permutation(len(comparisons))
        held_out, learned = (comparisons.take(part) for part in np.split(kept, [len(kept) // 10]))
        models = [train(base, learned, dtype, seed, args.updates) for dtype in DTYPES]
        metrics = [rm.evaluate(m, held_out, compute=rm.Compute(dtype=d)) for m, d in zip(models, DTYPES, strict=True)]
        accuracy = [values["accuracy"] for values in metrics]
        inputs = [{"messages": rows[i]["prompt"] + rows[i]["chosen"]} for i in range(200)]
        rewards = rm.score(models[0], matched, inputs)
        found = differences(models[0], matched, inputs, rewards)
        largest = ", ".join(f"{name} {difference:.1e}" for name, difference in found.items())
        print(f"| {seed} | {accuracy[0]:.3f} | {accuracy[1]:.3f} | {rewards.std():.2f} | {largest} |", flush=True)
        accuracies.append(accuracy)
    means, spreads = np.mean(accuracies, axis=0), np.std(accuracies, axis=0)
    shown = [f"{mean:.3f} ± {spread:.3f} in {d}" for mean, spread, d in zip(means, spreads, DTYPES, strict=True)]
    print(f"\nmean over seeds: {', '.join(shown)}")


if __name__ == "__main__":
    main()
