"""The accelerators that can be planned for, with their published figures, and the names of their topologies."""

import math
import os
import re
from typing import NamedTuple

from ..errors import ConfigError


class Chip(NamedTuple):
    """The figures of one device; `None` if nothing is published."""

    platform: str  # tpu, cuda or cpu
    memory: float  # bytes
    flops: float | None  # dense bfloat16 products, operations per second
    link: float | None  # bytes per second to the devices within reach, one way
    reach: int  # devices that this link connects
    network: float | None  # bytes per second of one device to devices out of reach, one way
    dims: int  # numbers in the name of a topology
    name: str  # the compiler's name for it
    compiles: bool = True  # whether `rm.planning.compiled` has its figures


# Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e" (they give interconnect both ways: half of it is used here);
# NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU" (SXM; NVLink 900 GB/s both ways;
# beyond a machine of eight, one network port of 400 Gbit/s a device: "DGX H100 System"); "NVIDIA Ada GPU Architecture",
# appendix A (dense bfloat16 with float32 accumulation; PCIe 4.0 with 16 lanes).
CHIPS = {
    "v5e": Chip("tpu", 16e9, 197e12, 100e9, 256, None, 2, "v5e"),
    "v5p": Chip("tpu", 95e9, 459e12, 300e9, 8960, None, 3, "v5p"),
    "v6e": Chip("tpu", 32e9, 918e12, 224e9, 256, None, 2, "v6e"),
    "h100": Chip("cuda", 80e9, 989e12, 450e9, 8, 50e9, 1, "NVIDIA H100 80GB HBM3"),
    "h200": Chip("cuda", 141e9, 989e12, 450e9, 8, 50e9, 1, "NVIDIA H200"),
    "rtx4090": Chip("cuda", 24e9, 165e12, 32e9, 8, None, 1, "NVIDIA GeForce RTX 4090", False),
}


class Topology(NamedTuple):
    """Devices of one kind and how they are arranged."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def devices(self) -> int:
        """The number of devices."""
        return math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """Parses a topology such as `v5p:2x2x2`, `v6e:8x8`, `h100:8` or `cpu:8`.

    CPU devices share the memory of this machine equally.

    **Raises:** `ConfigError` if there is no such topology.

    >>> parse_topology("v6e:8x8").devices
    64
    """
    kind, _, sizes = name.partition(":")
    chip = CHIPS.get(kind) or (Chip("cpu", 0, None, None, 1, None, 1, "cpu") if kind == "cpu" else None)
    if chip is None or not re.fullmatch(r"[1-9]\d*" + rf"(x[1-9]\d*){{{chip.dims - 1}}}", sizes or "1"):
        examples = "v5e:4x4, v5p:2x2x2, v6e:8x8, h100:8, h200:1, rtx4090:1 or cpu:8"
        raise ConfigError(f"no topology is called {name!r}; expected such as {examples}")
    shape = tuple(int(size) for size in (sizes or "1").split("x"))
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        chip = chip._replace(memory=memory / math.prod(shape))
    return Topology(name, chip, shape)
