"""What is refused, and how degrees are chosen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlr import attention
from tests.attention._arrays import draw


def call(**changes):
    query, keys, values = draw((5, 6))
    given = {"query": query, "keys": keys, "values": values} | changes
    return attention.tensor_attention(**given)


def traced(**options):
    arrays = draw((5, 6), size=0.4)
    return jax.jit(lambda *a: attention.tensor_attention(*a, **options))(*arrays)


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda: call(keys=draw((5,))[1]), "one array a mode, got 1 and 2"),
        (
            lambda: call(query=jnp.ones((2, 7, 2, 3))),
            r"`keys\[0\]` must have shape \(2, S",
        ),
        (lambda: call(query=jnp.ones((2, 7, 3, 4))), "K that divides 3"),
        (lambda: call(query=jnp.ones((7, 2, 4))), r"\(B, T, N, d\), got float32 of"),
        (lambda: call(values=draw((5, 7))[2]), r"`values\[1\]` must have one shape"),
        (lambda: call(mask=jnp.ones((1, 1, 7, 5), bool)), r"axes of \(2, 2, 7, 5, 6\)"),
        (lambda: call(mask=jnp.ones((1, 1, 7, 5, 6))), "`mask` must be boolean"),
        (lambda: call(local_window_size=-1), "`local_window_size` must be an integer"),
        (lambda: call(local_window_size=(1,)), "each of the 2 modes"),
        (
            lambda: call(local_window_size=((2, 2.5), 1), is_causal=True),
            "`local_window_size` must be an integer >= 0, got 2.5",
        ),
        (
            lambda: call(key_lengths=jnp.array([6, 0])),
            r"`key_lengths` must be in \[0, 5\]",
        ),
        (lambda: call(key_lengths=(None,)), "an entry for each of the 2 modes"),
        (lambda: call(implementation="fast"), "Unknown implementation 'fast'"),
        (
            lambda: call(scale=jnp.ones(4)),
            r"`scale` must be a number, got shape \(4,\)",
        ),
        (lambda: call(local_window_size=2.0), "`local_window_size` must be an integer"),
        (lambda: call(query=jnp.ones((2, 0, 2, 4))), "`query` must not be empty"),
        (
            lambda: call(keys=tuple(x[:, :, :0] for x in draw((5, 6))[1])),
            r"`keys\[0\]` and `values\[0\]` must have one shape",
        ),
        (
            lambda: call(
                keys=(jnp.ones((2, 5, 2, 4), jnp.bfloat16),),
                values=(jnp.ones((2, 5, 2, 4), jnp.bfloat16),),
            ),
            r"`keys\[0\]` must be float32 as `query`, got bfloat16",
        ),
        (lambda: call(degree=-1), "`degree` must be an integer >= 0, got -1"),
        (lambda: call(degree=4.0), "`degree` must be an integer >= 0, got 4.0"),
        (
            lambda: call(implementation="xla", error_bound=0.1),
            "`error_bound` is of polynomials, got 0.1 with `implementation` 'xla'",
        ),
        (
            lambda: call(entry_bound=2.0),
            "`entry_bound` is of polynomials, got 2.0 with `implementation` None",
        ),
        (
            lambda: jax.jit(lambda bound: call(error_bound=bound))(0.1),
            "`error_bound` must be known while tracing, got .*Trace",
        ),
        (
            lambda: call(entry_bound=-1.0, implementation="polynomial"),
            "`entry_bound` must be positive and finite, got -1.0",
        ),
    ],
)
def test_misuse(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use()


@pytest.mark.misuse
@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (
            lambda: call(
                implementation="polynomial", mask=jnp.ones((1, 1, 7, 5, 1), bool)
            ),
            "`mask` must be of queries or one mode's positions alone",
        ),
        (
            lambda: call(
                implementation="polynomial", is_ordered=True, local_window_size=2
            ),
            "`is_ordered` with `local_window_size` is not linear",
        ),
        (
            lambda: call(implementation="polynomial", degree=-1),
            "`degree` must be an int",
        ),
        (
            lambda: call(implementation="polynomial", degree="auto"),
            "`degree='auto'` needs `error_bound`",
        ),
        (
            lambda: call(implementation="polynomial", error_bound=1e-3),
            r"`error_bound` 0\.001 is not certain",
        ),
        (
            lambda: call(implementation="polynomial", entry_bound=0.1),
            "beyond `entry_bound` 0.1",
        ),
        (
            lambda: call(implementation="polynomial", scale=0.0, entry_bound=0.1),
            "beyond `entry_bound` 0.1",
        ),
        (
            lambda: call(
                query=jnp.full((2, 7, 2, 4), jnp.nan),
                implementation="polynomial",
                degree="auto",
                error_bound=0.1,
            ),
            "`error_bound` 0.1 is not certain: scores up to nan",
        ),
        (
            lambda: call(implementation="polynomial", error_bound=1e-8),
            "`error_bound` 1e-08 is not certain.* of which rounding is",
        ),
        (
            lambda: attention.tensor_attention(
                *draw((5, 6), features=64), implementation="polynomial"
            ),
            "`degree` 4 of 64 features a head makes 814385 monomials",
        ),
        (
            lambda: traced(implementation="polynomial", error_bound=1e-3),
            "`error_bound` needs `entry_bound` and a known `scale` .* grad or vmap",
        ),
        (
            lambda: call(
                query=-9 * jnp.ones((2, 7, 2, 4)),
                keys=(jnp.ones((2, 5, 2, 4)), jnp.ones((2, 6, 2, 4))),
                implementation="polynomial",
                degree=3,
            ),
            "odd `degree` 3 gave a sum of shares that is not positive",
        ),
    ],
)
def test_misuse_of_polynomials(use, sentence):
    with pytest.raises(ValueError, match=sentence):
        use()


@pytest.mark.slow
def test_degrees_are_chosen_and_certain(x64):
    arrays = draw((5, 6), size=0.3)
    exact = attention.tensor_attention(*arrays)
    largest = np.abs(np.einsum("bjnd,bknd->bnjkd", *arrays[2])).max()
    for bound in (1e-2, 1e-6):
        out = attention.tensor_attention(
            *arrays, implementation="polynomial", degree="auto", error_bound=bound
        )
        error = np.abs(out - exact).max()
        assert 0 < error <= bound * largest
    same = attention.tensor_attention(*draw((5, 6)), error_bound=1e-3)
    np.testing.assert_array_equal(same, attention.tensor_attention(*draw((5, 6))))
    # Nothing in float32 is certain beyond its rounding: the exact form.
    narrow = jax.tree.map(lambda x: x.astype(jnp.float32), arrays)
    out = attention.tensor_attention(*narrow, degree="auto", error_bound=1e-9)
    np.testing.assert_array_equal(out, attention.tensor_attention(*narrow))
    # While tracing, from the bound on entries.
    small = jax.tree.map(lambda x: jnp.clip(x, -0.5, 0.5), arrays)
    out = jax.jit(
        lambda *a: attention.tensor_attention(
            *a, degree="auto", entry_bound=0.5, error_bound=1e-3
        )
    )(*small)
    error = np.abs(out - attention.tensor_attention(*small)).max()
    assert 1e-12 < error <= 1e-3


def test_the_bound_of_traced_arrays_is_a_value(x64):
    query, keys, values = draw((5, 6), size=0.3)

    @jax.jit
    def call(query, keys, values):
        most = attention.score_bound(query / 2, keys)
        out = attention.tensor_attention(
            query, keys, values, scale=0.5, implementation="polynomial"
        )
        return out, attention.certified_error(4, most)

    out, certificate = call(query, keys, values)
    exact = attention.tensor_attention(query, keys, values, scale=0.5)
    largest = np.abs(np.einsum("bjnd,bknd->bnjkd", *values)).max()
    error = np.abs(out - exact).max() / largest
    assert 0 < error <= certificate < np.inf


def test_what_is_taken_for_arrays_and_degrees():
    query, keys, values = draw((5, 6), size=0.4)
    options = {"implementation": "polynomial", "degree": np.int64(4)}
    found = attention.tensor_attention(
        *jax.tree.map(lambda x: np.asarray(x).tolist(), (query, keys, values)),
        **options,
    )
    want = attention.tensor_attention(query, keys, values, implementation="polynomial")
    np.testing.assert_array_equal(found, want)
