"""What every kernel checks: the implementation asked for, pairs of real arrays."""

from typing import get_args, Literal, TypeAlias

from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxlr.core import checks


Implementation: TypeAlias = Literal["xla", "pallas", "pallas_interpret"]
Pair: TypeAlias = tuple[Float[Array, "..."], Float[Array, "..."]]

LANE, SUBLANE = 128, 8  # A float32 vector register of a TPU is 8 by 128.
_VMEM_MOST = 100 * 2**20  # v5e and v6e have 128 MiB; the compiler needs some itself.
_VMEM_SPARE = 16 * 2**20


def pick(implementation: Implementation | None) -> Implementation:
    """The implementation itself; None is `"xla"`.

    Raises:
        ValueError: If it is unknown.
    """
    if implementation is None:
        return "xla"  # A kernel has to win on a measured TPU first.
    return checks.choice("implementation", implementation, get_args(Implementation))


def check_pairs(implementation: Implementation, **pairs: Pair) -> list[Pair]:
    """The named pairs as arrays of one type, which is float32 for a kernel.

    Raises:
        ValueError: If one is not a pair of real floating-point arrays.
    """
    for name, pair in pairs.items():
        kinds = [jnp.result_type(part) for part in pair] if _is_pair(pair) else []
        if len(kinds) != 2 or not all(jnp.issubdtype(k, jnp.floating) for k in kinds):
            got = kinds or getattr(pair, "dtype", type(pair).__name__)
            raise ValueError(
                f"`{name}` must be a pair (re, im) of real floating-point arrays, got "
                f"{got}; of a complex array z, pass (z.real, z.imag)."
            )
        for part in pair:
            check_float32(implementation, name, part)
    dtype = jnp.result_type(*(part for pair in pairs.values() for part in pair))
    return [
        (jnp.asarray(re, dtype), jnp.asarray(im, dtype)) for re, im in pairs.values()
    ]


def check_float32(implementation: Implementation, name: str, value: ArrayLike) -> None:
    """A kernel takes float32 alone.

    Raises:
        ValueError: If `value` is of another type, and a kernel is asked for.
    """
    dtype = jnp.result_type(value)
    if implementation != "xla" and dtype != jnp.float32:
        raise ValueError(f"The kernel's `{name}` must be float32, got {dtype}.")


def vmem_params(num_bytes: int, what: str, remedy: str) -> pltpu.CompilerParams:
    """What lets a TPU's kernel hold so many bytes of VMEM.

    Args:
        num_bytes: Number of bytes that it holds.
        what: What needs them, for the error: "`chunk` 64 needs".
        remedy: What to do about it: "use a smaller one".

    Raises:
        ValueError: If that is more than a kernel may take.
    """
    if num_bytes > _VMEM_MOST:
        raise ValueError(
            f"{what} {num_bytes / 2**20:.0f} MiB of VMEM, of {_VMEM_MOST // 2**20} "
            f"that the kernel may take; {remedy}."
        )
    return pltpu.CompilerParams(vmem_limit_bytes=num_bytes + _VMEM_SPARE)


def _is_pair(pair):
    return isinstance(pair, tuple | list) and len(pair) == 2


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is no smaller than `size`."""
    return -(-size // multiple) * multiple


def complex_product(a: Pair, b: Pair) -> Pair:
    """The complex product of two pairs, entry by entry."""
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]
