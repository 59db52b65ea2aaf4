#define NDTORCH_IMPORTS_NUMPY
#include "bridge.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "dlpack_abi.h"
#include "dtype_table.h"
#include "numpy_api.h"
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

// Keeps an array alive for the tensor over its memory; the shape and strides follow the struct.
struct Owner {
  dlpack::ManagedTensor managed;
  PyObject* array;
  bool handed_over;
};

// torch calls this when the tensor's storage dies, on any thread, without the GIL.
void release(dlpack::ManagedTensor* managed) {
  Owner* owner = reinterpret_cast<Owner*>(managed->manager_ctx);
  // torch may fail after its storage took over; then the memory is still the caller's to free.
  if (!owner->handed_over) return;
  // A finalizing interpreter would hang or end this thread. The process is ending: leak.
  if (!Py_IsInitialized() || is_finalizing()) return;
  PyGILState_STATE gil = PyGILState_Ensure();
  Py_DECREF(owner->array);
  PyGILState_Release(gil);
  std::free(owner);
}

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
PyObject* share_sound_array(PyObject* object) {
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  const int ndim = PyArray_NDIM(array);
  const Dtype dtype = *find_dtype(array);
  const int64_t itemsize = item_size(dtype);
  void* memory = std::malloc(sizeof(Owner) + 2 * static_cast<size_t>(ndim) * sizeof(int64_t));
  if (memory == nullptr) return nullptr;
  Owner* owner = new (memory) Owner;
  auto* shape = reinterpret_cast<int64_t*>(owner + 1);
  int64_t* strides = shape + ndim;
  for (int dim = 0; dim < ndim; ++dim) {
    shape[dim] = PyArray_DIM(array, dim);
    // Only along a single item can the stride be negative or odd still, and there it is unused.
    const int64_t stride = PyArray_STRIDE(array, dim);
    strides[dim] = stride < 0 ? 1 : stride / itemsize;
  }
  owner->managed = {.version = {dlpack::kMajorVersion, 0},
                    .manager_ctx = owner,
                    .deleter = release,
                    .flags = 0,
                    .tensor = {.data = PyArray_DATA(array),
                               .device = {dlpack::kCpu, 0},
                               .ndim = ndim,
                               .dtype = dlpack_type_of(dtype),
                               .shape = shape,
                               .strides = strides,
                               .byte_offset = 0}};
  owner->array = Py_NewRef(object);
  owner->handed_over = false;
  PyObject* tensor = wrap(&owner->managed);
  if (tensor != nullptr) {
    owner->handed_over = true;
    return tensor;
  }
  Py_DECREF(object);
  std::free(owner);
  return nullptr;
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

// The array's base is the storage, not the tensor: the tensor may be given other memory, and its
// autograd graph need not live as long as the array. nullptr with no exception set on failure.
template <typename IsWritable>
PyObject* array_over(PyObject* tensor, IsWritable is_writable) {
  if (!is_dense_tensor(tensor)) return nullptr;
  PyObject* storage = PyObject_Vectorcall(state.untyped_storage, &tensor, 1, nullptr);
  View view;
  // A TorchFunctionMode may have answered in torch's place. The view comes after that call, which
  // can run any code, and nothing below can until the storage is pinned.
  if (storage == nullptr || !Py_IS_TYPE(storage, state.storage_type) ||
      !view_tensor(tensor, &view)) {
    PyErr_Clear();
    Py_XDECREF(storage);
    return nullptr;
  }
  state.layout.pin(storage);
  const auto itemsize = static_cast<uint64_t>(PyDataType_ELSIZE(view.dtype));
  npy_intp shape[NPY_MAXDIMS];
  npy_intp strides[NPY_MAXDIMS];
  for (int64_t dim = 0; dim < view.ndim; ++dim) {
    shape[dim] = view.shape[dim];
    // Along a single item torch allows any stride, so the product may overflow.
    strides[dim] = static_cast<npy_intp>(static_cast<uint64_t>(view.strides[dim]) * itemsize);
  }
  Py_INCREF(view.dtype);
  const int flags = NPY_ARRAY_ALIGNED | (is_writable(view) ? NPY_ARRAY_WRITEABLE : 0);
  PyObject* array = PyArray_NewFromDescr(&PyArray_Type, view.dtype, static_cast<int>(view.ndim),
                                         shape, strides, view.data, flags, nullptr);
  if (array == nullptr) {
    PyErr_Clear();
    Py_DECREF(storage);
    return nullptr;
  }
  if (PyArray_SetBaseObject(reinterpret_cast<PyArrayObject*>(array), storage) != 0) {
    PyErr_Clear();
    Py_CLEAR(array);
  }
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

bool can_wrap() { return state.exchange != nullptr; }

PyObject* wrap(dlpack::ManagedTensor* managed) {
  void* tensor = nullptr;
  // Success without a tensor happens when torch could not make the Python object.
  if (state.exchange->to_py_object(managed, &tensor) == 0 && tensor != nullptr) {
    return static_cast<PyObject*>(tensor);
  }
  PyErr_Clear();
  return nullptr;
}

bool has_dispatch_modes() { return state.layout.has_dispatch_modes(); }

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

bool const_data_ptr(PyObject* tensor, const void** out) {
  return state.has_to_numpy && is_dense_tensor(tensor) &&
         state.shim.get_const_data_ptr(tensor_handle(tensor), out) == 0;
}

}  // namespace ndtorch
