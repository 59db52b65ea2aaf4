"""JAX arrays: immutable memory, shared read-only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from comparison import assert_independent, assert_same, assert_shares, tensor_holding

import ndtorch as nd

jax: Any = pytest.importorskip("jax", reason="JAX is not installed")
jnp: Any = jax.numpy

DTYPES = [
    np.bool_,
    np.uint8,
    np.uint16,
    np.uint32,
    np.int8,
    np.int16,
    np.int32,
    np.float16,
    np.float32,
    np.complex64,
    ml_dtypes.bfloat16,
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e8m0fnu,
]


def some(dtype: Any, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 2 if dtype is np.bool_ else 9, shape)
    return values.astype(np.float32).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 4), (), (0, 2)])
def test_array_of_every_dtype_comes_out_copied_with_its_values(dtype: Any, shape: tuple[int, ...]) -> None:
    values = some(dtype, shape)
    array = jnp.asarray(values)
    tensor = nd.to_torch(array)
    assert_same(tensor, tensor_holding(values))
    plan = nd.explain(array)
    if values.size:
        assert (plan.reason, plan.nbytes_copied) == ("it is read-only", values.nbytes)
        assert_independent(tensor, np.asarray(array))
    else:
        assert plan.shares


@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_is_shared_at_the_callers_word_alone(dtype: Any) -> None:
    array = jnp.asarray(some(dtype))
    assert nd.explain(array, readonly="share").shares
    tensor = nd.to_torch(array, readonly="share")
    assert tensor.data_ptr() == array.unsafe_buffer_pointer()
    assert_same(tensor, tensor_holding(np.asarray(array)))
    assert nd.shares_memory(array, tensor)
    with pytest.raises(nd.CopyRequiredError, match="it is read-only"):
        nd.to_torch(array, copy=False)
    with pytest.raises(nd.CopyRequiredError, match="it is read-only"):
        nd.to_torch(array, readonly="error")


def test_note_says_that_jax_arrays_are_immutable() -> None:
    assert "JAX arrays are immutable" in nd.explain(jnp.zeros(3)).notes[0]


def test_array_for_numpy_is_a_read_only_view() -> None:
    array = jnp.arange(6.0).reshape(2, 3)
    result = nd.to_numpy(array)
    assert not result.flags.writeable
    assert result.__array_interface__["data"][0] == array.unsafe_buffer_pointer()
    assert_same(nd.to_numpy(array, copy=True), np.arange(6, dtype=np.float32).reshape(2, 3))
    assert nd.to_numpy(array, copy=True).flags.writeable


def test_transposed_array_keeps_its_shape_and_values() -> None:
    array = jnp.arange(6.0).reshape(2, 3).T
    assert_same(nd.to_torch(array), torch.arange(6, dtype=torch.float32).reshape(2, 3).T)


def test_shared_tensor_outlives_the_array() -> None:
    array = jnp.arange(1000.0)
    tensor = nd.to_torch(array, readonly="share")
    array.delete()
    del array
    others = [jnp.full(1000, i) for i in range(50)]
    assert_same(tensor, torch.arange(1000, dtype=torch.float32))
    assert len(others) == 50


def test_shared_tensor_is_not_overwritten_by_a_donation() -> None:
    array = jnp.arange(1000.0)
    tensor = nd.to_torch(array, readonly="share")
    result = jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    assert_same(tensor, torch.arange(1000, dtype=torch.float32))
    assert float(result[0]) == 1


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"float_dtype": "float16"}, {"device": "cpu", "copy": True}])
def test_options_reach_the_values(options: dict[str, Any]) -> None:
    array = jnp.arange(4.0)
    expected = torch.arange(4.0).to(getattr(torch, options.get("dtype", options.get("float_dtype", "float32"))))
    assert_same(nd.to_torch(array, **options), expected)


def test_arrays_inside_structures_are_converted_leaf_by_leaf() -> None:
    tree = {"params": [jnp.ones(2), jnp.zeros((1, 2))], "step": 3}
    assert_same(nd.to_torch(tree), {"params": [torch.ones(2), torch.zeros(1, 2)], "step": 3})
    assert not nd.explain(tree).shares
    back = nd.to_numpy(nd.to_torch(tree), like=tree)
    assert isinstance(back["params"][0], jax.Array)


# --- what is refused


def test_deleted_array_is_refused() -> None:
    array = jnp.arange(3.0)
    array.delete()
    with pytest.raises(nd.UnsupportedTypeError, match="deleted or donated") as caught:
        nd.to_torch(array)
    assert "jax.numpy.copy" in caught.value.hint
    assert nd.explain(array).error is not None
    with pytest.raises(nd.UnsupportedTypeError, match="cannot serve as an example"):
        nd.to_numpy(torch.zeros(3), like=array)


def test_donated_array_is_refused() -> None:
    array = jnp.arange(3.0)
    jax.jit(lambda x: x + 1, donate_argnums=0)(array)
    with pytest.raises(nd.UnsupportedTypeError, match="deleted or donated"):
        nd.to_torch(array)


def test_key_of_random_numbers_is_refused_with_the_call_that_gives_its_integers() -> None:
    key = jax.random.key(0)
    with pytest.raises(nd.UnsupportedTypeError, match="keys of random numbers") as caught:
        nd.to_torch({"key": key})
    assert caught.value.hint.startswith("jax.random.key_data")
    assert caught.value.path == "['key']"
    assert_same(nd.to_torch(jax.random.key_data(key)), tensor_holding(np.asarray(jax.random.key_data(key))))


@pytest.mark.parametrize("transform", ["jit", "grad", "vmap"])
def test_tracer_is_refused(transform: str) -> None:
    def function(x: Any) -> Any:
        assert nd.explain(x).error is not None
        return nd.to_torch(x)

    with pytest.raises(nd.UnsupportedTypeError, match="Tracer stands for an array") as caught:
        getattr(jax, transform)(function)(jnp.ones(3) if transform != "grad" else 1.0)
    assert "outside of jit" in caught.value.hint


@pytest.mark.parametrize("dtype", ["int4", "uint4", "float4_e2m1fn", "float8_e4m3b11fnuz"])
def test_dtype_that_torch_does_not_have_is_refused(dtype: str) -> None:
    with pytest.raises(nd.UnsupportedTypeError, match="torch has no"):
        nd.to_torch(jnp.zeros(3, dtype=dtype))


SHARDED = """
import jax, numpy as np, torch, ndtorch as nd
from jax.sharding import NamedSharding, PartitionSpec
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("x",))
def over(spec):
    return jax.device_put(np.arange(4.0, dtype=np.float32), NamedSharding(mesh, spec))
print(nd.explain(over(PartitionSpec("x"))).error)
assert torch.equal(nd.to_torch(over(PartitionSpec())), torch.arange(4.0)), "the same on every device"
second = jax.device_put(np.ones(3, np.float32), jax.devices()[1])
back = nd.to_numpy(nd.to_torch(second), like=second)
assert back.devices() == second.devices() and (back == second).all()
back = nd.to_numpy(torch.arange(4.0), like=over(PartitionSpec("x")))
assert len(back.devices()) == 2 and (np.asarray(back) == np.arange(4)).all()
"""


def test_sharded_array_is_refused_and_a_replicated_one_is_not() -> None:
    done = subprocess.run([sys.executable, "-c", SHARDED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "it is sharded over 2 devices" in done.stdout
    assert "jax.device_get" in done.stdout


def test_array_on_another_device_is_asked_through_dlpack(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("ndtorch.foreign.jax.from_dlpack", lambda array, name: asked.append(name))
    monkeypatch.setattr("ndtorch.foreign.jax._platform", lambda array: "gpu")
    nd.explain(jnp.zeros(3))
    assert asked == ["jax"]


@pytest.mark.cuda
def test_array_on_a_gpu_is_shared_with_torch_there() -> None:
    if not any(device.platform == "gpu" for device in jax.devices()):
        pytest.skip("this JAX has no GPU")
    array = jnp.arange(4.0)
    assert nd.to_torch(array, readonly="share").data_ptr() == array.unsafe_buffer_pointer()


# --- the way back


@pytest.mark.parametrize("dtype", DTYPES)
def test_example_gives_a_jax_array_of_the_same_dtype_and_values(dtype: Any) -> None:
    array = jnp.asarray(some(dtype))
    back = nd.to_numpy(nd.to_torch(array), like=array)
    assert isinstance(back, jax.Array)
    assert back.dtype == array.dtype
    assert_same(np.asarray(back), np.asarray(array))


@pytest.mark.parametrize("offset", [0, 4])
def test_write_to_the_tensor_never_changes_the_immutable_array(offset: int) -> None:
    raw = np.zeros(4096, np.uint8)
    start = -raw.__array_interface__["data"][0] % 64 + offset  # JAX shares memory that is aligned to 64 bytes
    array = raw[start : start + 2048].view(np.float32)
    back = nd.to_numpy(torch.from_numpy(array), like=jnp.zeros(1))
    array[:] = 7
    assert float(back.sum()) == 0


def test_example_may_have_another_shape() -> None:
    back = nd.to_numpy(torch.ones(5, dtype=torch.float64), like=jnp.zeros((2, 2)))
    assert (back.shape, back.dtype) == ((5,), np.float32)


def test_plain_torch_tensor_shares_memory_that_jax_takes_for_immutable() -> None:
    array = jnp.zeros(3)
    torch.from_dlpack(array)[0] = 5
    assert float(array[0]) == 5, "the trap that a copy by default avoids"
    assert_shares(nd.to_torch(array, readonly="share"), torch.from_dlpack(array))
