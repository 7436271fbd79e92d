"""Digests that directories of format 1 hold: of a trace's text and its constants."""

import hashlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from jaxlr.lab import fingerprint


def is_of_text(closed: Any, parts: tuple[Any, ...], digest: str) -> bool:
    """Whether a digest is one of format 1: of a trace's text, in colors or without."""
    if digest.startswith(fingerprint.KIND):
        return False
    found = []
    for const in map(jnp.asarray, fingerprint.consts(closed)):
        is_key = jnp.issubdtype(const.dtype, jax.dtypes.prng_key)
        array = np.asarray(jr.key_data(const) if is_key else const)
        content = np.ascontiguousarray(array).tobytes()
        found.append(f"{array.dtype} {array.shape}".encode() + content)
    for use_color in (False, True):
        shown = closed.jaxpr.pretty_print(use_color=use_color)
        text = re.sub(r" at 0x[0-9a-f]+", "", f"{shown} {parts}")
        sha = hashlib.sha256(b"".join([text.encode(), *found]))
        if sha.hexdigest()[:16] == digest:
            return True
    return False
