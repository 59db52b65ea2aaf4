// Tensors over memory of our own: aligned, on huge pages where large, handed to torch as it is.
#pragma once

#include <Python.h>

#include <cstdint>

#include "dtypes.h"
#include "recycler.h"

namespace ndtorch {

// An uninitialised tensor, dense in row-major order, and where its memory is: from a recycler where
// there is one. nullptr with no exception set where the bridge is off, the shape overflows or there
// is no memory.
PyObject* fresh_tensor(int ndim, const int64_t* shape, Dtype dtype, void** data,
                       Recycler* recycler = nullptr);

// The tensor of a block, which is its own or released; `strides` are in items. nullptr as above.
PyObject* wrap_block(const Lease& lease, int ndim, const int64_t* shape, const int64_t* strides,
                     Dtype dtype);

// A copy of a plain array as `to_torch` makes it, cast to a torch.dtype unless that is None.
// nullptr with no exception set where the array or the cast is not plain, so Python's to decide.
PyObject* copy_plain_array(PyObject* array, PyObject* torch_dtype);

// A list or tuple of plain arrays of one shape and dtype, stacked along a new first axis. nullptr
// with no exception set where it is not that.
PyObject* stack_plain_arrays(PyObject* arrays);

// Whether casting a plain array to a torch.dtype leaves it as it is.
bool has_dtype(PyObject* array, PyObject* torch_dtype);

// What `float_dtype=` asks of a plain array, borrowed: that dtype for floats, None for whatever is
// no number with a fraction; nullptr where Python decides.
PyObject* dtype_among_floats(PyObject* array, PyObject* float_dtype);

}  // namespace ndtorch
