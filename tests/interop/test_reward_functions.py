"""The reward function of the page in TRL's `GRPOTrainer`, live, with a server beside it."""

import datasets
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra `interop`: torch, transformers, trl")
trl = pytest.importorskip("trl", reason="needs the extra `interop`: torch, transformers, trl")
transformers = pytest.importorskip("transformers", reason="needs the extra `interop`: torch, transformers, trl")
pytest.importorskip("urllib3", reason="needs the extra `interop`")

import rm

from ..servers import running
from ..test_reward_functions import QUESTIONS, function_of_page, messages

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("kind", ["texts", "messages"])
def test_grpo_trains_on_the_rewards_of_the_server(loaded, llama_directory, tmp_path, kind):
    """The trainer would call the function otherwise than the page says, or the rewards be of other texts."""
    seen = []
    tokenizer = transformers.AutoTokenizer.from_pretrained(llama_directory)
    tokenizer.pad_token = tokenizer.eos_token
    config = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=6,
        max_steps=2,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
    )
    prompts = messages("user", QUESTIONS * 4) if kind == "messages" else QUESTIONS * 4
    with running(loaded) as (port, _, _):
        ask = function_of_page("TRL", port)

        def reward(prompts, completions, **kwargs):
            seen.append((prompts, completions, ask(prompts, completions, **kwargs)))
            return seen[-1][-1]

        trainer = trl.GRPOTrainer(
            model=str(llama_directory),
            reward_funcs=reward,
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
            processing_class=tokenizer,
        )
        trainer.train()
    assert len(seen) == 2
    logged = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    for (asked, completions, rewards), mean in zip(seen, logged, strict=True):
        rows = [{"prompt": a, "response": b} for a, b in zip(asked, completions, strict=True)]
        np.testing.assert_allclose(rewards, rm.score(*loaded, rows), atol=1e-5)
        np.testing.assert_allclose(mean, np.mean(rewards), atol=1e-4)
