"""The dimension letters of all shape annotations, and the decorator that checks the annotations.

| letter | meaning                                       | letter | meaning                             |
|--------|-----------------------------------------------|--------|-------------------------------------|
| R      | rows of a batch                               | L      | layers (stacked); labels of a head  |
| N      | tokens of a row: prefixes and responses        | D      | hidden size                         |
| S      | slots: the comparisons that fit into a row    | F      | MLP size                            |
| K      | responses of a comparison                     | V      | vocabulary                          |
| B      | comparisons                                   | G      | key/value heads                     |
| M      | queries of an attention product               | Q      | query heads per key/value head      |
| J      | keys of an attention product                  | E      | head size                           |
| I, O   | in and out features of a linear layer         | H      | query heads, H = G·Q                |
| P      | rank of a low-rank adapter                    |        |                                     |
"""

from beartype import beartype
from jaxtyping import jaxtyped

# Shapes are checked while JAX traces, so under `jax.jit` the check costs nothing per step.
checked = jaxtyped(typechecker=beartype)
