"""One run of EasyDeL's RewardTrainer on the reference workload; peers.py starts it in EasyDeL's own environment."""

import importlib.metadata

import datasets
import easydel  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp
import numpy as np
import transformers  # pyright: ignore[reportMissingImports]
from measure import Steps, parse_arguments


def counting_trainer(steps: Steps) -> type:
    """EasyDeL's trainer, with its own update timed and its batches counted."""

    class Trainer(easydel.RewardTrainer):
        def _execute_train_step(self, state, batch):
            ids = [np.asarray(batch[f"input_ids_{side}"]) for side in ("chosen", "rejected")]
            masks = [np.asarray(batch[f"attention_mask_{side}"]) for side in ("chosen", "rejected")]
            steps.add(pairs=len(ids[0]), computed=sum(x.size for x in ids), logical=int(sum(x.sum() for x in masks)))
            return super()._execute_train_step(state, batch)

        def on_step_end(self, state, metrics, step):
            steps.end()
            return super().on_step_end(state, metrics, step)

    return Trainer


def main() -> None:
    args = parse_arguments()
    rows = datasets.load_dataset("json", data_files=str(args.workload / "pairs.jsonl"), split="train")
    count = args.updates * args.batch_size
    rows = rows.select(np.arange(args.seed * count, (args.seed + 1) * count) % len(rows))
    config = easydel.RewardConfig(
        save_directory=str(args.scratch),
        total_batch_size=args.batch_size,
        max_training_steps=args.updates + 1,  # the first one is not timed; it comes again at the end
        shuffle_train_dataset=False,  # the rows were drawn beforehand
        learning_rate=1e-5,
        do_last_save=False,
        use_wandb=False,
    )
    model = easydel.AutoEasyDeLModelForSequenceClassification.from_pretrained(
        str(args.workload / "llama"), dtype=jnp.dtype(args.dtype), param_dtype=jnp.float32
    )
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.workload / "llama")
    steps = Steps(args)
    trainer = counting_trainer(steps)(
        arguments=config,
        model=model,
        train_dataset=rows.select_columns(["chosen", "rejected"]),
        processing_class=tokenizer,
    )
    trainer.train()
    steps.report({name: importlib.metadata.version(name) for name in ("easydel", "jax", "jaxlib")})


if __name__ == "__main__":
    main()
