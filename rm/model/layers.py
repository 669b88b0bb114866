"""The parts of a block as pure functions; parameters keep their on-disk orientation `[out, in]`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from ..devices.collectives import exchange_over, gather_over, gather_weight, scatter_gradient, sum_over
from ..devices.platform import on_gpu, platform
from ..shapes import checked
from .derivatives import choose_backward, first_only

PRODUCT = "product"  # the name of linear layers' outputs in remat policies


class Lora(eqx.Module):
    """A low-rank update of a linear layer's weight: `scale · B A` (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

    a: Float[Array, "*L P I"]
    b: Float[Array, "*L O P"]
    scale: float = eqx.field(static=True)


class Linear(eqx.Module):
    """The parameters of a linear layer; stacked layers carry a leading axis."""

    weight: Float[Array, "*L O I"]
    bias: Float[Array, "*L O"] | None = None
    lora: Lora | None = None


def precision(dtype) -> lax.Precision | None:
    """The precision of products: full for float32, which accelerators would otherwise round to TF32 or bfloat16."""
    return lax.Precision.HIGHEST if dtype == jnp.float32 else None


def along_last(vector: Float[Array, "D"], ndim: int) -> Float[Array, "... D"]:
    """Reshapes a vector to `ndim` axes, which makes its broadcasting explicit."""
    return vector.reshape((1,) * (ndim - 1) + (-1,))


@checked
def linear(x: Float[Array, "*B I"], layer: Linear, *, partial: bool = False) -> Float[Array, "*B O"]:
    """`x Wᵀ + b` in the type of `x`, accumulated in float32; the gradient of `W` is never rounded to that type.

    With an adapter, `W + scale · B A` stands in place of `W`. With `partial`, the input features are sharded along
    `tensor`, and the devices' products are summed.
    """
    rows = x.reshape(-1, x.shape[-1])
    if layer.lora is None:
        y = choose_backward(_multiply, _product)(rows, layer.weight)
    else:
        y = _with_adapter(rows, layer.weight, layer.lora)
    y = checkpoint_name(sum_over(y, "tensor") if partial else y, PRODUCT)
    if layer.bias is not None:
        y = (y.astype(jnp.float32) + along_last(layer.bias, 2).astype(jnp.float32)).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1)


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "_ _"]:
    """The float32 product of two matrices, contracted over one axis of each."""
    dims = ((contract[:1], contract[1:]), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision(a.dtype), preferred_element_type=jnp.float32)


def _rounded(a: Array, b: Array, contract: tuple[int, int]) -> Float[Array, "_ _"]:
    """The product rounded to the type of `a`, which GPUs do before they write it; they add up in float32 as well."""
    if not on_gpu():
        return dot(a, b, contract).astype(a.dtype)
    dims = ((contract[:1], contract[1:]), ((), ()))
    return lax.dot_general(a, b, dims, precision=precision(a.dtype), preferred_element_type=a.dtype)


def _multiply(x: Float[Array, "B I"], weight: Float[Array, "_ _"]) -> Float[Array, "B O"]:
    return _rounded(x, gather_weight(weight.astype(x.dtype), x.shape[1]), (1, 1))


_product = jax.custom_vjp(_multiply)


def _product_forward(x: Array, weight: Array):
    return _product(x, weight), (x, weight)


def _product_backward(saved: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
    x, weight = saved
    d_y = lax.optimization_barrier(d_y)  # else XLA recomputes it for each product, once in a slow layout
    d_x = _rounded(d_y, gather_weight(weight.astype(x.dtype), x.shape[1]), (1, 0))
    return d_x, scatter_gradient(_over_rows(d_y, x), weight.shape).astype(weight.dtype)


def _over_rows(a: Float[Array, "B O"], b: Float[Array, "B I"]) -> Float[Array, "O I"]:
    """The float32 product `aᵀ b`; CPUs' fast bfloat16 products need the first factor transposed in memory."""
    if a.dtype == jnp.bfloat16 and platform() == "cpu":
        return dot(transposed(a), b, (1, 0))
    return dot(a, b, (0, 0))


def transposed(x: Float[Array, "*B M N"]) -> Float[Array, "*B N M"]:
    """Transposes bfloat16 matrices in memory, so that a product reads them in this order."""
    bits = lax.bitcast_convert_type(x, jnp.uint16)  # else XLA on CPUs transposes in float32
    halves = jnp.split(bits, [x.shape[-2] // 2], axis=-2)  # XLA would fold a plain transpose into the product
    return lax.bitcast_convert_type(jnp.concatenate([half.mT for half in halves], axis=-1), x.dtype)


_product.defvjp(_product_forward, first_only(_product_backward))


def _with_adapter(x: Float[Array, "B I"], weight: Array, lora: Lora) -> Float[Array, "B O"]:
    """`x (W + scale · B A)ᵀ`; in bfloat16 the sum would round the adapter away, so each has a product of its own."""
    a, b = lora.a, lora.scale * lora.b
    if x.dtype == jnp.float32:
        return choose_backward(_multiply_sum, _sum_product)(x, weight, a, b)
    multiply = choose_backward(_multiply, _product)
    y, low = multiply(x, weight), multiply(multiply(x, a), b)
    return (y.astype(jnp.float32) + low.astype(jnp.float32)).astype(x.dtype)


def _gathered_sum(weight: Array, a: Array, b: Array, columns: int) -> tuple[Array, Array, Array]:
    """`W + B A`, `A` and `B`, gathered, in float32."""
    weight, a, b = (each.astype(jnp.float32) for each in (weight, a, b))
    a = gather_weight(a, columns)
    b = gather_weight(b, a.shape[0])
    return gather_weight(weight, columns) + dot(b, a, (1, 0)), a, b


def _multiply_sum(x: Float[Array, "B I"], weight: Array, a: Array, b: Array) -> Float[Array, "B O"]:
    return dot(x, _gathered_sum(weight, a, b, x.shape[1])[0], (1, 1))


_sum_product = jax.custom_vjp(_multiply_sum)


def _sum_product_forward(x: Array, weight: Array, a: Array, b: Array):
    return _sum_product(x, weight, a, b), (x, weight, a, b)


def _sum_product_backward(saved: tuple[Array, Array, Array, Array], d_y: Array) -> tuple[Array, ...]:
    x, weight, a, b = saved
    d_y = lax.optimization_barrier(d_y)
    total, whole_a, whole_b = _gathered_sum(weight, a, b, x.shape[1])
    gradients = (  # that of a frozen weight is never computed
        dot(d_y, x, (0, 0)),
        dot(dot(d_y, whole_b, (1, 0)), x, (0, 0)),
        dot(d_y, dot(x, whole_a, (1, 1)), (0, 0)),
    )
    scattered = (
        scatter_gradient(gradient, factor.shape).astype(factor.dtype)
        for gradient, factor in zip(gradients, (weight, a, b), strict=True)
    )
    return dot(d_y, total, (1, 0)), *scattered


_sum_product.defvjp(_sum_product_forward, first_only(_sum_product_backward))


@checked
def embed(table: Float[Array, "V _"], tokens: Int[Array, "R N"], dtype) -> Float[Array, "R N D"]:
    """The embeddings of tokens, from a table whose columns are sharded over `tensor` and `fsdp`.

    Every device looks up its columns for the rows of all, so that activations are exchanged, not the larger table.
    """
    take = choose_backward(_take_in_float32, _take)
    x = take(table, gather_over(tokens, "fsdp", dim=0), jnp.zeros((), dtype))
    return gather_over(exchange_over(x, "fsdp", split=0, join=2), "tensor", dim=2)


@jax.custom_vjp
def _take(table: Float[Array, "V I"], tokens: Int[Array, "B N"], like: Float[Array, ""]) -> Float[Array, "B N I"]:
    """Rows of the table in the type of `like`; a device sums the gradients of equal tokens in float32."""
    return table[tokens].astype(like.dtype)


def _take_in_float32(table: Array, tokens: Array, like: Array) -> Array:
    return table.astype(jnp.float32)[tokens].astype(like.dtype)


def _take_forward(table: Array, tokens: Array, like: Array):
    return _take(table, tokens, like), (table, tokens)


def _take_backward(saved: tuple[Array, Array], d_x: Array) -> tuple[Array, None, None]:
    table, tokens = saved
    # in bfloat16 a sum of equal terms stops growing at 256
    sums = jnp.zeros(table.shape, jnp.float32).at[tokens].add(d_x.astype(jnp.float32))
    return sums.astype(table.dtype), None, None


_take.defvjp(_take_forward, first_only(_take_backward))


@checked
def rms_norm(x: Float[Array, "*B D"], weight: Float[Array, "D"], eps: float) -> Float[Array, "*B D"]:
    """`x / rms(x) · weight`, the statistics in float32 (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""
    x32 = x.reshape(-1, x.shape[-1]).astype(jnp.float32)  # XLA's sums over matrices are many times faster on CPUs
    scale = lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + eps)
    return (x32 * scale * along_last(weight, 2).astype(jnp.float32)).astype(x.dtype).reshape(x.shape)


@checked
def gated_linear(gate: Float[Array, "*B F"], up: Float[Array, "*B F"], down: Linear) -> Float[Array, "*B D"]:
    """`(silu(x G) ⊙ x U) D`, from the two products (Shazeer 2020, arXiv 2002.05202, eq. 6)."""
    return linear(choose_backward(_gate, _gated)(gate, up), down, partial=True)


def _gate(gate: Float[Array, "*B F"], up: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """`silu(gate) ⊙ up` in float32, rounded once; only the two inputs are saved for the backward pass."""
    gate32 = gate.astype(jnp.float32)
    return (gate32 * jax.nn.sigmoid(gate32) * up.astype(jnp.float32)).astype(gate.dtype)


_gated = jax.custom_vjp(_gate)


def _gated_forward(gate: Array, up: Array):
    return _gated(gate, up), (gate, up)


def _gated_backward(saved: tuple[Array, Array], d_out: Array) -> tuple[Array, Array]:
    gate, up, d_out = (x.astype(jnp.float32) for x in (*saved, d_out))
    sigmoid = jax.nn.sigmoid(gate)
    d_gate = d_out * up * sigmoid * (1 + gate * (1 - sigmoid))
    return d_gate.astype(saved[0].dtype), (d_out * gate * sigmoid).astype(saved[1].dtype)


_gated.defvjp(_gated_forward, first_only(_gated_backward))
