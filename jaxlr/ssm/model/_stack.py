"""A residual network of state-space layers, whole or one step at a time."""

from collections.abc import Callable
from typing import Any, get_args, Literal, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key, PyTree, Shaped
import optax

from jaxlr import kernels
from jaxlr.core import checks, Hyper
from jaxlr.kernels.diagonal_scan import check_resets_and_lengths
from jaxlr.ssm.model._layer import Layer


Pooling: TypeAlias = Literal["mean", "last", "none"]


class Block(eqx.Module):
    """Norm, layer, GELU, gated linear unit, dropout, and the input added.

    Attributes:
        norm: Norm of the features of one step.
        layer: Layer that goes forward in time.
        backward: Layer that goes backward in time, or None.
        gate: Linear layer to twice as many features, half of them gates.
        dropout: Share of the outcome that is set to zero in training. Static.
        is_prenorm: Whether the norm is taken of the input; else of the sum. Static.
    """

    norm: eqx.nn.LayerNorm
    layer: Layer
    backward: Layer | None
    gate: eqx.nn.Linear
    dropout: float = eqx.field(static=True)
    is_prenorm: bool = eqx.field(static=True)

    def apply(
        self,
        x: Float[Array, "L H"],
        layer_fn: Callable[[Array], tuple[Array, Any]],
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "L H"], Any]:
        """All but the layer: `(y, what else layer_fn returns)`.

        Args:
            x: Features of every step.
            layer_fn: What takes the place of the layer: `layer_fn(u) -> (y, rest)`.
            key: Random key of dropout; None for none of it.
        """
        norm = jax.vmap(self.norm)
        y, state = layer_fn(norm(x) if self.is_prenorm else x)
        y = jax.nn.glu(jax.vmap(self.gate)(jax.nn.gelu(y)))
        dropout = eqx.nn.Dropout(self.dropout)
        x = x + dropout(y, key=key, inference=key is None)
        return x if self.is_prenorm else norm(x), state


class StackState(NamedTuple):
    """Where a sequence is.

    Attributes:
        layers: State of each layer.
        total: Sum of the features of the steps so far, for a mean over them.
        num_steps: Number of those steps.
    """

    layers: tuple[Array, ...]
    total: Float[Array, " H"]
    num_steps: Float[Array, ""]


class Stack(eqx.Module):
    """An encoder, residual blocks of state-space layers, a decoder.

    It takes one sequence; `jax.vmap` takes many. Call it on a whole sequence, `scan`
    from a state to a state, or `step`; these agree.

    Args:
        key: Random key that the weights are drawn from.
        layer_fn: What makes a layer: `layer_fn(key) -> Layer`, such as
            `lambda key: S4D(key, num_features)`.
        num_features: Number H of features of a step, inside.
        num_outputs: Number of outputs of the decoder.
        num_inputs: Number of features of a step of the input; None for tokens.
        num_tokens: Number of tokens of the vocabulary; then the input is of integers.
        num_layers: Number of blocks.
        pooling: What is decoded: the `"mean"` over steps, the `"last"` step, or with
            `"none"` every step.
        dropout: Share of features that is set to zero in training.
        is_bidirectional: Whether each block has a second layer, backward in time. Such
            a network has no state.
        is_prenorm: Whether blocks norm their input, or their output.

    Raises:
        ValueError: Unless exactly one of num_inputs and num_tokens is given; for an
            unknown pooling, a number below 1, a dropout that is not in [0, 1), or
            layers of another number of features.

    References:
        Gu, Goel, Re. "Efficiently Modeling Long Sequences with Structured State
        Spaces". 2021. arXiv:2111.00396.
    """

    encoder: eqx.nn.Linear | eqx.nn.Embedding
    blocks: tuple[Block, ...]
    decoder: eqx.nn.Linear
    pooling: Pooling = eqx.field(static=True)

    def __init__(
        self,
        key: Key[Array, ""],
        layer_fn: Callable[[Key[Array, ""]], Layer],
        num_features: int,
        num_outputs: int,
        *,
        num_inputs: int | None = None,
        num_tokens: int | None = None,
        num_layers: int = 4,
        pooling: Pooling = "mean",
        dropout: float = 0.0,
        is_bidirectional: bool = False,
        is_prenorm: bool = True,
    ):
        self.pooling = checks.choice("pooling", pooling, get_args(Pooling))
        if (num_inputs is None) == (num_tokens is None):
            raise ValueError(
                "A Stack takes `num_inputs` or `num_tokens`, and not both."
            )
        checks.within("dropout", dropout, 0, 1, ends="[)")
        num_features = checks.count("num_features", num_features)
        num_outputs = checks.count("num_outputs", num_outputs)
        num_layers = checks.count("num_layers", num_layers)
        encoder_key, decoder_key, *keys = jr.split(key, 2 + num_layers)
        if num_inputs is not None:
            num_inputs = checks.count("num_inputs", num_inputs)
            self.encoder = eqx.nn.Linear(num_inputs, num_features, key=encoder_key)
        if num_tokens is not None:
            num_tokens = checks.count("num_tokens", num_tokens)
            self.encoder = eqx.nn.Embedding(num_tokens, num_features, key=encoder_key)

        def block(key):
            forward_key, backward_key, gate_key = jr.split(key, 3)
            return Block(
                eqx.nn.LayerNorm(num_features),
                layer_fn(forward_key),
                layer_fn(backward_key) if is_bidirectional else None,
                eqx.nn.Linear(num_features, 2 * num_features, key=gate_key),
                dropout,
                is_prenorm,
            )

        self.blocks = tuple(block(key) for key in keys)
        for made in self.blocks:
            if made.layer.d.size != num_features:
                raise ValueError(
                    f"`layer_fn` must make layers of {num_features} features, as "
                    f"`num_features` says, got {made.layer.d.size}."
                )
        self.decoder = eqx.nn.Linear(num_features, num_outputs, key=decoder_key)

    def __call__(
        self,
        x: Shaped[Array, "L ..."],
        length: Int[ArrayLike, ""] | None = None,
        *,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "..."]:
        """Outputs for a whole sequence.

        Args:
            x: Tokens (L,), or features (L, num_inputs).
            length: Number of steps that count: those beyond change nothing. None for
                all.
            dt_scale: Number that multiplies all steps: 1/2 for data sampled twice as
                often. With layers that take it (S5), (L,): a factor for every step.
            key: Random key of dropout; None for none of it.

        Returns:
            (num_outputs,); (L, num_outputs) without pooling.

        Raises:
            ValueError: For a length, known while tracing, that is not in 1..L.
        """
        num_steps = x.shape[0]
        if length is not None:
            is_whole = jnp.issubdtype(jnp.result_type(length), jnp.integer)
            if jnp.ndim(length) or not is_whole:
                raise ValueError(f"`length` must be a whole number, got {length!r}.")
            checks.within("length", length, 1, num_steps)
        is_valid = jnp.arange(num_steps) < (num_steps if length is None else length)
        h = jax.vmap(self.encoder)(_masked(x, is_valid))
        keys = (
            [None] * len(self.blocks)
            if key is None
            else jr.split(key, len(self.blocks))
        )
        for block, block_key in zip(self.blocks, keys, strict=True):

            def both_ways(u, block=block):
                # What lies beyond must not flow back into the sequence.
                u = _masked(u, is_valid)
                y = block.layer(u, dt_scale=dt_scale)
                if block.backward is not None:
                    scale = jnp.asarray(dt_scale)
                    scale = scale[::-1] if scale.ndim else scale
                    y = y + block.backward(u[::-1], dt_scale=scale)[::-1]
                return y, None

            h, _ = block.apply(h, both_ways, block_key)
        if self.pooling == "none":
            return jax.vmap(self.decoder)(h)
        last = num_steps - 1 if length is None else length - 1
        if self.pooling == "last":
            return self.decoder(jnp.take(h, last, axis=0))
        return self.decoder(jnp.sum(_masked(h, is_valid), axis=0) / (last + 1))

    def init_state(self) -> StackState:
        """Where every sequence starts.

        Raises:
            ValueError: For a bidirectional network, which has no state.
        """
        if any(block.backward is not None for block in self.blocks):
            raise ValueError(
                "A bidirectional Stack has no state; call it on sequences."
            )
        layers = tuple(block.layer.init_state() for block in self.blocks)
        weight = self.decoder.weight
        return StackState(
            layers,
            jnp.zeros(weight.shape[1], weight.dtype),
            jnp.zeros((), weight.dtype),
        )

    def scan(
        self,
        x: Shaped[Array, "L ..."],
        state: StackState | None = None,
        *,
        resets: Bool[ArrayLike, " L"] | None = None,
        length: Int[ArrayLike, ""] | None = None,
        dt_scale: Hyper | Float[Array, " L"] = 1.0,
    ) -> tuple[Float[Array, "L num_outputs"], StackState]:
        """Outputs at every step, from a state to a state: what `step` gives one by one.

        Args:
            x: Tokens (L,), or features (L, num_inputs).
            state: State before the first step; None for `init_state()`.
            resets: Where true, what came before that step is forgotten, unless it is
                infinite or NaN. None for nowhere.
            length: Number of steps that count; the state stays beyond. None for all.
            dt_scale: Number that multiplies all steps: 1/2 for data sampled twice as
                often. With layers that take it (S5), (L,): a factor for every step.

        Returns:
            `(outputs, last_state)`; with pooling an output is what the sequence up to
            that step would get.

        Raises:
            ValueError: For a bidirectional network; for resets that are not boolean or
                not of L steps; for a length that is known while tracing, not in 0..L.
        """
        state = self.init_state() if state is None else state
        num_steps = x.shape[0]
        check_resets_and_lengths(resets, length, num_steps)
        is_valid = jnp.arange(num_steps) < (num_steps if length is None else length)
        h, layers = jax.vmap(self.encoder)(_masked(x, is_valid)), []
        for block, before in zip(self.blocks, state.layers, strict=True):

            def from_state(u, block=block, before=before):
                return block.layer.scan(
                    u, before, resets=resets, length=length, dt_scale=dt_scale
                )

            h, after = block.apply(h, from_state)
            layers.append(after)
        # Running sums of the features, and of ones: a scan without decay.
        ones = jnp.ones((num_steps, 1), h.dtype)
        summed = jnp.concatenate([_masked(h, is_valid), ones], axis=1)
        start = jnp.append(state.total, state.num_steps)
        (sums, _), (last, _) = kernels.diagonal_scan(
            (jnp.ones_like(start), jnp.zeros_like(start)),
            (summed, jnp.zeros_like(summed)),
            (start, jnp.zeros_like(start)),
            resets=resets,
            lengths=length,
        )
        if self.pooling == "mean":
            h = sums[:, :-1] / jnp.maximum(sums[:, -1:], 1)
        state = StackState(tuple(layers), last[:-1], last[-1])
        return jax.vmap(self.decoder)(h), state

    def step(
        self,
        x: Shaped[Array, "..."],
        state: StackState,
        *,
        dt_scale: Hyper = 1.0,
    ) -> tuple[Float[Array, " num_outputs"], StackState]:
        """One step: the output, and the state after it.

        Args:
            x: A token, or features (num_inputs,).
            state: State before the step; `init_state()` to begin with.
            dt_scale: Number that multiplies the step.
        """
        h, layers = self.encoder(x)[None], []
        for block, before in zip(self.blocks, state.layers, strict=True):

            def one(u, block=block, before=before):
                y, after = block.layer.step(u[0], before, dt_scale=dt_scale)
                return y[None], after

            h, after = block.apply(h, one)
            layers.append(after)
        total, count = state.total + h[0], state.num_steps + 1
        pooled = total / count if self.pooling == "mean" else h[0]
        return self.decoder(pooled), StackState(tuple(layers), total, count)


def _masked(x, is_valid):
    """Zeros in place of what does not count: a NaN there would reach derivatives."""
    return jnp.where(is_valid.reshape(-1, *[1] * (x.ndim - 1)), x, 0)


def adamw(
    learning_rate: Hyper,
    system_learning_rate: Hyper = 1e-3,
    *,
    weight_decay: Hyper = 0.01,
    schedule: optax.Schedule = lambda step: 1.0,
) -> optax.GradientTransformation:
    """Adam for the parameters of systems, AdamW for all others.

    Args:
        learning_rate: Learning rate of parameters outside of systems.
        system_learning_rate: Learning rate of eigenvalues, input weights and steps,
            which do not decay.
        weight_decay: Weight decay of parameters outside of systems.
        schedule: What both rates are multiplied by at a step: `schedule(step)`.

    References:
        Loshchilov, Hutter. "Decoupled Weight Decay Regularization". 2017.
        arXiv:1711.05101.
    """

    def scaled(rate):
        return lambda step: rate * schedule(step)

    return optax.multi_transform(
        {
            "ssm": optax.adam(scaled(system_learning_rate)),
            "other": optax.adamw(scaled(learning_rate), weight_decay=weight_decay),
        },
        param_labels,
    )


def param_labels(params: PyTree) -> PyTree:
    """`"ssm"` for the parameters of systems that want a small step, `"other"` else.

    For `optax.multi_transform`, as in `adamw`: eigenvalues, input weights and steps are
    trained with a smaller learning rate and without weight decay.

    Args:
        params: A model, or what `eqx.filter` leaves of it.

    Returns:
        Labels in the places of the leaves.
    """
    small = ("log_decay", "frequency", "b", "log_dt")

    def label(node):
        names = jax.tree.map(lambda _: "other", node)
        if not isinstance(node, Layer):
            return names
        present = [name for name in small if getattr(node, name) is not None]
        return eqx.tree_at(
            lambda layer: [getattr(layer, name) for name in present],
            names,
            ["ssm"] * len(present),
        )

    return jax.tree.map(label, params, is_leaf=lambda node: isinstance(node, Layer))
