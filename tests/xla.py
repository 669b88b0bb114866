"""The flags of XLA that make it compile soon."""

from importlib.metadata import version

# these models run in no time, it is compiling them that takes long
FEW_OPTIMIZATIONS = "--xla_backend_optimization_level=0"
if version("jax") < "0.11":  # later ones have no such flag, and end where one is unknown
    FEW_OPTIMIZATIONS += " --xla_cpu_use_fusion_emitters=false"

# for a program that computes for longer than it is compiled
AS_OPTIMIZED = {"xla_backend_optimization_level": 3}
