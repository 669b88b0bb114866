"""What people write at first in a notebook: it works, or one line says what to write."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import TypeCheckError

import rm
from rm.__main__ import main
from rm.evaluation.summary import by_subset
from rm.training.objectives import pairwise_objective


@pytest.fixture
def batches(loaded):
    model, tokenizer = loaded
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 2 + [{"prompt": "a", "chosen": " d", "rejected": ""}]
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config)
    return rm.plan_batches(comparisons, 3).batch_at(0)


def test_one_input_is_one_input(loaded):
    """Every character of a text would be scored as a text."""
    model, tokenizer = loaded
    row = {"prompt": "a b", "response": " c"}
    for one in ("a b c", row):
        found = rm.score(model, tokenizer, one)
        assert found.shape == (1,)
        np.testing.assert_array_equal(found, rm.score(model, tokenizer, [one]))


def test_a_text_in_place_of_a_list_is_refused(loaded):
    model, tokenizer = loaded
    wrong = {
        "rows: expected a list, found a single mapping": lambda: rm.tokenize_comparisons(
            {"prompt": "a", "chosen": "b", "rejected": "c"}, tokenizer, model.config
        ),
        "texts: expected a list, found a single text": lambda: tokenizer.encode_batch("a b"),
        "messages: expected a list, found a single mapping": lambda: tokenizer.apply_chat_template(
            {"role": "user", "content": "a"}
        ),
        "targets: expected a list, found a single text": lambda: rm.add_lora(model, 2, targets="q", key=None),
        "subsets: expected a list, found a single text": lambda: by_subset(np.ones(3, np.float32), "abc"),
    }
    for line, call in wrong.items():
        with pytest.raises(rm.ConfigError) as error:
            call()
        assert str(error.value) == f"{line}; put it into a list"


def test_objects_show_themselves_in_a_line(loaded, batches):
    """A cell that ends in one of them would fill the notebook with megabytes of vocabulary or tokens."""
    model, tokenizer = loaded
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}] * 3
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config, source="mine")
    assert (
        repr(comparisons)
        == f"TokenizedComparisons(3 comparisons of 2 responses, {comparisons.num_tokens.sum()} tokens, from mine)"
    )
    assert repr(rm.plan_batches(comparisons, 2)).startswith("BatchPlan(2 updates of 2 comparisons, rows 1 × ")
    assert repr(tokenizer).startswith(f"Tokenizer({tokenizer.max_token_id + 1} tokens, bos_token ")
    assert max(len(repr(each)) for each in (comparisons, tokenizer, rm.plan_batches(comparisons, 2))) < 400


@pytest.mark.optax
def test_one_batch_in_place_of_a_list_is_refused(loaded, batches):
    model, _ = loaded
    objective, optimizer = pairwise_objective(), optax.sgd(0.1)
    state = rm.init_state(model, optimizer)
    with pytest.raises(TypeError, match=r"^batches: expected a list of batches, found one; write \[batch\]$"):
        rm.jit_update(objective, optimizer)(state, batches[0])
    with pytest.raises(
        TypeCheckError, match=r"^rm\.training\.step\.update: batches: expected Sequence\[PreferenceBatch\]"
    ):
        rm.update(state, batches[0], objective, optimizer)


@pytest.mark.optax
def test_an_objective_that_returns_the_loss_alone_is_refused(loaded, batches):
    model, _ = loaded

    def alone(model, batch):
        r = rm.rewards(model, batch)
        return rm.pairwise_loss(r[..., 0], r[..., 1])

    shape = batches[0].index.shape
    found = rf"\(loss, rewards, metrics\), found an array of shape \({shape[0]}, {shape[1]}\)"
    with pytest.raises(TypeError, match=found):
        rm.accumulate(None, model, batches[0], alone)


def test_a_wrong_argument_is_one_line_without_the_model(loaded, batches):
    """The message of jaxtyping has every array of the model, and what is wrong somewhere among them."""
    model, _ = loaded
    with pytest.raises(TypeCheckError) as error:
        rm.rewards(model, model)
    line = str(error.value)
    assert line.startswith("rm.model.llama.rewards: batch: expected PreferenceBatch, found RewardModel(")
    assert len(line) < 300
    assert "\n" not in line
    with pytest.raises(TypeCheckError) as error:
        rm.pairwise_loss(jnp.ones(3), jnp.ones(4))
    expected = "Union[Float[Array, '*B'], Float[ndarray, '*B']]"
    assert (
        str(error.value)
        == f"rm.training.losses.pairwise_loss: rejected: expected {expected}, found f32[4] where B=(3,)"
    )


def test_subsets_of_other_rows_say_where_to_take_them_from(loaded):
    model, tokenizer = loaded
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}, {"prompt": "a", "chosen": " b", "rejected": " b"}]
    comparisons, _ = rm.tokenize_comparisons(rows, tokenizer, model.config)
    with pytest.raises(ValueError, match=r"for each of 1 comparisons, found 2; .* take \[subsets\[i\] for i in compa"):
        rm.evaluate(model, comparisons, subsets=["x", "y"])


def test_the_command_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith(f"rm {rm.__version__}, jax {jax.__version__}, ")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("train --modle x", "train has no flag --modle, perhaps --model; python -m rm train --help-all lists all"),
        (
            "trian --model x",
            "no command 'trian', perhaps train; there are train, data, score, evaluate, serve, plan, demo",
        ),
        ("score --max_length=3 --model x", "score needs --input, --output; python -m rm score --help-all lists all"),
        ("data --zzz", "data has no flag --zzz; python -m rm data --help-all lists all"),
    ],
)
def test_a_misspelt_command_line_is_one_line_with_the_nearest_name(argv, line, capsys):
    """The box of a parser has every flag that is missing, with its help, and the mistake somewhere in it."""
    assert main(argv.split()) == 2
    assert capsys.readouterr().err == f"rm: {line}\n"
