"""The reward functions of the page, called as TRL, veRL and tunix call them; TRL's own trainer is in `interop`."""

import inspect
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import rm

from .servers import running

PAGE = (Path(__file__).parents[1] / "docs/reward_functions.md").read_text(encoding="utf-8")
QUESTIONS, ANSWERS = ["The old tree ", "tree?"], ["of rome.", "The big house of oz."]


def messages(role, contents):
    return [[{"role": role, "content": content}] for content in contents]


def function_of_page(title, port):
    """The function that a block of the page defines, which asks a server at the port."""
    (block,) = re.findall(rf"^```python\n(# {title}\n.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict = {}
    exec(compile(block, title, "exec"), names)
    names["URL"] = f"http://127.0.0.1:{port}"
    (found,) = [value for value in names.values() if inspect.isfunction(value)]
    return found


@pytest.fixture
def server(loaded):
    with running(loaded) as (port, _, _):
        yield port


def expected(loaded, prompts, responses):
    return rm.score(*loaded, [{"prompt": a, "response": b} for a, b in zip(prompts, responses, strict=True)])


@pytest.mark.parametrize("kind", ["texts", "messages"])
def test_trl_gets_the_rewards_of_its_completions(loaded, server, kind):
    """GRPOTrainer._calculate_rewards of 1.16 gives these names, ids and columns besides, and wants a list of floats."""
    prompts = messages("user", QUESTIONS) if kind == "messages" else QUESTIONS
    completions = messages("assistant", ANSWERS) if kind == "messages" else ANSWERS
    reward = function_of_page("TRL", server)
    found = reward(
        prompts=prompts, completions=completions, completion_ids=[[1], [2]], trainer_state=None, label=[1, 2]
    )
    assert {type(each) for each in found} == {float}
    np.testing.assert_allclose(found, expected(loaded, prompts, completions), atol=1e-5)


def test_verl_gets_the_reward_of_a_response(loaded, server):
    """NaiveRewardManager.run_single of 0.9.1 calls it so, from the threads of an executor."""
    compute_score = function_of_page("veRL", server)

    def call(question, answer):
        extra = {"question": question, "index": 0, "num_turns": None, "rollout_reward_scores": {}}
        return compute_score(data_source="x", solution_str=answer, ground_truth="", extra_info=extra)

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(call, QUESTIONS, ANSWERS))
    assert {type(each) for each in found} == {float}
    wanted = expected(loaded, messages("user", QUESTIONS), messages("assistant", ANSWERS))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_tunix_gets_the_rewards_of_its_completions(loaded, server):
    """SequenceRewardManager of 0.1.7 gives lists by name, and the data set's columns."""
    reward = function_of_page("tunix", server)
    found = reward(prompts=QUESTIONS, completions=ANSWERS, question=["a", "b"])
    np.testing.assert_allclose(found, expected(loaded, QUESTIONS, ANSWERS), atol=1e-5)
    asked = messages("user", QUESTIONS)
    found = function_of_page("tunix, with messages", server)(prompts=QUESTIONS, completions=ANSWERS, messages=asked)
    np.testing.assert_allclose(found, expected(loaded, asked, messages("assistant", ANSWERS)), atol=1e-5)
