"""Layers: attention over tuples of a sequence's own positions, and a block of it.

Letters: L steps, H features, N heads of d features, modes of keys and values.
"""

from typing import TypedDict, Unpack

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.attention.tensor import AttentionSettings, tensor_attention
from jaxlr.core import checks, signatures


class ProjectionSettings(TypedDict, total=False):
    """Keywords of `TensorMultiheadAttention` that a block passes on to it."""

    num_modes: int
    head_dim: int | None
    num_kv_heads: int | None
    use_bias: bool


class TensorMultiheadAttention(eqx.Module):
    """Every step attends to all tuples of steps: y of shape (L, H) from x of (L, H).

    Queries, and keys and values of every mode, are linear in x; the outputs of all
    heads, side by side, are projected back. 2 (2 + 2 modes) L H N d flops beside the
    attention.

    Attributes:
        query: Projection of features to the queries of all heads.
        keys: A projection of features to keys for each mode.
        values: A projection of features to values for each mode.
        output: Projection of the outputs of all heads to features.
        num_heads: Number N of heads of queries. Static.
        num_kv_heads: Number of heads of keys and values; each serves N / num_kv_heads
            heads of queries. Static.
    """

    query: eqx.nn.Linear
    keys: tuple[eqx.nn.Linear, ...]
    values: tuple[eqx.nn.Linear, ...]
    output: eqx.nn.Linear
    num_heads: int = eqx.field(static=True)
    num_kv_heads: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_heads: int,
        *,
        num_modes: int = 2,
        head_dim: int | None = None,
        num_kv_heads: int | None = None,
        use_bias: bool = False,
    ):
        """Projections of a uniform start.

        Args:
            key: Random key that the weights are drawn from.
            num_features: Number H of features of a step.
            num_heads: Number N of heads of queries.
            num_modes: Number of sets of keys and values; 1 is ordinary attention.
            head_dim: Number d of features of a head; None for H / N.
            num_kv_heads: Number of heads of keys and values; None for N.
            use_bias: Whether projections have a bias.

        Raises:
            ValueError: For a number below 1, a `num_kv_heads` that does not divide
                `num_heads`, or, without `head_dim`, a `num_heads` that does not divide
                `num_features`.
        """
        num_features = checks.count("num_features", num_features)
        num_heads = checks.count("num_heads", num_heads)
        num_modes = checks.count("num_modes", num_modes)
        if num_kv_heads is None:
            num_kv_heads = num_heads
        num_kv_heads = checks.count("num_kv_heads", num_kv_heads)
        if num_heads % num_kv_heads:
            raise ValueError(
                f"`num_kv_heads` must divide `num_heads`, got {num_kv_heads} and "
                f"{num_heads}."
            )
        if head_dim is None and num_features % num_heads:
            raise ValueError(
                "`num_heads` must divide `num_features` without a `head_dim`, got "
                f"{num_heads} and {num_features}."
            )
        if head_dim is None:
            head_dim = num_features // num_heads
        head_dim = checks.count("head_dim", head_dim)
        query_key, output_key, *keys = jr.split(key, 2 + 2 * num_modes)
        linear = eqx.nn.Linear

        def projection(key):
            size = num_kv_heads * head_dim
            return linear(num_features, size, use_bias, key=key)

        size = num_heads * head_dim
        self.query = linear(num_features, size, use_bias, key=query_key)
        self.keys = tuple(projection(key) for key in keys[:num_modes])
        self.values = tuple(projection(key) for key in keys[num_modes:])
        self.output = linear(size, num_features, use_bias, key=output_key)
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads

    @signatures.passes_on(tensor_attention)
    def __call__(
        self,
        x: Float[Array, "L H"],
        *,
        key: Key[Array, ""] | None = None,
        **settings: Unpack[AttentionSettings],
    ) -> Float[Array, "L H"]:
        """The features of every step, from those of all steps that it sees.

        Masks and lengths start with an axis of length 1, that of sequences.

        Args:
            x: Features of every step of a sequence.
            key: Not used; `eqx.nn.Sequential` gives one.
            **settings: Keywords of `tensor_attention`.

        Raises:
            ValueError: For what `tensor_attention` refuses.
        """

        def heads(projection, number):
            return jax.vmap(projection)(x).reshape(1, x.shape[0], number, -1)

        out = tensor_attention(
            heads(self.query, self.num_heads),
            tuple(heads(key, self.num_kv_heads) for key in self.keys),
            tuple(heads(value, self.num_kv_heads) for value in self.values),
            **settings,
        )
        return jax.vmap(self.output)(out.reshape(x.shape[0], -1))


class TransformerBlock(eqx.Module):
    """Norm, attention and the input added; norm, two layers with GELU, and added again.

    Attributes:
        attention: Attention over tuples of steps.
        attention_norm: Norm of what the attention is given.
        up: Linear layer from the features to the hidden ones.
        down: Linear layer from the hidden features back.
        mlp_norm: Norm of what these two layers are given.
    """

    attention: TensorMultiheadAttention
    attention_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    mlp_norm: eqx.nn.LayerNorm

    @signatures.passes_on(TensorMultiheadAttention.__init__)
    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_heads: int,
        *,
        num_hidden: int | None = None,
        **settings: Unpack[ProjectionSettings],
    ):
        """A block with weights of a uniform start.

        Args:
            key: Random key that the weights are drawn from.
            num_features: Number H of features of a step.
            num_heads: Number N of heads of queries.
            num_hidden: Number of hidden features; None for 4 H.
            **settings: Keywords of `TensorMultiheadAttention`.

        Raises:
            ValueError: For what `TensorMultiheadAttention` refuses, and for a
                `num_hidden` below 1.
        """
        num_features = checks.count("num_features", num_features)
        if num_hidden is None:
            num_hidden = 4 * num_features
        num_hidden = checks.count("num_hidden", num_hidden)
        attention_key, up_key, down_key = jr.split(key, 3)
        self.attention = TensorMultiheadAttention(
            attention_key, num_features, num_heads, **settings
        )
        self.attention_norm = eqx.nn.LayerNorm(num_features)
        self.up = eqx.nn.Linear(num_features, num_hidden, key=up_key)
        self.down = eqx.nn.Linear(num_hidden, num_features, key=down_key)
        self.mlp_norm = eqx.nn.LayerNorm(num_features)

    @signatures.passes_on(tensor_attention)
    def __call__(
        self,
        x: Float[Array, "L H"],
        *,
        key: Key[Array, ""] | None = None,
        **settings: Unpack[AttentionSettings],
    ) -> Float[Array, "L H"]:
        """The features of every step, from those of all steps that it sees.

        Masks and lengths start with an axis of length 1, that of sequences.

        Args:
            x: Features of every step of a sequence.
            key: Not used; `eqx.nn.Sequential` gives one.
            **settings: Keywords of `tensor_attention`.

        Raises:
            ValueError: For what `tensor_attention` refuses.
        """
        x = x + self.attention(jax.vmap(self.attention_norm)(x), **settings)
        hidden = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.mlp_norm)(x)))
        return x + jax.vmap(self.down)(hidden)
