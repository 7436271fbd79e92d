"""Layers: attention over tuples of a sequence's own positions, and a block of it.

Letters: L steps, H features, N heads of d features, modes of keys and values.
"""

from typing import Any

import equinox as eqx
import jax
import jax.random as jr
from jaxtyping import Array, Float, Key

from jaxlr.attention.tensor import tensor_attention


class TensorMultiheadAttention(eqx.Module):
    """Every step attends to all tuples of steps: y of shape (L, H) from x of (L, H).

    Queries, and keys and values of every mode, are linear in x; the outputs of all
    heads, side by side, are projected back. Options of `tensor_attention` are options
    of a call. 2 (2 + 2 modes) L H N d flops beside the attention.

    Attributes:
        query: To the queries of all heads.
        keys: A projection a mode.
        values: Likewise.
        output: From the outputs of all heads.
        num_heads: N. Static.
        num_kv_heads: Heads of keys; each serves N / num_kv_heads queries. Static.
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
            key: Source of the weights.
            num_features: H.
            num_heads: N.
            num_modes: Key and value sets; 1 is ordinary attention.
            head_dim: d. None: H / N.
            num_kv_heads: None: N.
            use_bias: Whether projections have a bias.

        Raises:
            ValueError: For a number below 1, a `num_kv_heads` that does not divide
                `num_heads`, or, without `head_dim`, a `num_heads` that does not divide
                `num_features`.
        """
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        for name, value in (
            ("num_features", num_features),
            ("num_heads", num_heads),
            ("num_modes", num_modes),
            ("num_kv_heads", num_kv_heads),
            ("head_dim", 1 if head_dim is None else head_dim),
        ):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1, got {value!r}.")
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
        head_dim = num_features // num_heads if head_dim is None else head_dim
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

    def __call__(
        self,
        x: Float[Array, "L H"],
        *,
        key: Key[Array, ""] | None = None,
        **options: Any,
    ) -> Float[Array, "L H"]:
        """Of a whole sequence.

        Args:
            x: Features.
            key: Not used; `eqx.nn.Sequential` gives one.
            **options: Of `tensor_attention`; masks and lengths start with an axis of 1.

        Raises:
            ValueError: As `tensor_attention`.
        """

        def heads(projection, number):
            return jax.vmap(projection)(x).reshape(1, x.shape[0], number, -1)

        out = tensor_attention(
            heads(self.query, self.num_heads),
            tuple(heads(key, self.num_kv_heads) for key in self.keys),
            tuple(heads(value, self.num_kv_heads) for value in self.values),
            **options,
        )
        return jax.vmap(self.output)(out.reshape(x.shape[0], -1))


class TransformerBlock(eqx.Module):
    """Norm, attention and the input added; norm, two layers with GELU, and added again.

    Attributes:
        attention: Over tuples of steps.
        attention_norm: Before it.
        up: To the hidden features.
        down: From them.
        mlp_norm: Before those.
    """

    attention: TensorMultiheadAttention
    attention_norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    mlp_norm: eqx.nn.LayerNorm

    def __init__(
        self,
        key: Key[Array, ""],
        num_features: int,
        num_heads: int,
        *,
        num_hidden: int | None = None,
        **options: Any,
    ):
        """A block with weights of a uniform start.

        Args:
            key: Source of the weights.
            num_features: H.
            num_heads: N.
            num_hidden: Hidden features. None: 4 H.
            **options: Of `TensorMultiheadAttention`.

        Raises:
            ValueError: As `TensorMultiheadAttention`; for a `num_hidden` below 1.
        """
        num_hidden = 4 * num_features if num_hidden is None else num_hidden
        if not isinstance(num_hidden, int) or num_hidden < 1:
            raise ValueError(
                f"`num_hidden` must be an integer >= 1, got {num_hidden!r}."
            )
        attention_key, up_key, down_key = jr.split(key, 3)
        self.attention = TensorMultiheadAttention(
            attention_key, num_features, num_heads, **options
        )
        self.attention_norm = eqx.nn.LayerNorm(num_features)
        self.up = eqx.nn.Linear(num_features, num_hidden, key=up_key)
        self.down = eqx.nn.Linear(num_hidden, num_features, key=down_key)
        self.mlp_norm = eqx.nn.LayerNorm(num_features)

    def __call__(
        self,
        x: Float[Array, "L H"],
        *,
        key: Key[Array, ""] | None = None,
        **options: Any,
    ) -> Float[Array, "L H"]:
        """Of a whole sequence.

        Args:
            x: Features.
            key: Not used; `eqx.nn.Sequential` gives one.
            **options: Of `tensor_attention`.

        Raises:
            ValueError: As `tensor_attention`.
        """
        x = x + self.attention(jax.vmap(self.attention_norm)(x), **options)
        hidden = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.mlp_norm)(x)))
        return x + jax.vmap(self.down)(hidden)
