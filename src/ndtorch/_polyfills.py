"""What torch.compile traces in the place of `to_torch` and `to_numpy`. Only `_compile` imports this.

Inside a compiled function an array is a tensor in disguise, whose flags, strides and dtype cannot be asked for. The
functions here take the plain cases, whose result is certain, and leave any other call to the builtins, outside the
graph. They are traced, never run; `_look_at_array` is what runs, while its caller is traced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch._dynamo.comptime import ComptimeContext, comptime
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import AttrSource
from torch._dynamo.variables.lazy import LazyVariableTracker
from torch._dynamo.variables.torch_function import torch_function_mode_stack_state_mgr

from . import _convert, _trace

_REASON = "ndtorch needs the arrays or tensors themselves for this call"
_to_torch_outside = torch.compiler.disable(_convert.to_torch, reason=_REASON)  # type: ignore[no-untyped-call]
_to_numpy_outside = torch.compiler.disable(_convert.to_numpy, reason=_REASON)  # type: ignore[no-untyped-call]

_FLOATS: dict[Any, torch.dtype] = {  # those to which torch and NumPy round alike
    **dict.fromkeys(("float32", np.float32, torch.float32), torch.float32),
    **dict.fromkeys(("float64", np.float64, torch.float64), torch.float64),
}
_NUMBERS = (bool, int, float, complex)
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_CASTABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64, *_INTEGERS)
_IN_NUMPY = (torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128, *_INTEGERS)

_VMAP = torch._C._functorch.TransformType.Vmap

_Leaf = Callable[[Any, dict[str, Any]], Any]


def _to_torch(
    source: Any,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    casting: str = "same_kind",
    readonly: str = "copy",
    masked: str = "error",
) -> Any:
    options = {
        "dtype": dtype,
        "float_dtype": float_dtype,
        "device": device,
        "copy": copy,
        "casting": casting,
        "readonly": readonly,
        "masked": masked,
    }
    _look_through(source)
    if _trace._watching > 0:  # which dynamo asks anew before each run of the graph
        return _to_torch_outside(source, **options)
    rare = device is not None or casting != "same_kind" or readonly != "copy" or masked != "error"
    if rare or not (copy is None or copy is True) or (dtype is not None and float_dtype is not None):
        return _to_torch_outside(source, **options)
    return _each(source, _tensor_of, options)


def _to_numpy(
    source: Any,
    /,
    *,
    dtype: Any = None,
    float_dtype: Any = None,
    copy: bool | None = None,
    casting: str = "same_kind",
    like: Any = None,
) -> Any:
    options = {"dtype": dtype, "float_dtype": float_dtype, "copy": copy, "casting": casting, "like": like}
    _look_through(source)
    _look_through(like)
    if _trace._watching > 0:
        return _to_numpy_outside(source, **options)
    rare = casting != "same_kind" or dtype is not None or float_dtype is not None or like is not None
    if rare or not (copy is None or copy is True):
        return _to_numpy_outside(source, **options)
    return _each(source, _array_of, options)


def _look_through(source: Any) -> None:
    comptime(_look_at_array)
    if type(source) is dict:
        for part in source.values():
            _look_through(part)
    elif type(source) in (list, tuple):
        for part in source:
            _look_through(part)


def _each(source: Any, convert: _Leaf, options: dict[str, Any]) -> Any:
    if type(source) is dict:
        return {key: part if _passes_through(part) else _each(part, convert, options) for key, part in source.items()}
    if _is_list_of_arrays(source):
        parts = [_each(part, convert, options) for part in source]
        return parts if type(source) is list else tuple(parts)
    return convert(source, options)


def _passes_through(source: Any) -> bool:
    return source is None or type(source) in (str, bytes, *_NUMBERS)


def _is_list_of_arrays(source: Any) -> bool:
    """A list with a number in it may be one array: that is for the builtin to find out."""
    if type(source) not in (list, tuple) or not source:
        return False
    return all(_is_part(part) for part in source)


def _is_part(source: Any) -> bool:
    if isinstance(source, np.ndarray):
        if source.ndim == 0:
            comptime(_leave_scalars)
        return True
    return type(source) in (torch.Tensor, torch.nn.Parameter, dict) or _is_list_of_arrays(source)


def _is_numbers(source: Any) -> bool:
    if type(source) in (list, tuple) and source:
        return all(type(item) in _NUMBERS for item in source)
    return type(source) in _NUMBERS


def _tensor_of(source: Any, options: dict[str, Any]) -> Any:
    if _is_numbers(source) and options["dtype"] is None and options["float_dtype"] is None:
        return torch.tensor(source, device="cpu")
    is_array = isinstance(source, np.ndarray)
    if not is_array and type(source) not in (torch.Tensor, torch.nn.Parameter):
        return _to_torch_outside(source, **options)
    # With its device given, since as_tensor obeys ``with torch.device`` and an array stays on the CPU.
    tensor = torch.as_tensor(source, device="cpu") if is_array else source
    memory_format = torch.contiguous_format if is_array else torch.preserve_format
    asked = options["float_dtype"] if options["dtype"] is None else options["dtype"]
    if asked is not None:
        wanted = _FLOATS.get(asked)
        if wanted is None or tensor.dtype not in _CASTABLE:
            return _to_torch_outside(source, **options)
        if tensor.dtype != wanted and (options["dtype"] is not None or tensor.is_floating_point()):
            return tensor.to(wanted, memory_format=memory_format)
    return tensor.clone(memory_format=memory_format) if options["copy"] else tensor


def _array_of(source: Any, options: dict[str, Any]) -> Any:
    if isinstance(source, np.ndarray) and not options["copy"]:
        return source
    if type(source) not in (torch.Tensor, torch.nn.Parameter):
        return _to_numpy_outside(source, **options)
    if source.layout != torch.strided or source.device.type != "cpu" or source.dtype not in _IN_NUMPY:
        return _to_numpy_outside(source, **options)
    comptime(_look_at_transforms)
    if options["copy"]:
        return source.detach().clone(memory_format=torch.contiguous_format).numpy()
    if source.requires_grad or 0 in source.stride():
        comptime(_protect)
    return source.resolve_conj().resolve_neg().numpy()


# ---- while a call is traced ----


def _look_at_array(context: ComptimeContext) -> None:
    """Let an array from outside into the graph where that is sound, and see to it that it stays so.

    Dynamo makes a read-only array writable as it takes hold of it, for good (pytorch#112524), and does so before a
    graph break too. Hence the look before it does, and a function that is left alone where there is such an array.
    """
    translator: Any = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    variable = translator.symbolic_locals["source"]
    if variable.source is None:  # made inside the graph
        return
    is_new = type(variable) is LazyVariableTracker and not variable.is_realized()
    try:
        value = variable.peek_value() if is_new else _value_in_graph(variable, translator)
    except Exception as error:  # dynamo keeps its books elsewhere
        context.graph_break(f"ndtorch cannot look at the array: {error!r}")
    if isinstance(value, np.generic):
        context.graph_break("ndtorch takes NumPy scalars outside the graph")
    if type(value) is not np.ndarray:
        return
    why = _why_not_in_graph(value, translator, is_new)
    if why:
        _leave_alone(context, why)
    flag = AttrSource(AttrSource(variable.source, "flags"), "writeable")
    install_guard(flag.make_guard(GuardBuilder.CONSTANT_MATCH))


def _value_in_graph(variable: Any, translator: Any) -> Any:
    root = translator.output.root_tx
    value = eval(variable.source.name, {"G": root.f_globals, "L": root.f_locals})
    if type(value) is np.ndarray:
        example = variable.as_proxy().node.meta["grapharg"].example
        if example.untyped_storage().resizable():  # a clone: dynamo found the array read-only and changed that
            value.flags.writeable = False
    return value


def _why_not_in_graph(array: np.ndarray[Any, Any], translator: Any, is_new: bool) -> str:
    if not array.flags.writeable:
        return "ndtorch copies read-only arrays, which dynamo would make writable"
    if translator.export:
        return "torch.export(strict=True) would lose the values of the array: strict=False keeps them"
    with torch_function_mode_stack_state_mgr.temp_restore_stack():
        device = torch.get_default_device()
    if device.type != "cpu":
        return f"dynamo takes arrays to the default device, {device}"
    if is_new and _is_differentiated():
        return "dynamo cannot take arrays from outside in grad and the like: convert before"
    return ""


def _is_differentiated() -> bool:
    return any(transform.key() != _VMAP for transform in torch._C._functorch.get_interpreter_stack() or ())


def _look_at_transforms(context: ComptimeContext) -> None:
    if _is_differentiated():
        _leave_alone(context, "an array has no place in grad and the like, though dynamo would go through it")


def _protect(context: ComptimeContext) -> None:
    _leave_alone(context, "ndtorch makes a read-only array here, which dynamo would make writable")


def _leave_scalars(context: ComptimeContext) -> None:
    _leave_alone(context, "a list of NumPy scalars is one array for ndtorch, and dynamo makes arrays of the scalars")


def _leave_alone(context: ComptimeContext, why: str) -> None:
    """Have the function run as it stands; an error where the caller insists on a graph."""
    translator: Any = context._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    while translator is not None:
        translator.should_compile_partial_graph = _never
        translator = getattr(translator, "parent", None)
    context.graph_break(why)  # a break where none can be is the end of the whole graph


def _never() -> bool:
    return False


torch.compiler.substitute_in_graph(_convert.to_torch)(_to_torch)
torch.compiler.substitute_in_graph(_convert.to_numpy)(_to_numpy)
