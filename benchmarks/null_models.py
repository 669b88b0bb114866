"""What an evaluation says of models with which nothing is wrong: how often it warns, how often an interval is right.

python benchmarks/null_models.py [--prompts 20 40 100 200 1000] [--responses 2 4 8] [--pages 2000]

Preferences are drawn from the rewards of a model that is calibrated by construction (Plackett-Luce), prompts differ in
how far their responses are apart, lengths and subsets are drawn at random. Where prompts recur, each is in two rows
that have one response in common. A page has a calibrated model, whose every warning is false, or a random one, of which
it is false that it is below chance or follows length; with ties, rewards are rounded. Two models with noise of one size
differ by nothing; the difference of two with noise of two sizes is known from many prompts.
"""

import argparse
import itertools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

import rm
from rm.evaluation.summary import summarize

CLAIMS = ("Accuracy is below", "Length bias", "Accuracy depends", "Badly calibrated", "Worse than chance")
SCALES, NOISES = np.linspace(0.2, 4, 9), (0.5, 1.5)


class World(NamedTuple):
    """Comparisons as pairs of responses: chosen, rejected, and the prompt of each."""

    chosen: np.ndarray
    rejected: np.ndarray
    prompts: np.ndarray


def draw(rng: np.random.Generator, prompts: int, K: int, recurring: bool, scale: float) -> tuple[np.ndarray, World]:
    """True qualities of all responses, and the comparisons that people make of them."""
    rows, count = (2, 2 * K - 1) if recurring else (1, K)
    spread = scale * np.exp(0.5 * rng.normal(size=(prompts, 1)))
    quality = spread * rng.normal(size=(prompts, count))
    first, second = np.array(list(itertools.combinations(range(K), 2))).T
    parts = []
    for row in range(rows):
        here = np.arange(K) + row * (K - 1)  # the last response of a row is the first one of the next
        rank = (quality + rng.gumbel(size=quality.shape))[:, here]
        index = here + count * np.arange(prompts)[:, None]
        right = rank[:, first] > rank[:, second]
        chosen, rejected = (np.where(right == side, index[:, first], index[:, second]) for side in (True, False))
        parts.append((chosen.ravel(), rejected.ravel(), np.repeat(np.arange(prompts), len(first))))
    return quality.ravel(), World(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def true_accuracy(rng: np.random.Generator, scale: float, noise: float, count: int = 400_000) -> float:
    spread = scale * np.exp(0.5 * rng.normal(size=count))
    apart = np.sqrt(2) * spread * rng.normal(size=count)
    judged = apart + np.sqrt(2) * noise * rng.normal(size=count)
    return float((1 / (1 + np.exp(-np.sign(judged) * apart))).mean())


def page(rng: np.random.Generator, rewards: np.ndarray, lengths: np.ndarray, world: World) -> tuple[dict, list[str]]:
    sides = [values[index] for values in (rewards, lengths) for index in (world.chosen, world.rejected)]
    names = rng.choice(["a", "b", "c", "d"], world.prompts.max() + 1)[world.prompts].tolist()
    found = summarize(*sides, prompts=world.prompts, subsets=names)
    return found, [claim for claim in CLAIMS if any(s.startswith(claim) for s in rm.findings(found))]


def one(rng: np.random.Generator, truth: dict, prompts: int, K: int, recurring: bool) -> Counter[str]:
    """The claims and the intervals that hold the truth, of one set of preferences."""
    scale, seen = rng.choice(SCALES), Counter()
    quality, world = draw(rng, prompts, K, recurring, scale)
    lengths = rng.integers(5, 200, len(quality))
    drawn = rng.normal(size=len(quality))
    for kind, rewards in (("calibrated", quality), ("random", drawn), ("random, ties", drawn.round())):
        _, claims = page(rng, rewards, lengths, world)
        claims = claims if kind == "calibrated" else [claim for claim in claims if claim != "Badly calibrated"]
        seen.update([f"{kind}: {claim}" for claim in claims] + [f"{kind}: any claim"] * bool(claims))
    noisy = [quality + noise * rng.normal(size=len(quality)) for noise in (NOISES[0], NOISES[0], NOISES[1])]
    found, _ = page(rng, noisy[0], lengths, world)
    shares = {"accuracy": found, "accuracy, chosen longer": found["length"]["chosen_longer"]}
    shares["accuracy of a subset"] = next(iter(found["subsets"].values()))
    for name, each in shares.items():
        seen[f"interval: {name}"] += each["interval"][0] <= truth[scale, NOISES[0]] <= each["interval"][1]
    right = [rewards[world.chosen] > rewards[world.rejected] for rewards in noisy]
    same, other = (rm.statistics.paired_test(right[0], second, world.prompts) for second in right[1:])
    seen["equal models: p < 0.05"] += same["p_value"] < 0.05
    differences = {"difference of equal models": (same, 0.0)}
    differences["difference of unlike models"] = other, truth[scale, NOISES[0]] - truth[scale, NOISES[1]]
    for name, (each, expected) in differences.items():
        seen[f"interval: {name}"] += each["interval"][0] <= expected <= each["interval"][1]
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--prompts", type=int, nargs="+", default=[20, 40, 100, 200, 1000])
    parser.add_argument("--responses", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--pages", type=int, default=2000, help="of each kind of model; fewer of many comparisons")
    parser.add_argument("--comparisons", type=int, default=2_000_000, help="at most so many in all pages of a column")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = {(scale, noise): true_accuracy(rng, scale, noise) for scale in SCALES for noise in NOISES}
    kinds = [
        f"{kind}: {claim}" for kind in ("calibrated", "random", "random, ties") for claim in (*CLAIMS, "any claim")
    ]

    def show(title: str, seen: Counter[str], pages: int) -> None:
        print(f"{title}, {pages} pages", flush=True)
        for name in [*(kind for kind in kinds if seen[kind]), *sorted(name for name in seen if name not in kinds)]:
            print(f"  {name}: {seen[name] / pages:.2%}", flush=True)

    every, count = Counter(), 0
    for recurring, prompts, K in itertools.product((False, True), args.prompts, args.responses):
        pages = min(args.pages, max(args.comparisons // (prompts * K * (K - 1) // 2 * (1 + recurring)), 10))
        seen = sum((one(rng, truth, prompts, K, recurring) for _ in range(pages)), Counter())
        show(f"{prompts} prompts{' in two rows each' * recurring}, {K} responses", seen, pages)
        every, count = every + seen, count + pages
    show("all", every, count)


if __name__ == "__main__":
    main()
