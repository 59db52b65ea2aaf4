#define NDTORCH_IMPORTS_NUMPY
#include "bridge.h"

#include <cstring>
#include <vector>

#include "dlpack_abi.h"
#include "dtype_table.h"
#include "numpy_api.h"
#include "owners.h"
#include "tensor_layout.h"

namespace ndtorch {
namespace {

// torch's C shim, which takes the address of the at::Tensor inside the Python object.
struct Shim {
  int32_t (*get_dim)(void* tensor, int64_t* out);
  int32_t (*get_sizes)(void* tensor, int64_t** out);
  int32_t (*get_strides)(void* tensor, int64_t** out);
  int32_t (*get_dtype)(void* tensor, int32_t* out);
  int32_t (*get_data_ptr)(void* tensor, void** out);
  int32_t (*get_const_data_ptr)(void* tensor, const void** out);
};

// Written at import, under the GIL, and only read afterwards.
struct State {
  TensorLayout layout;
  Shim shim;
  const dlpack::ExchangeApi* exchange = nullptr;
  PyTypeObject* tensor_type = nullptr;
  PyTypeObject* parameter_type = nullptr;
  PyTypeObject* storage_type = nullptr;
  PyObject* untyped_storage = nullptr;  // the method of torch's tensor base class
  PyObject* accelerators = nullptr;     // tuple of dict
  PyObject* initialized = nullptr;      // "_initialized"
  bool has_to_numpy = false;
};

State state;

// ---- array to tensor -------------------------------------------------------------------------

// The dtype of an array in native byte order.
std::optional<Dtype> find_dtype(PyArrayObject* array) {
  PyArray_Descr* dtype = PyArray_DESCR(array);
  return PyArray_ISNBO(dtype->byteorder) ? dtype_of(dtype) : std::nullopt;
}

// Whether torch can describe the strides. It aborts the process on a negative stride and on sizes
// that overflow (pytorch#188023). A stride along fewer than two items means nothing, and `strict`
// says whether it must be in order all the same.
bool has_sound_strides(PyArrayObject* array, int64_t itemsize, bool strict) {
  const npy_intp* shape = PyArray_DIMS(array);
  const npy_intp* strides = PyArray_STRIDES(array);
  int64_t nbytes = itemsize;
  int64_t extent = itemsize;
  int64_t step;
  for (int dim = 0; dim < PyArray_NDIM(array); ++dim) {
    if (shape[dim] <= 0) return false;
    if (shape[dim] == 1 && !strict) continue;
    if (strides[dim] < 0 || (strides[dim] & (itemsize - 1)) != 0) return false;
    if (__builtin_mul_overflow(nbytes, shape[dim], &nbytes) ||
        __builtin_mul_overflow(strides[dim], shape[dim] - 1, &step) ||
        __builtin_add_overflow(extent, step, &extent)) {
      return false;
    }
  }
  return true;
}

// The array must have passed `has_sound_strides`. nullptr with no exception set on failure.
Owner* own_sound_array(PyObject* object) {
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  const int ndim = PyArray_NDIM(array);
  const Dtype dtype = *find_dtype(array);
  const int64_t itemsize = item_size(dtype);
  Owner* owner = own_array(ndim, object, PyArray_DATA(array));
  if (owner == nullptr) return nullptr;
  dlpack::Tensor& tensor = owner->managed.tensor;
  for (int dim = 0; dim < ndim; ++dim) {
    tensor.shape[dim] = PyArray_DIM(array, dim);
    // Only along a single item can the stride be negative or odd still, and there it is unused.
    const int64_t stride = PyArray_STRIDE(array, dim);
    tensor.strides[dim] = stride < 0 ? 1 : stride / itemsize;
  }
  tensor.dtype = dlpack_type_of(dtype);
  return owner;
}

PyObject* share_sound_array(PyObject* object) {
  Owner* owner = own_sound_array(object);
  return owner == nullptr ? nullptr : hand_over(owner);
}

// A tensor over an array of its own, and what it was made from.
Wrapped wrapped_sample() {
  npy_intp size = 8;
  auto array = nanobind::steal(PyArray_ZEROS(1, &size, NPY_DOUBLE, 0));
  const bool is_plain = array.is_valid() && is_plain_array(array.ptr());
  Owner* owner = is_plain ? own_sound_array(array.ptr()) : nullptr;
  PyObject* tensor = owner == nullptr ? nullptr : hand_over(owner);
  PyErr_Clear();
  return {array, nanobind::steal(tensor), tensor == nullptr ? nullptr : &owner->managed};
}

// ---- tensor to array -------------------------------------------------------------------------

bool is_dense_tensor(PyObject* object) {
  return (Py_IS_TYPE(object, state.tensor_type) || Py_IS_TYPE(object, state.parameter_type)) &&
         state.layout.is_dense_cpu(object);
}

void* tensor_handle(PyObject* tensor) { return reinterpret_cast<char*>(tensor) + sizeof(PyObject); }

// What NumPy must know about a tensor. The pointers belong to the tensor.
struct View {
  PyArray_Descr* dtype;
  int64_t ndim;
  const int64_t* shape;
  const int64_t* strides;  // in items
  void* data;
};

// Fills `view` of a dense tensor; false where it has no data or no dtype of the table.
// `get_data_ptr` unshares a lazily cloned tensor, which an array over its memory needs.
bool view_tensor(PyObject* tensor, View* view) {
  void* handle = tensor_handle(tensor);
  int32_t scalar_type;
  int64_t* shape;
  int64_t* strides;
  if (state.shim.get_dtype(handle, &scalar_type) != 0) return false;
  view->dtype = numpy_dtype_of(scalar_type);
  if (view->dtype == nullptr) return false;
  if (state.shim.get_dim(handle, &view->ndim) != 0 || view->ndim > NPY_MAXDIMS ||
      state.shim.get_sizes(handle, &shape) != 0 || state.shim.get_strides(handle, &strides) != 0) {
    return false;
  }
  for (int64_t dim = 0; dim < view->ndim; ++dim) {
    if (shape[dim] == 0) return false;
  }
  view->shape = shape;
  view->strides = strides;
  return state.shim.get_data_ptr(handle, &view->data) == 0 && view->data != nullptr;
}

bool is_expanded(const View& view) {
  for (int64_t dim = 0; dim < view.ndim; ++dim) {
    if (view.strides[dim] == 0 && view.shape[dim] > 1) return true;
  }
  return false;
}

// Takes the reference to `base`. nullptr with no exception set on failure.
PyObject* array_of(const View& view, bool is_writable, PyObject* base) {
  const auto itemsize = static_cast<uint64_t>(PyDataType_ELSIZE(view.dtype));
  npy_intp shape[NPY_MAXDIMS];
  npy_intp strides[NPY_MAXDIMS];
  for (int64_t dim = 0; dim < view.ndim; ++dim) {
    shape[dim] = view.shape[dim];
    // Along a single item torch allows any stride, so the product may overflow.
    strides[dim] = static_cast<npy_intp>(static_cast<uint64_t>(view.strides[dim]) * itemsize);
  }
  Py_INCREF(view.dtype);
  const int flags = NPY_ARRAY_ALIGNED | (is_writable ? NPY_ARRAY_WRITEABLE : 0);
  PyObject* array = PyArray_NewFromDescr(&PyArray_Type, view.dtype, static_cast<int>(view.ndim),
                                         shape, strides, view.data, flags, nullptr);
  if (array == nullptr) {
    PyErr_Clear();
    Py_DECREF(base);
    return nullptr;
  }
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), base) != 0) {
    PyErr_Clear();
    Py_CLEAR(array);
  }
  return array;
}

// The array's base is the owner of the memory where that is known, for torch may give the storage
// other memory. Else it is the storage, not the tensor: the tensor may be given another storage,
// and its autograd graph need not live as long as the array. nullptr with no exception set on
// failure.
template <typename IsWritable>
PyObject* array_over(PyObject* tensor, IsWritable is_writable) {
  if (!is_dense_tensor(tensor)) return nullptr;
  PyObject* storage = PyObject_Vectorcall(state.untyped_storage, &tensor, 1, nullptr);
  View view;
  // A TorchFunctionMode may have answered in torch's place. The view comes after that call, which
  // can run any code, and nothing below can until the base is held.
  if (storage == nullptr || !Py_IS_TYPE(storage, state.storage_type) ||
      !view_tensor(tensor, &view)) {
    PyErr_Clear();
    Py_XDECREF(storage);
    return nullptr;
  }
  state.layout.pin(storage);
  const Captured held = state.layout.captured(storage);
  if (!has_owner(held)) return array_of(view, is_writable(view), storage);
  PyObject* owner = hold_owner(held);
  PyObject* array = owner == nullptr ? nullptr : array_of(view, is_writable(view), owner);
  if (owner == nullptr) PyErr_Clear();
  Py_DECREF(storage);
  return array;
}

// ---- set-up ----------------------------------------------------------------------------------

PyObject* import_attribute(const char* module_name, const char* name) {
  PyObject* module = PyImport_ImportModule(module_name);
  if (module == nullptr) return nullptr;
  PyObject* attribute = PyObject_GetAttrString(module, name);
  Py_DECREF(module);
  return attribute;
}

std::string take_error(const char* what) {
  PyErr_Clear();
  return what;
}

template <typename Pointer>
bool find(Pointer* out, const char* name) {
  const auto* function = reinterpret_cast<const void*>(state.exchange->to_py_object);
  *out = reinterpret_cast<Pointer>(find_symbol(function, name));
  return *out != nullptr;
}

}  // namespace

bool is_finalizing() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

bool import_numpy() { return PyArray_ImportNumPyAPI() == 0; }

std::string enable_to_torch() {
  PyObject* tensor = import_attribute("torch", "Tensor");
  if (tensor == nullptr) return take_error("torch has no Tensor");
  state.tensor_type = reinterpret_cast<PyTypeObject*>(tensor);
  PyObject* capsule = PyObject_GetAttrString(tensor, "__dlpack_c_exchange_api__");
  if (capsule == nullptr) return take_error("torch has no DLPack exchange API");
  const auto* exchange = static_cast<const dlpack::ExchangeApi*>(
      PyCapsule_GetPointer(capsule, dlpack::kExchangeApiCapsule));
  Py_DECREF(capsule);  // what it points to is static
  if (exchange == nullptr) return take_error("torch's DLPack exchange API is not a capsule");
  if (exchange->header.version.major != dlpack::kMajorVersion ||
      exchange->to_py_object == nullptr) {
    return "torch's DLPack exchange API has another major version";
  }
  state.exchange = exchange;
  const auto* function = reinterpret_cast<const void*>(exchange->to_py_object);
  std::string why_not = state.layout.find_dispatch_modes(function);
  state.layout.find_transforms(function);
  if (!why_not.empty()) state.exchange = nullptr;
  return why_not;
}

std::string enable_to_numpy(PyObject* accelerators) {
  if (state.exchange == nullptr) return "it needs what array to tensor needs";
  Shim& shim = state.shim;
  if (!find(&shim.get_dim, "aoti_torch_get_dim") ||
      !find(&shim.get_sizes, "aoti_torch_get_sizes") ||
      !find(&shim.get_strides, "aoti_torch_get_strides") ||
      !find(&shim.get_dtype, "aoti_torch_get_dtype") ||
      !find(&shim.get_data_ptr, "aoti_torch_get_data_ptr") ||
      !find(&shim.get_const_data_ptr, "torch_get_const_data_ptr")) {
    return "torch does not export its C shim";
  }
  PyObject* parameter = import_attribute("torch.nn", "Parameter");
  PyObject* storage = import_attribute("torch", "UntypedStorage");
  PyObject* base = import_attribute("torch._C", "TensorBase");
  if (parameter == nullptr || storage == nullptr || base == nullptr) {
    return take_error("torch has no Parameter, UntypedStorage or TensorBase");
  }
  state.parameter_type = reinterpret_cast<PyTypeObject*>(parameter);
  state.storage_type = reinterpret_cast<PyTypeObject*>(storage);
  state.untyped_storage = PyObject_GetAttrString(base, "untyped_storage");
  state.initialized = PyUnicode_InternFromString("_initialized");
  if (state.untyped_storage == nullptr || state.initialized == nullptr) {
    return take_error("a tensor has no untyped_storage");
  }
  state.accelerators = Py_NewRef(accelerators);
  const auto* function = reinterpret_cast<const void*>(state.exchange->to_py_object);
  std::string why_not = state.layout.calibrate(function);
  state.has_to_numpy = why_not.empty();
  return why_not;
}

std::string enable_owners() {
  if (!state.has_to_numpy) return "it needs what tensor to array needs";
  const std::vector<Wrapped> samples{wrapped_sample(), wrapped_sample()};
  for (const Wrapped& sample : samples) {
    if (!sample.tensor.is_valid()) return "an array did not become a tensor";
  }
  return state.layout.find_captured(samples);
}

bool can_wrap() { return state.exchange != nullptr; }

PyObject* hand_over(Owner* owner) {
  void* tensor = nullptr;
  // Success without a tensor happens when torch could not make the Python object.
  if (state.exchange->to_py_object(&owner->managed, &tensor) == 0 && tensor != nullptr) {
    owner->handed_over = true;
    return static_cast<PyObject*>(tensor);
  }
  PyErr_Clear();
  release(owner);
  return nullptr;
}

bool has_dispatch_modes() { return state.layout.has_dispatch_modes(); }

bool in_transform() { return state.layout.in_transform(); }

bool is_shareable_array(PyObject* object, bool strict) {
  if (!PyArray_CheckExact(object)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  constexpr int kNeeded = NPY_ARRAY_ALIGNED | NPY_ARRAY_WRITEABLE;
  if ((PyArray_FLAGS(array) & (kNeeded | kWarnOnWrite)) != kNeeded) return false;
  const auto dtype = find_dtype(array);
  return dtype && has_sound_strides(array, item_size(*dtype), strict);
}

bool is_plain_array(PyObject* object) { return is_shareable_array(object, true); }

PyObject* to_plain_tensor(PyObject* object) {
  return is_plain_array(object) ? share_sound_array(object) : nullptr;
}

bool is_accelerator_in_use() {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(state.accelerators); ++i) {
    PyObject* module_dict = PyTuple_GET_ITEM(state.accelerators, i);
    if (PyDict_GetItemWithError(module_dict, state.initialized) != Py_False) {
      PyErr_Clear();
      return true;
    }
  }
  return false;
}

bool is_plain_tensor(PyObject* object) {
  View view;
  return is_dense_tensor(object) && view_tensor(object, &view);
}

PyObject* to_plain_array(PyObject* object) {
  // Autograd could not see a write, and a write to an expanded item would land in its copies.
  return array_over(object, [object](const View& view) {
    return !state.layout.requires_grad(object) && !is_expanded(view);
  });
}

PyObject* share(PyObject* object) {
  if (state.exchange == nullptr || !PyArray_Check(object)) return nullptr;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  if (!PyArray_ISALIGNED(array) || state.layout.has_dispatch_modes()) return nullptr;
  const auto dtype = find_dtype(array);
  if (!dtype || !has_sound_strides(array, item_size(*dtype), false)) return nullptr;
  return share_sound_array(object);
}

PyObject* alias(PyObject* tensor, bool writable) {
  if (!state.has_to_numpy || state.layout.has_dispatch_modes()) return nullptr;
  return array_over(tensor, [writable](const View&) { return writable; });
}

bool has_owner(PyObject* tensor) {
  if (!state.has_to_numpy || !is_dense_tensor(tensor)) return false;
  PyObject* storage = PyObject_Vectorcall(state.untyped_storage, &tensor, 1, nullptr);
  const bool known = storage != nullptr && Py_IS_TYPE(storage, state.storage_type) &&
                     has_owner(state.layout.captured(storage));
  PyErr_Clear();
  Py_XDECREF(storage);
  return known;
}

bool const_data_ptr(PyObject* tensor, const void** out) {
  return state.has_to_numpy && is_dense_tensor(tensor) &&
         state.shim.get_const_data_ptr(tensor_handle(tensor), out) == 0;
}

}  // namespace ndtorch
