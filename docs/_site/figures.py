"""Draws the figures of the pages from a real run: `python docs/_site/figures.py` in the directory of `rm-demo/`."""

import io
import re
from pathlib import Path

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba

import rm
from rm.evaluation.plots import COLOURS

INK = "#010203"  # becomes the colour of the page's text, light or dark
STYLE = {"svg.fonttype": "path", "svg.hashsalt": "rm", "font.size": 9}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
STYLE |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
THEME = "<style>svg{color:#1f2328}@media(prefers-color-scheme:dark){svg{color:#e6edf3}}</style>"
IMAGES = Path(__file__).parents[1] / "images"


def objective(model, batch):
    """The objective of the README's example."""
    r = rm.rewards(model, batch)
    chosen, rejected = r[..., 0], r[..., 1]
    return rm.pairwise_loss(chosen, rejected, batch.margin) + 0.01 * rm.centering_penalty(chosen, rejected), r


def train():
    """The README's run, evaluated every twenty updates: two rows of a batch, the log, held-out rewards."""
    base = rm.load_reward_model("rm-demo/llama", key=jax.random.key(0))
    model, tokenizer = rm.match_tokenizer(base, rm.load_tokenizer("rm-demo/llama"))
    train, held_out = (
        rm.tokenize_comparisons(rm.load_comparisons("rm-demo/train.jsonl", split=split), tokenizer, model.config)[0]
        for split in ("train[:90%]", "train[90%:]")
    )
    plan = rm.plan_batches(train, batch_size=32, seed=0)
    optimizer = rm.adamw(rm.learning_rate_schedule("linear", peak=1e-3, steps=240, warmup_steps=24))
    state, step = rm.init_state(model, optimizer), rm.jit_update(objective, optimizer)
    log = []
    for number in range(240):
        state, metrics = step(state, plan.batch_at(number))
        log.append({"step": number + 1, **{name: float(value) for name, value in metrics.items()}})
        if (number + 1) % 20 == 0:
            found = rm.evaluate(state.model, held_out, center_rewards_coefficient=0.01)
            log.append({"step": number + 1, "eval_held-out_loss": found["loss"]})
            log[-1]["eval_held-out_accuracy"] = found["accuracy"]
    (batch,) = rm.plan_batches(train, batch_size=8, seed=0, rows=2).batch_at(0)
    return batch, log, rm.comparison_rewards(state.model, held_out)


def draw_rows(ax: Axes, batch: rm.PreferenceBatch) -> None:
    """The rows of a batch: a colour for each comparison, its prompt darkest; a dot where a reward is read."""
    R, N = batch.segments.shape
    for row, segment, part in np.ndindex(R, batch.segments.max() + 1, batch.parts.max() + 1):
        place = np.flatnonzero((batch.segments[row] == segment) & (batch.parts[row] == part))
        if not segment or not len(place):
            continue
        colour = to_rgba(COLOURS[segment % 5], (0.8, 0.5, 0.3)[part])
        ax.barh(row, len(place), left=place[0], height=0.72, color=colour, edgecolor=INK, linewidth=0.5)
        label = ("prompt", "+", "−")[part] if len(place) > 9 or part else "p"
        ax.text(place.mean() + 0.5, row - 0.08, label, ha="center", va="center", fontsize=7.5)
    row, slot = np.nonzero(batch.index >= 0)
    for k in range(batch.ends.shape[-1]):
        ax.plot(batch.ends[row, slot, k] + 0.5, row + 0.25, "o", color=INK, markersize=2.5)
    ax.set_yticks(range(R), [f"row {r}" for r in range(R)])
    ax.set(xlim=(0, N), ylim=(R - 0.5, -0.5), xlabel="token of the row")
    ax.spines["left"].set_visible(False)
    ax.tick_params(axis="y", length=0)


def save(figure, name: str) -> None:
    """The figure as SVG, its ink in the colour of the text around it."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d\.\d{2})\d+", r"\1", path[0]), text)  # hundredths do
    text = "\n".join(line.rstrip() for line in text.splitlines())
    (IMAGES / name).write_text(text.replace(INK, "currentColor").replace(">", f">{THEME}", 1) + "\n", encoding="utf-8")


def box(x: int, y: int, width: int, name: str, phrase: str, colour: str) -> str:
    """A room: its name and what it does, in one or two lines."""
    lines = "".join(f'<tspan x="{x + width / 2}" dy="14">{line}</tspan>' for line in phrase.split("|"))
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="58" rx="6" fill="{colour}" fill-opacity="0.16" '
        f'stroke="{colour}"/><text x="{x + width / 2}" y="{y + 18}" font-weight="600">{name}'
        f'</text><text x="{x + width / 2}" y="{y + 20}" font-size="11">{lines}</text>'
    )


def arrow(x1: int, y1: int, x2: int, y2: int, label: str = "", above: int = 7) -> str:
    """An arrow, and above it the thing that is passed on."""
    text = f'<text x="{(x1 + x2) / 2}" y="{(y1 + y2) / 2 - above}" font-size="10.5">{label}</text>' if label else ""
    return f'<path d="M{x1} {y1}L{x2} {y2}" stroke="currentColor" marker-end="url(#tip)" fill="none"/>{text}'


def rooms() -> str:
    """The folders of `rm` along the path of a preference pair, and the path of a reward below it."""
    data, model, use, under = COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[5]
    drawn = [
        '<text x="14" y="96" text-anchor="start" font-size="11">pairs.jsonl</text>',
        box(14, 110, 92, "files", "read rows;|weights", data),
        arrow(106, 139, 150, 139, "rows"),
        box(152, 110, 98, "text, data", "render,|tokenize", data),
        arrow(250, 139, 298, 139, "ids"),
        box(300, 110, 92, "packing", "fill rows", data),
        arrow(392, 139, 440, 139, "batch"),
        box(442, 110, 92, "model", "forward", model),
        arrow(534, 128, 586, 66),
        '<text x="552" y="88" text-anchor="end" font-size="10.5">rewards</text>',
        box(588, 28, 104, "training", "loss, gradients,|update", model),
        arrow(692, 57, 738, 57, "state"),
        box(740, 28, 104, "saving", "checkpoints,|exports", use),
        arrow(534, 150, 586, 212),
        '<text x="564" y="174" text-anchor="start" font-size="10.5">rewards</text>',
        box(588, 192, 104, "evaluation", "statistics,|figures", use),
        arrow(692, 221, 738, 221),
        box(740, 192, 104, "serving", "rewards over|HTTP", use),
        box(300, 192, 234, "devices", "meshes, processes, platform:|under model, packing and training", under),
        box(14, 192, 236, "planning", "the same update, compiled for|devices that are not here", under),
        box(
            14,
            274,
            830,
            "commands",
            "train, evaluate, score, serve, plan, data, demo: each a composition of the rooms",
            under,
        ),
        '<text x="844" y="20" text-anchor="end" font-size="11">a pair ends in new parameters …</text>',
        '<text x="844" y="184" text-anchor="end" font-size="11">… a response in a number</text>',
    ]
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 858 346" font-family="sans-serif" font-size="13" '
        f'text-anchor="middle" fill="currentColor">{THEME}{tip}\n' + "\n".join(drawn) + "\n</svg>\n"
    )


def main() -> None:
    """Writes first_run.svg and rooms.svg."""
    (IMAGES / "rooms.svg").write_text(rooms(), encoding="utf-8")
    if not Path("rm-demo").is_dir():
        return
    batch, log, rewards = train()
    with matplotlib.rc_context(STYLE):
        figure = plt.figure(figsize=(9, 4.6), layout="constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=(1, 2.1), width_ratios=(1, 1, 1.15))
        draw_rows(figure.add_subplot(grid[0, :]), batch)
        loss, accuracy, histogram = (figure.add_subplot(grid[1, column]) for column in range(3))
        rm.plots.training_curves(log, metric="loss", ax=loss)
        loss.axhline(np.log(2), color=COLOURS[5], linewidth=0.8, linestyle=":")
        rm.plots.training_curves(log, metric="accuracy", ax=accuracy)
        for ax in (loss, accuracy):
            ax.get_lines()[0].set(alpha=0.45, linewidth=1)
        rm.plots.reward_histogram(rewards[:, 0], rewards[:, 1], ax=histogram)
        save(figure, "first_run.svg")


if __name__ == "__main__":
    main()
