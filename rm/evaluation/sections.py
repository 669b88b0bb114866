"""Benchmarks whose score is a mean of sections, each a weighted mean of subsets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError

# Lambert et al. 2024, "RewardBench", and `EXAMPLE_COUNTS` of its tool, rewardbench 0.1.4 (before 0.1.3 the two counts
# of xstest were exchanged): each subset counts as often as it has comparisons, but math-prm (447) as often as all of
# code.
REWARDBENCH: dict[str, dict[str, int | float]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **{f"hep-{language}": 164 for language in ("cpp", "go", "java", "js", "python", "rust")},
    },
}


def load_sections(name: str) -> Mapping[str, Mapping[str, int | float]]:
    """The sections of `rewardbench`, or of a JSON file `{"SECTION": {"SUBSET": WEIGHT}}`.

    **Raises:** `ConfigError`, naming the file and the mistake in it.
    """
    if name == "rewardbench":
        return REWARDBENCH
    try:
        sections: Any = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sections {name}: expected 'rewardbench' or a JSON file ({error})") from None
    if not isinstance(sections, dict) or not all(isinstance(w, dict) and w for w in sections.values()):
        raise ConfigError(f'--sections {name}: expected {{"SECTION": {{"SUBSET": WEIGHT}}}}')
    for section, weights in sections.items():
        for subset, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ConfigError(
                    f"--sections {name}: {section}, {subset}: expected a weight above 0, found {weight!r}"
                )
    return sections
