"""One case of `gpu.py` in TRL or transformers; prints a line of JSON."""

import json
import statistics
import sys
import tempfile
import time
from typing import Any

import datasets
import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers  # pyright: ignore[reportMissingImports]
from gpu_cases import LENGTHS, MARK, SHAPES, TIMED, WARM_UP, Case

GPU = torch.cuda.is_available()


def random_model(case: Case, dtype: torch.dtype):
    config = transformers.LlamaConfig(**SHAPES[case.shape].config(), num_labels=1)
    with torch.device("cuda" if GPU else "cpu"):
        return transformers.LlamaForSequenceClassification(config).to(dtype)


def random_pairs(case: Case, repeats: int) -> list[dict[str, list[int]]]:
    rng, rows = np.random.default_rng(0), []
    for prompt, *responses in LENGTHS[case.lengths] * repeats:
        prefix = rng.integers(3, SHAPES[case.shape].vocab_size, prompt).tolist()
        sides = [prefix + rng.integers(3, SHAPES[case.shape].vocab_size, n).tolist() for n in responses]
        rows.append(dict(zip(("chosen_ids", "rejected_ids"), sides, strict=True)))
    return rows


def tokenizer():
    """Of words, for TRL asks for one; the rows are token ids already."""
    import tokenizers

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, **special)


def time_updates(case: Case) -> dict[str, Any]:
    """TRL's `RewardTrainer` in bfloat16 autocast, with gradient checkpointing or, its best, without."""
    import trl  # pyright: ignore[reportMissingImports]

    ends: list[float] = []

    class Timer(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            if GPU:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    pairs = len(LENGTHS[case.lengths])
    with tempfile.TemporaryDirectory() as folder:
        options = {"report_to": [], "save_strategy": "no", "disable_tqdm": True, "learning_rate": 1e-5}
        config = trl.RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=pairs,
            max_steps=WARM_UP + TIMED + 1,
            max_length=4096,
            bf16=GPU,
            use_cpu=not GPU,
            gradient_checkpointing=case.setting == "full",
            **options,
        )
        trl.RewardTrainer(
            model=random_model(case, torch.float32),
            args=config,
            train_dataset=datasets.Dataset.from_list(random_pairs(case, WARM_UP + TIMED + 1)),
            processing_class=tokenizer(),
            callbacks=[Timer()],
        ).train()
    return {"seconds": statistics.median(np.diff(ends)[WARM_UP:].tolist()), "items": pairs}


def time_scores(case: Case) -> dict[str, Any]:
    """`transformers` in bfloat16, 32 texts at a time, sorted by length, each batch padded to its longest."""
    model = random_model(case, torch.bfloat16 if GPU else torch.float32).eval()
    texts = sorted((side for row in random_pairs(case, 4) for side in row.values()), key=len)

    @torch.no_grad()
    def run() -> list[float]:
        rewards: list[float] = []
        for start in range(0, len(texts), 32):
            batch = texts[start : start + 32]
            longest = max(map(len, batch))
            ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch], device=model.device)
            rewards += model(ids, attention_mask=(ids != 0).long()).logits[:, 0].float().tolist()
        return rewards

    run()
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start, "items": len(texts)}


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    result = (time_scores if case.what == "score" else time_updates)(case)
    peak = torch.cuda.max_memory_allocated() if GPU else None
    device = torch.cuda.get_device_name() if GPU else "cpu"
    print(MARK + json.dumps(result | {"peak_bytes": peak, "device": device}), flush=True)


if __name__ == "__main__":
    main()
