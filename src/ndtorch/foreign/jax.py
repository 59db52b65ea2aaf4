"""JAX arrays: immutable memory of one device, shared read-only with the CPU's."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from .forms import Foreign, Inner, Memory, Refused, Restore, Unread
from .protocols import from_dlpack

AnyArray = npt.NDArray[Any]

_NOTE = "JAX arrays are immutable: JAX may share their memory and does not expect it to change"


def take(source: Any, inner: Inner) -> Foreign:
    """Take a concrete `jax.Array`: on the CPU its own memory, which must not be written."""
    jax: Any = sys.modules["jax"]
    refused = _refused(source, jax)
    if refused is not None:
        return refused
    one = source if len(source.devices()) == 1 else source.addressable_data(0)  # every device has all of it
    if _platform(one) != "cpu":
        return from_dlpack(one, "jax")
    array = np.asarray(one)
    if array.size and array.__array_interface__["data"][0] != one.unsafe_buffer_pointer():
        # JAX keeps the copy it made for the next one who asks, so it must not be ours.
        return Unread("jax", array.dtype, array.shape, "JAX packs its values", array.copy)
    return Memory("jax", array, note=_NOTE)


def _platform(source: Any) -> str:
    return str(next(iter(source.devices())).platform)


def _refused(source: Any, jax: Any) -> Refused | None:
    text, shape = str(source.dtype), tuple(source.shape)
    if jax.dtypes.issubdtype(source.dtype, jax.dtypes.prng_key):
        return Refused("jax", text, shape, "it holds keys of random numbers", "jax.random.key_data(key) gives integers")
    if source.is_deleted():
        fact = "its memory was deleted or donated to a jitted function"
        return Refused("jax", text, shape, fact, "jax.numpy.copy(array) before that gives an array that stays")
    if len(source.devices()) > 1 and not source.is_fully_replicated:
        fact = f"it is sharded over {len(source.devices())} devices"
        hint = "jax.device_get(array) gathers it, array.addressable_shards has the parts"
        return Refused("jax", text, shape, fact, hint)
    return None


def take_tracer(source: Any, inner: Inner) -> Foreign:
    """Refuse what stands for an array inside jit, grad or vmap."""
    fact = f"a {type(source).__name__} stands for an array inside a transformed function, and has no values yet"
    hint = "convert outside of jit, grad and vmap, or within jax.pure_callback"
    aval = source.aval
    return Refused("jax", str(getattr(aval, "dtype", aval)), tuple(getattr(aval, "shape", ())), fact, hint)


def restore(source: Any, like: Any, inner: Restore) -> Any:
    """Give an array the class, dtype and device of a JAX array.

    Memory:
        Always copied: JAX takes memory for immutable, and a tensor's can be written.
    """
    jax: Any = sys.modules["jax"]
    array = inner(source, np.broadcast_to(np.empty((), like.dtype), like.shape))
    place = next(iter(like.devices())) if len(like.devices()) == 1 else like.sharding
    return jax.device_put(np.array(array), place)  # may_alias=False shares it all the same


def wrap(array: AnyArray, like: Any) -> Any:
    """Make a JAX array of an array, on the device of the example."""
    return restore(array, like, lambda source, example: source)
