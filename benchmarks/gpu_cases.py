"""What `gpu.py` measures: architectures, lengths and the cases, as plain data that every child process can import."""

import dataclasses
from typing import Any, NamedTuple

MARK = "result "
WARM_UP, TIMED = 3, 8


class Shape(NamedTuple):
    """An architecture, with the field names of Hugging Face."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int

    def config(self) -> dict[str, Any]:
        """The fields of a configuration."""
        return self._asdict() | {"max_position_embeddings": 4096, "pad_token_id": 0}


SHAPES = {
    "1B": Shape(128256, 2048, 8192, 16, 32, 8),
    "8B": Shape(128256, 4096, 14336, 32, 32, 8),
    "tiny": Shape(512, 64, 128, 3, 4, 2),
}

# (prompt, chosen, rejected) in tokens of 32 of the 8,487 pairs of hh-rlhf (Bai et al. 2022, arXiv 2204.05862, harmless,
# test split) by the tokenizer of SmolLM2: the middle of every 32nd when they are sorted by their sum.
HH_RLHF = (
    (39, 21, 10), (69, 14, 4), (41, 16, 44), (82, 14, 18), (39, 79, 11), (95, 11, 35), (128, 10, 14), (40, 58, 68),
    (132, 18, 29), (88, 26, 76), (175, 10, 17), (134, 24, 57), (42, 55, 131), (37, 135, 69), (185, 18, 51),
    (168, 12, 89), (189, 37, 58), (120, 90, 89), (278, 7, 28), (283, 32, 15), (43, 188, 116), (255, 95, 15),
    (254, 52, 78), (134, 108, 163), (295, 70, 64), (360, 7, 91), (377, 36, 73), (371, 78, 76), (290, 156, 122),
    (327, 142, 170), (622, 53, 67), (810, 46, 124),
)  # fmt: skip
LENGTHS = {"fixed": ((512, 768, 768),) * 8, "hh-rlhf": HH_RLHF, "tiny": ((32, 64, 64), (8, 16, 40))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """What one process measures."""

    system: str  # rm, trl or transformers
    what: str  # update, command (python -m rm train) or score
    shape: str = "1B"
    lengths: str = "fixed"
    setting: str = "none"  # recomputation: none, full; of TRL: full is gradient checkpointing
    parameters: str = "float32"

    @property
    def name(self) -> str:
        """What is compared: the same for all systems."""
        return f"{self.what} {self.shape}, {self.lengths}"


def list_cases(tiny: bool) -> list[Case]:
    """The cases, what matters most first, for the time may run out."""
    shape, fixed, real = ("tiny", "tiny", "tiny") if tiny else ("1B", "fixed", "hh-rlhf")
    update = {"what": "update", "shape": shape}
    cases = [
        *(Case(system=system, lengths=fixed, **update) for system in ("rm", "trl")),
        *(Case(system=system, lengths=real, **update) for system in ("rm", "trl")),
        Case(system="rm", what="update", shape="tiny" if tiny else "8B", setting="full", parameters="bfloat16"),
        *(Case(system=system, what="score", shape=shape, lengths=real) for system in ("rm", "transformers")),
        Case(system="rm", what="command", shape=shape, lengths=fixed),
        *(Case(system=system, lengths=fixed, setting="full", **update) for system in ("rm", "trl")),
    ]
    return [dataclasses.replace(case, lengths="tiny") for case in cases] if tiny else cases
