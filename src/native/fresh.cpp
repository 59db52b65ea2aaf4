#include "fresh.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>

#include "arrays.h"
#include "bridge.h"
#include "dtype_table.h"
#include "numpy_api.h"
#include "owners.h"

namespace ndtorch {
namespace {

// Whether every item has a place of its own in memory that can be: broadcast arrays are copied
// compactly, empty ones not at all, and both by Python; wild strides are refused there.
bool is_distinct(PyArrayObject* array) {
  int64_t extent = PyArray_ITEMSIZE(array);
  int64_t span;
  for (int axis = 0; axis < PyArray_NDIM(array); ++axis) {
    const int64_t size = PyArray_DIM(array, axis);
    if (size == 1) continue;
    const int64_t stride = PyArray_STRIDE(array, axis);
    // The lowest number has no absolute value.
    if (stride == 0 || stride == std::numeric_limits<int64_t>::min() || size == 0 ||
        __builtin_mul_overflow(std::abs(stride), size - 1, &span) ||
        __builtin_add_overflow(extent, span, &extent)) {
      return false;
    }
  }
  return true;
}

}  // namespace

PyObject* fresh_tensor(int ndim, const int64_t* shape, Dtype dtype, void** data,
                       Recycler* recycler) {
  if (!can_wrap() || !can_cast(dtype, dtype)) return nullptr;
  int64_t strides[kMaxDims];
  int64_t items = 1, nbytes;
  for (int i = ndim; i-- > 0;) {
    strides[i] = items;
    if (__builtin_mul_overflow(items, shape[i], &items)) return nullptr;
  }
  if (__builtin_mul_overflow(items, item_size(dtype), &nbytes)) return nullptr;
  const auto size = static_cast<size_t>(nbytes);
  const Lease lease = recycler != nullptr ? recycler->take(size) : Lease{allocate(size), size, {}};
  if (lease.block.data == nullptr) return nullptr;
  *data = lease.block.data;
  return wrap_block(lease, ndim, shape, strides, dtype);
}

PyObject* wrap_block(const Lease& lease, int ndim, const int64_t* shape, const int64_t* strides,
                     Dtype dtype) {
  Owner* owner = own_block(ndim, lease);
  if (owner == nullptr) {
    release(lease);
    return nullptr;
  }
  std::copy_n(shape, ndim, owner->managed.tensor.shape);
  std::copy_n(strides, ndim, owner->managed.tensor.strides);
  owner->managed.tensor.dtype = dlpack_type_of(dtype);
  return hand_over(owner);
}

bool has_dtype(PyObject* object, PyObject* torch_dtype) {
  if (!PyArray_CheckExact(object)) return false;
  const auto own = dtype_of(PyArray_DESCR(reinterpret_cast<PyArrayObject*>(object)));
  return own && own == dtype_named(torch_dtype);
}

PyObject* dtype_among_floats(PyObject* object, PyObject* float_dtype) {
  if (!PyArray_CheckExact(object)) return nullptr;
  const auto own = dtype_of(PyArray_DESCR(reinterpret_cast<PyArrayObject*>(object)));
  const auto wanted = dtype_named(float_dtype);
  if (!own || !wanted || !is_float(*wanted) || is_complex(*own)) return nullptr;
  return is_float(*own) ? float_dtype : Py_None;
}

PyObject* copy_plain_array(PyObject* object, PyObject* torch_dtype) {
  if (!can_wrap() || !PyArray_CheckExact(object)) return nullptr;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  if (!is_copyable(array) || !is_plain_memory(array) || !is_distinct(array)) return nullptr;
  const Dtype from = *dtype_of(PyArray_DESCR(array));
  const auto to = torch_dtype == Py_None ? from : dtype_named(torch_dtype);
  if (!to || (*to != from && !is_same_kind(from, *to))) return nullptr;
  CopyRequest request = copy_request(array);
  PyObject* tensor = fresh_tensor(request.ndim, request.shape, *to, &request.dst);
  if (tensor == nullptr) return nullptr;
  int64_t strides[kMaxDims];
  int64_t nbytes = item_size(*to);
  for (int i = request.ndim; i-- > 0; nbytes *= request.shape[i]) strides[i] = nbytes;
  request.dst_strides = strides;
  request.dst_dtype = *to;
  const int64_t moved = nbytes + PyArray_NBYTES(array);
  if (PyArray_IS_C_CONTIGUOUS(array) && is_for_torch(from, *to, moved)) {
    PyObject* source = share(object);
    const bool copied = copy_by_torch(tensor, source);
    Py_XDECREF(source);
    if (copied) return tensor;
  }
  if (copy_with_python(request, moved) == Outcome::kInterrupted) {
    Py_CLEAR(tensor);
  }
  return tensor;
}

PyObject* stack_plain_arrays(PyObject* arrays) {
  if (!can_wrap() || has_dispatch_modes() || !PyList_CheckExact(arrays)) return nullptr;
  PyObject* sources = PyList_AsTuple(arrays);  // another thread may change the list
  if (sources == nullptr) return nullptr;
  const Py_ssize_t count = PyTuple_GET_SIZE(sources);
  const Survey found = survey(sources);
  PyObject* tensor = nullptr;
  if (count > 0 && found.is_plain && found.odd_one == count && std::has_single_bit(found.dtypes)) {
    auto* first = reinterpret_cast<PyArrayObject*>(PyTuple_GET_ITEM(sources, 0));
    int64_t shape[kMaxDims];
    const int ndim = PyArray_NDIM(first) + 1;
    shape[0] = count;
    if (ndim <= kMaxDims && PyArray_SIZE(first) > 0) {
      std::copy_n(PyArray_DIMS(first), ndim - 1, shape + 1);
      void* data;
      tensor = fresh_tensor(ndim, shape, *dtype_of(PyArray_DESCR(first)), &data);
    }
  }
  PyObject* target = tensor == nullptr ? nullptr : alias(tensor, true);
  if (target == nullptr || stack_arrays(target, sources, nullptr) != Filled::kDone) {
    Py_CLEAR(tensor);
  }
  Py_XDECREF(target);
  Py_DECREF(sources);
  return tensor;
}

}  // namespace ndtorch
