"""The evaluate command: every score on disk, statistics of what lies there, a page that says what is wrong."""

import json
import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datasets import Dataset
from sklearn.metrics import accuracy_score, roc_auc_score

import rm
from rm.__main__ import main
from rm.commands.evaluate import model_names
from rm.commands.rows import rewardbench_rows

from .tiny import NAMED, TEMPLATE, make_tokenizer, write_tokenizer

CONFIG = rm.LlamaConfig(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    pad_token_id=0,
)
_BOS = 1


def length_model() -> rm.RewardModel:
    """A Llama whose reward grows with length alone: uniform attention finds the share 1/n of BOS."""
    zero = jax.tree.map(jnp.zeros_like, rm.init_reward_model(CONFIG, key=jax.random.key(0)))
    block = zero.last_block
    return eqx.tree_at(
        lambda m: (
            m.embed_tokens,
            m.last_block.input_layernorm,
            m.last_block.post_attention_layernorm,
            m.norm,
            m.last_block.v_proj.weight,
            m.last_block.o_proj.weight,
            m.score,
        ),
        zero,
        (
            zero.embed_tokens.at[:, 0].set(1.0).at[_BOS, 1].set(1.0),
            jnp.ones_like(block.input_layernorm),
            jnp.ones_like(block.post_attention_layernorm),
            jnp.ones_like(zero.norm),
            block.v_proj.weight.at[0, 1].set(1.0),  # feature 1 marks BOS
            block.o_proj.weight.at[2, 0].set(1.0),  # its mean goes to feature 2
            zero.score.at[0, 2].set(-40.0),
        ),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """Three exports: rewards by length, and two of random weights."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = make_tokenizer(write_tokenizer(root / "tokenizer"))
    made = {name: rm.init_reward_model(CONFIG, key=jax.random.key(k), head_std=1.0) for k, name in enumerate("ab")}
    for name, model in {"length": length_model(), **made}.items():
        rm.save_reward_model(root / name / "model", *rm.match_tokenizer(model, tokenizer))
    return root


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    """Words at random; the chosen response is longer in half of the rows of one subset, never in the other."""
    rng = np.random.default_rng(0)

    def words(n: int) -> str:
        return " ".join(rng.choice(["a", "b", "c", "d"], n))

    made = []
    for number in range(120):
        short, long = words(rng.integers(1, 4)), words(rng.integers(5, 9))
        fair = number % 2 == 0 and rng.random() < 0.5
        chosen, rejected = (long, short) if fair else (short, long)
        subset = "fair" if number % 2 == 0 else "short is better"
        made.append({"prompt": words(3) + " ", "chosen": chosen, "rejected": rejected, "subset": subset})
    return made


@pytest.fixture
def data(tmp_path, rows) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run(*argv: object) -> int:
    return main(["evaluate", *map(str, argv)])


def read(output: Path) -> tuple[dict, list[dict]]:
    lines = (output / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


def test_scores_are_those_of_score_and_the_statistics_those_of_scikit_learn(models, rows, data, tmp_path, capsys):
    directory = models / "a/model"
    assert run("--model", directory, "--dataset", data, "--by", "subset", "--output", tmp_path / "out") == 0
    evaluation, lines = read(tmp_path / "out")
    texts = [{"prompt": row["prompt"], "response": row[side]} for row in rows for side in ("chosen", "rejected")]
    expected = rm.score(rm.load_reward_model(directory), rm.load_tokenizer(directory), texts).reshape(-1, 2)
    rewards = np.array([line["rewards"] for line in lines])
    np.testing.assert_allclose(rewards, expected, atol=1e-5)
    assert [(line["row"], line["subset"]) for line in lines] == [(i, row["subset"]) for i, row in enumerate(rows)]

    found = evaluation["models"]["a"]
    right = rewards[:, 0] > rewards[:, 1]
    assert found["accuracy"] == accuracy_score(np.ones_like(right), right)
    assert found["auc"] == pytest.approx(roc_auc_score([1] * 120 + [0] * 120, rewards.T.ravel()))
    assert found["subsets"]["fair"]["accuracy"] == right[::2].mean()
    assert evaluation["data"]["a"]["kept"] == evaluation["read"] == 120
    shown = " ".join(capsys.readouterr().out.split())
    prompts = {line["row"]: line["prompt"] for line in lines}
    assert found["prompts"] == len(set(prompts.values())) < 120
    same = {(row["prompt"], row[side]): number for number, row in enumerate(rows) for side in ("chosen", "rejected")}
    for number, row in enumerate(rows):  # a response to the same prompt has one reward in all of its rows
        assert {prompts[same[row["prompt"], row[side]]] for side in ("chosen", "rejected")} == {prompts[number]}
    low, high = found["interval"]
    assert f"all ({found['prompts']} prompts, 120 pairs) {found['accuracy']:.3f} ({low:.3f}–{high:.3f})" in shown


def test_the_report_says_that_a_model_rewards_length(models, data, tmp_path, capsys):
    """The bias that most reward models have; an accuracy alone would not show it."""
    run("--model", models / "length/model", "--dataset", data, "--by", "subset", "--output", tmp_path / "out")
    evaluation, _ = read(tmp_path / "out")
    found = evaluation["models"]["length"]
    assert found["length"]["prefers_longer"] == 1.0
    assert found["subsets"]["short is better"]["accuracy"] == 0.0
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    for text in (page, capsys.readouterr().out):
        assert "Length bias: it rewards longer responses" in text
        assert "Worse than chance in short is better." in text


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(models, rows, tmp_path):
    """A name of a subset comes from data of strangers."""
    hostile = tmp_path / "rows.jsonl"
    hostile.write_text(
        "".join(json.dumps(row | {"subset": "<script>alert(1)</script>"}) + "\n" for row in rows), encoding="utf-8"
    )
    run("--model", models / "a/model", "--dataset", hostile, "--by", "subset", "--output", tmp_path / "out")
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    names = {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # of namespaces, which nobody fetches
    assert set(re.findall(r"https?://[^\s\"'<>]+", page)) <= names
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", page)


def test_models_are_compared_on_the_same_rows(models, data, tmp_path, capsys):
    run("--model", models / "a/model", models / "b/model", "--dataset", data, "--output", tmp_path / "out")
    evaluation, lines = read(tmp_path / "out")
    right = {
        name: np.array([line["rewards"][0] > line["rewards"][1] for line in lines if line["model"] == name])
        for name in "ab"
    }
    (paired,) = evaluation["paired"]
    assert paired["first_only"] == (right["a"] & ~right["b"]).sum()
    assert paired["difference"] == pytest.approx(right["a"].mean() - right["b"].mean())
    assert "a against b:" in capsys.readouterr().out


def test_an_interrupted_evaluation_goes_on_to_the_same_bits(models, data, tmp_path):
    """A long set is not scored again from the start, and a torn line does not count."""
    command = ["--model", models / "a/model", "--dataset", data, "--batch-size", "8", "--resume", "auto"]
    run(*command, "--output", tmp_path / "whole")
    run(*command, "--output", tmp_path / "cut")
    path = tmp_path / "cut/scores.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:51]) + lines[51][:20], encoding="utf-8")
    (tmp_path / "cut/evaluation.json").unlink()
    assert run(*command, "--output", tmp_path / "cut") == 0
    assert path.read_bytes() == (tmp_path / "whole/scores.jsonl").read_bytes()
    assert read(tmp_path / "cut")[0]["models"] == read(tmp_path / "whole")[0]["models"]


def test_another_model_joins_an_evaluation(models, data, tmp_path):
    """What was scored before stays as it is."""
    run("--model", models / "a/model", "--dataset", data, "--output", tmp_path / "out")
    before = (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8")
    both = [models / "a/model", models / "b/model"]
    assert run("--model", *both, "--dataset", data, "--output", tmp_path / "out", "--resume", "auto") == 0
    assert (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8").startswith(before)
    assert list(read(tmp_path / "out")[0]["models"]) == ["a", "b"]


@pytest.mark.long
@pytest.mark.gate
@pytest.mark.optax
def test_checkpoints_of_a_run_are_models_too(models, data, tmp_path):
    """Which of them to keep is asked while the run goes on; the last one is the exported model."""
    run_of = ["--model", models / "a/model", "--dataset", data, "--output", tmp_path / "run", "--max-steps", "4"]
    rest = ["--save-every", "2", "--learning-rate", "1e-2", "--moments", "bfloat16", "--quiet"]
    assert main(["train", *map(str, [*run_of, *rest])]) == 0
    names = [tmp_path / "run/checkpoints/2", tmp_path / "run/checkpoints/4", tmp_path / "run/model"]
    assert run("--model", *names, "--dataset", data, "--output", tmp_path / "out") == 0
    rewards = {name: [] for name in ("run 2", "run 4", "run")}
    for line in read(tmp_path / "out")[1]:
        rewards[line["model"]].append(line["rewards"])
    assert rewards["run 4"] == rewards["run"] != rewards["run 2"]


def test_k_wise_rows_give_best_of_n_in_the_order_of_their_responses(models, tmp_path):
    rng = np.random.default_rng(1)
    rows = [
        {
            "prompt": "a ",
            "responses": [" ".join(rng.choice(["b", "c", "d"], n)) for n in rng.permutation([1, 3, 5, 7])],
            "scores": rng.permutation([0.0, 1.0, 1.0, 2.0]).tolist(),
        }
        for _ in range(30)
    ]
    path = tmp_path / "kwise.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("--model", models / "length/model", "--dataset", path, "--output", tmp_path / "out") == 0
    evaluation, lines = read(tmp_path / "out")
    lengths = [[len(response.split()) for response in row["responses"]] for row in rows]
    for line, row, words in zip(lines, rows, lengths, strict=True):
        assert line["scores"] == row["scores"]
        assert np.argsort(line["rewards"]).tolist() == np.argsort(words).tolist(), "the model rewards length"
    found = evaluation["models"]["length"]["best_of_n"]["4"]
    assert found["rows"] == 30
    longest = [row["scores"][int(np.argmax(words))] for row, words in zip(rows, lengths, strict=True)]
    assert found["model"][-1] == pytest.approx(np.mean(longest))
    assert (found["random"][0], found["oracle"][-1]) == (1.0, 2.0)
    statistics = evaluation["models"]["length"]
    assert statistics["n"] == 5 * 30  # of six pairs, the one of equal scores is none
    low, high = statistics["interval"]
    assert high - low > np.diff(rm.statistics.wilson_interval(statistics["accuracy"] * 150, 150)), (
        "pairs are not prompts"
    )


def mixed_rows(count: int = 24) -> list[dict]:
    """Rows of four, of five and of two responses in turn; the longest has the highest score in subset "even" alone."""
    rng = np.random.default_rng(2)
    made: list[dict] = []
    for number in range(count):
        subset = "even" if number % 2 == 0 else "odd"
        lengths = rng.permutation([1, 3, 5, 7, 9][: 4 + number % 3 % 2])
        texts = [" ".join(rng.choice(["b", "c", "d"], n)) for n in lengths]
        if number % 3 == 2:
            made.append({"prompt": "a ", "chosen": texts[0], "rejected": texts[1], "subset": subset})
        else:
            scores = (lengths if subset == "even" else -lengths).tolist()
            made.append({"prompt": "a ", "responses": texts, "scores": scores, "subset": subset})
    return made


@pytest.mark.long
def test_rows_of_four_of_five_and_of_two_responses_are_evaluated_together(models, tmp_path, capsys):
    """A benchmark whose rows have several numbers of responses could not be evaluated, or lines would be shuffled."""
    rows, path = mixed_rows(), tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--model", models / "length/model", models / "a/model", "--dataset", path, "--by", "subset"]
    assert run(*command, "--batch-size", "4", "--output", tmp_path / "out", "--resume", "auto") == 0
    evaluation, lines = read(tmp_path / "out")
    assert [(line["model"], line["row"]) for line in lines] == [(m, i) for m in ("length", "a") for i in range(24)]
    for line, row in zip(lines, rows * 2, strict=True):
        texts = row.get("responses") or [row["chosen"], row["rejected"]]
        assert len(line["rewards"]) == len(texts)
        assert line.get("scores") == row.get("scores")
        if line["model"] == "length":
            assert np.argsort(line["rewards"]).tolist() == np.argsort([len(text) for text in texts]).tolist()
    found = evaluation["models"]["length"]
    assert {size: best["rows"] for size, best in found["best_of_n"].items()} == {"4": 8, "5": 8}
    even, odd = (found["subsets"][name]["best_of_n"] for name in ("even", "odd"))
    assert (even["4"]["model"][-1], even["5"]["model"][-1]) == (7.0, 9.0)  # the longest is the best
    assert (odd["4"]["model"][-1], odd["5"]["model"][-1]) == (-7.0, -9.0)
    assert found["n"] == 8 * 6 + 8 * 10 + 8  # pairs
    table = evaluation["data"]["length"]
    assert (table["read"], table["kept"], list(table["by_responses"])) == (24, 24, ["2", "4", "5"])
    assert "best of 5 (random–oracle)" in capsys.readouterr().out
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Best of n: expected score, over 8 rows of 5 responses" in page

    whole = (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8")
    cut = [line for line in whole.splitlines(keepends=True) if '"model": "length"' in line][:10]
    (tmp_path / "out/scores.jsonl").write_text("".join(cut), encoding="utf-8")
    assert run(*command, "--batch-size", "4", "--output", tmp_path / "out", "--resume", "auto") == 0
    assert (tmp_path / "out/scores.jsonl").read_text(encoding="utf-8") == whole


def test_a_malformed_row_is_named_by_its_line_among_rows_of_several_sizes(models, tmp_path, capsys):
    """Rows of each size are read together: the number among those would send people to the wrong line."""
    rows = mixed_rows(9)
    rows[4]["scores"][0] = "much"
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--model", models / "a/model", "--dataset", path]
    assert run(*command, "--output", tmp_path / "out") == 2
    assert "mixed.jsonl: line 5: field 'scores': expected a finite number" in capsys.readouterr().err
    assert run(*command, "--output", tmp_path / "out", "--invalid", "drop") == 0
    evaluation, lines = read(tmp_path / "out")
    assert evaluation["data"]["a"]["dropped"] == {"malformed": 1}
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 5, 6, 7, 8]


def test_where_no_row_of_a_size_is_left_the_others_are_evaluated(models, tmp_path, capsys):
    """One row that is too long would end the evaluation of all others."""
    long = {"prompt": "a ", "responses": ["b " * 30, "c", "d", "c d", "d c"], "scores": [1, 2, 3, 4, 5]}
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*mixed_rows()[::3], long]), encoding="utf-8")
    command = ["--model", models / "a/model", "--dataset", path, "--output", tmp_path / "out", "--max-length", "20"]
    assert run(*command) == 0
    table = read(tmp_path / "out")[0]["data"]["a"]
    assert (table["read"], table["kept"], table["dropped"]) == (9, 8, {"over_length": 1})
    assert "rows of 5 responses): 1 over length, none left" in capsys.readouterr().out


def test_texts_of_reward_bench_are_the_tokens_that_its_own_tool_makes(tmp_path):
    """Public scores could not be met: the tool renders the texts as a chat of two turns.

    By hand after rewardbench 0.1.4: `prepare_dialogue_from_tokenizer` renders, the pipeline tokenizes with special
    tokens and masks the first of two BOS. A template that writes no BOS has that of the tokenizer.
    """
    row = {"prompt": "a b", "chosen": "c", "rejected": "d", "subset": "donotanswer", "id": 7}
    config = {**NAMED, "chat_template": TEMPLATE}
    found = rewardbench_rows(Dataset.from_list([row]), make_tokenizer(tmp_path / "with", config))
    expected = {"chosen_ids": [1, 8, 3, 4, 2, 9, 5, 2], "rejected_ids": [1, 8, 3, 4, 2, 9, 6, 2]}
    assert found == [{"subset": "donotanswer", "id": 7, **expected}]
    config["chat_template"] = TEMPLATE.removeprefix("{{ bos_token }}")
    assert rewardbench_rows(Dataset.from_list([row]), make_tokenizer(tmp_path / "without", config)) == found
    chat = {"prompt": [{"role": "user", "content": "a"}], "chosen": "c", "rejected": "d"}
    assert rewardbench_rows(Dataset.from_list([chat]), make_tokenizer(tmp_path / "with", config)) == [chat]


@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_sections_of_rewardbench_render_texts_where_there_is_a_template(models, tmp_path, capsys, template):
    """It would be said nowhere that the rewards are those of chats."""
    tokenizer = make_tokenizer(tmp_path / "tokenizer", {**NAMED, "chat_template": template} if template else NAMED)
    model = rm.load_reward_model(models / "a/model")
    rm.save_reward_model(tmp_path / "chat/model", *rm.match_tokenizer(model, tokenizer))
    rows = [{"prompt": "a b ", "chosen": "c", "rejected": each, "subset": "donotanswer", "id": 1} for each in "da"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    command = ["--model", tmp_path / "chat/model", "--dataset", path, "--by", "subset", "--output", tmp_path / "out"]
    assert run(*command, "--sections", "rewardbench") == 0
    said = capsys.readouterr().out
    inputs: list = [{"prompt": "a b ", "response": text} for text in "cd"]
    if template:
        assert "chat: 2 rows of texts are rendered as chats, as RewardBench's own tool does (--sections)\n" in said
        turns = [{"role": "user", "content": "a b "}]
        inputs = [{"messages": [*turns, {"role": "assistant", "content": text}]} for text in "cd"]
    else:
        assert "chat: no chat template, without which RewardBench's own tool refuses; texts are scored as" in said
    expected = rm.score(*(f(tmp_path / "chat/model") for f in (rm.load_reward_model, rm.load_tokenizer)), inputs)
    np.testing.assert_allclose(read(tmp_path / "out")[1][0]["rewards"], expected, atol=1e-5)


def test_sections_are_weighted(models, data, tmp_path):
    (tmp_path / "sections.json").write_text('{"one": {"fair": 3, "short is better": 1}}', encoding="utf-8")
    command = ["--model", models / "a/model", "--dataset", data, "--by", "subset", "--output", tmp_path / "out"]
    run(*command, "--sections", tmp_path / "sections.json")
    found = read(tmp_path / "out")[0]["models"]["a"]
    first, second = (found["subsets"][name]["accuracy"] for name in ("fair", "short is better"))
    assert found["section_mean"] == pytest.approx((3 * first + second) / 4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--by", "kind"], "rows.jsonl: no column 'kind' for --by; found prompt, chosen, rejected, subset"),
        (["--sections", "rewardbench"], "--sections needs --by, the column that names the subset of a row"),
        (
            ["--by", "subset", "--sections", "rewardbench"],
            "--sections rewardbench: no subset of it is in column 'subset', which has fair, short is better",
        ),
        (["--by", "subset", "--sections", "@{}"], "expected a weight above 0, found 0"),
        (["--by", "subset", "--sections", "@[1]"], 'expected {"SECTION": {"SUBSET": WEIGHT}}'),
        (["--by", "subset", "--sections", "nowhere.json"], "expected 'rewardbench' or a JSON file"),
        (["--batch-size", "0"], "--batch-size must be greater than 0, found 0"),
        (["--max-length", "1"], "no comparison is left of 120 rows (over 1 tokens: 120)"),
        (["--model", "@none"], "none/config.json: no such file; expected a Hugging Face model directory"),
    ],
)
def test_wrong_input_is_said_in_one_line(argv, message, models, data, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    for number, text in enumerate(argv):
        if text == "@none":
            argv = [*argv[:number], str(tmp_path / "none")]
        elif text.startswith("@"):
            content = {"@{}": '{"one": {"fair": 0}}', "@[1]": "[1]"}[text]
            (tmp_path / "sections.json").write_text(content, encoding="utf-8")
            argv = [*argv[:number], str(tmp_path / "sections.json")]
    assert run("--model", models / "a/model", "--dataset", data, "--output", tmp_path / "out", *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("rm: ")
    assert error.count("\n") == 1
    assert message in error


def test_what_is_in_the_output_is_not_overwritten(models, data, tmp_path, capsys):
    command = ["--model", models / "a/model", "--dataset", data, "--output", tmp_path / "out"]
    assert run(*command) == 0
    before = (tmp_path / "out/evaluation.json").read_bytes()
    assert run(*command) == 2
    assert "holds something already; choose another --output or go on with --resume auto" in capsys.readouterr().err
    assert run(*command, "--resume", "auto", "--dtype", "bfloat16") == 2
    assert "the run has --dtype float32, found bfloat16; resume with the same" in capsys.readouterr().err
    data.write_text(data.read_text(encoding="utf-8").replace(" c", " d"), encoding="utf-8")
    assert run(*command, "--resume", "auto") == 2
    assert "a has other weights or other data than before; choose another --output" in capsys.readouterr().err
    assert (tmp_path / "out/evaluation.json").read_bytes() == before


def test_names_of_models_tell_them_apart():
    names = model_names(["runs/one/model", "runs/two/model", "one", "org/name", "runs/one/model"])
    assert names == ["one", "two", "one (2)", "name", "one (3)"]


def test_a_prompt_that_begins_with_bos_has_one_reward_everywhere(models, tmp_path, capsys):
    """`score` would judge a sequence that begins twice, which neither training nor `evaluate` sees."""
    directory = models / "a/model"
    rows = [{"prompt": start + "a b ", "chosen": "c", "rejected": "d"} for start in ("<s> ", "")]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("--model", directory, "--dataset", path, "--output", tmp_path / "out") == 0
    first, second = (line["rewards"] for line in read(tmp_path / "out")[1])
    np.testing.assert_allclose(first, second, atol=1e-6)
    inputs = [{"prompt": "<s> a b ", "response": "c"}, {"text": "<s> a b c</s>"}, {"text": "a b c</s>"}]
    found = rm.score(rm.load_reward_model(directory), rm.load_tokenizer(directory), inputs)
    np.testing.assert_allclose(found, first[0], atol=1e-6)

    capsys.readouterr()
    path.write_text("".join(json.dumps(row) + "\n" for row in inputs), encoding="utf-8")
    assert main(["score", "--model", str(directory), "--input", str(path), "--output", str(tmp_path / "scored")]) == 0
    assert "3 rows scored, a second beginning-of-sequence token removed from 2\n" in capsys.readouterr().out
