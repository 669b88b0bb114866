"""One run of rm on the reference workload; peers.py starts it."""

import importlib.metadata

import equinox as eqx
import jax
import jax.numpy as jnp
from measure import Steps, parse_arguments

import rm


def main() -> None:
    args = parse_arguments()
    model = rm.load_reward_model(args.workload / "llama")
    tokenizer = rm.load_tokenizer(args.workload / "llama")
    rows = rm.load_comparisons(args.workload / "pairs.jsonl")
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config, cache=False)
    plan = rm.plan_batches(comparisons, args.batch_size, shuffle=False)
    numbers = [(args.seed * args.updates + i) % plan.steps_per_epoch for i in range(args.updates)]
    dtype, lora = jnp.dtype(args.dtype), args.variant == "lora"
    remat = "dots" if lora else "none"  # with adapters it is as fast, and takes less memory

    def objective(model, batch):
        r = rm.rewards(model, batch, rm.Compute(dtype=dtype, remat=remat))
        return rm.pairwise_loss(r[..., 0], r[..., 1]), r

    if lora:
        model = rm.add_lora(model, 16, 32, key=jax.random.key(0))
    trained, frozen = eqx.partition(model, rm.trainable(model))
    optimizer = rm.adamw(1e-5)
    state = rm.init_state(trained, optimizer)
    advance = rm.jit_update(rm.with_frozen(objective, frozen), optimizer)
    del model, trained
    steps = Steps(args)
    for timed in (False, True):  # every shape is compiled in the first pass
        for number in numbers:
            batches = plan.batch_at(number)
            indices = plan.indices_at(number)
            state, metrics = advance(state, batches)
            steps.add(
                pairs=len(indices),
                computed=sum(batch.tokens.size for batch in batches),
                logical=int(comparisons.num_tokens[indices].sum()),
            )
            if not timed or number == numbers[-1]:
                jax.block_until_ready(metrics)
            steps.end(timed=timed)
    steps.report({name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "rm-jax")})


if __name__ == "__main__":
    main()
