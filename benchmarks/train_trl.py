"""One run of TRL's RewardTrainer on the reference workload; peers.py starts it in TRL's own environment."""

import datasets
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
import trl  # pyright: ignore[reportMissingImports]
from measure import Steps, parse_arguments
from transformers.trainer_pt_utils import get_length_grouped_indices  # pyright: ignore[reportMissingImports]


class Timer(transformers.TrainerCallback):
    def __init__(self, steps: Steps):
        self.steps = steps

    def on_step_end(self, *args, **kwargs):
        self.steps.end()


class Trainer(trl.RewardTrainer):
    """TRL's trainer on the batches in the order of the rows, which were drawn beforehand."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def grouped(rows: datasets.Dataset, batch_size: int, updates: int, seed: int) -> datasets.Dataset:
    """The batches that TRL's length-grouped sampling makes of all rows: evenly spread over their lengths."""
    generator = torch.Generator().manual_seed(seed)
    order = get_length_grouped_indices(rows["length"], batch_size, generator=generator)
    whole = len(order) // batch_size * batch_size
    batches = np.array(order[:whole]).reshape(-1, batch_size)
    batches = batches[np.argsort(np.array(rows["length"])[batches].max(1), kind="stable")]
    picked = batches[((np.arange(updates) + 0.5) / updates * len(batches)).astype(int)]
    return rows.select(np.random.default_rng(seed).permutation(picked).ravel())


def adapters():
    """Adapters of all matrices of the blocks; the head trains as well."""
    import peft  # pyright: ignore[reportMissingImports]

    return peft.LoraConfig(
        task_type="SEQ_CLS", r=16, lora_alpha=32, target_modules="all-linear", modules_to_save=["score"]
    )


def main() -> None:
    args = parse_arguments()
    rows = datasets.load_dataset("json", data_files=str(args.workload / "pairs.jsonl"), split="train")
    if args.variant == "grouped":
        rows = grouped(rows, args.batch_size, args.updates, args.seed)
    else:
        count = args.updates * args.batch_size
        rows = rows.select(np.arange(args.seed * count, (args.seed + 1) * count) % len(rows))
    rows = rows.select_columns(["chosen", "rejected"])
    config = trl.RewardConfig(
        output_dir=str(args.scratch),
        per_device_train_batch_size=args.batch_size,
        max_steps=args.updates + 1,  # the first one is not timed; it comes again at the end
        max_length=1024,
        bf16=args.dtype == "bfloat16",
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
    )
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        args.workload / "llama", num_labels=1, dtype=torch.float32
    )
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(args.workload / "llama")
    steps = Steps(args)

    def count(module, positional, keywords):
        ids, mask = keywords["input_ids"], keywords["attention_mask"]
        steps.add(computed=ids.numel(), logical=int(mask.sum()), pairs=len(ids) // 2)

    model.register_forward_pre_hook(count, with_kwargs=True)
    trainer = Trainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[Timer(steps)],
        peft_config=adapters() if args.variant == "lora" else None,
    )
    trainer.train()
    steps.report({name: __import__(name).__version__ for name in ("trl", "transformers", "torch")})


if __name__ == "__main__":
    main()
