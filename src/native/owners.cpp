#include "owners.h"

#include <cstdlib>
#include <new>

#include "bridge.h"
#include "numpy_api.h"

namespace ndtorch {
namespace {

constexpr const char* kArray = "memory of a NumPy array";
constexpr const char* kBlock = "memory of ndtorch";

// torch calls this when the tensor's storage lets go, on any thread, without the GIL.
void let_go(dlpack::ManagedTensor* managed) {
  auto* owner = static_cast<Owner*>(managed->manager_ctx);
  // torch may fail after its storage took over; then the memory is still the caller's to free.
  if (owner->handed_over) release(owner);
}

Owner* new_owner(int ndim, void* data, size_t extra) {
  const size_t sizes = 2 * static_cast<size_t>(ndim) * sizeof(int64_t);
  void* memory = std::malloc(sizeof(Owner) + sizes + extra);
  if (memory == nullptr) return nullptr;
  auto* owner = new (memory) Owner;
  auto* shape = reinterpret_cast<int64_t*>(owner + 1);
  owner->managed = {.version = {dlpack::kMajorVersion, 0},
                    .manager_ctx = owner,
                    .deleter = let_go,
                    .flags = 0,
                    .tensor = {.data = data,
                               .device = {dlpack::kCpu, 0},
                               .ndim = ndim,
                               .dtype = {},
                               .shape = shape,
                               .strides = shape + ndim,
                               .byte_offset = 0}};
  owner->handed_over = false;
  return owner;
}

Lease* lease_of(Owner* owner) {
  const dlpack::Tensor& tensor = owner->managed.tensor;
  return reinterpret_cast<Lease*>(tensor.strides + tensor.ndim);
}

void drop_array(PyObject* capsule) {
  Py_DECREF(static_cast<PyObject*>(PyCapsule_GetPointer(capsule, kArray)));
}

void drop_block(PyObject* capsule) {
  release(static_cast<Owner*>(PyCapsule_GetPointer(capsule, kBlock)));
}

// An array that was made over a tensor holds an owner already. To share that one keeps the chain
// short, however often memory goes back and forth.
PyObject* holder_behind(PyObject* array) {
  while (PyArray_Check(array)) {
    array = PyArray_BASE(reinterpret_cast<PyArrayObject*>(array));
    if (array == nullptr) return nullptr;
  }
  const bool holds = PyCapsule_IsValid(array, kArray) || PyCapsule_IsValid(array, kBlock);
  return holds ? Py_NewRef(array) : nullptr;
}

PyObject* hold_array(PyObject* array) {
  PyObject* holder = holder_behind(array);
  if (holder != nullptr) return holder;
  holder = PyCapsule_New(array, kArray, drop_array);
  if (holder != nullptr) Py_INCREF(array);
  return holder;
}

PyObject* hold_block(Owner* owner) {
  PyObject* holder = PyCapsule_New(owner, kBlock, drop_block);
  if (holder != nullptr) owner->holders.fetch_add(1, std::memory_order_relaxed);
  return holder;
}

}  // namespace

Owner* own_array(int ndim, PyObject* array, void* data) {
  Owner* owner = new_owner(ndim, data, 0);
  if (owner != nullptr) owner->array = Py_NewRef(array);
  return owner;
}

Owner* own_block(int ndim, const Lease& lease) {
  Owner* owner = new_owner(ndim, lease.block.data, sizeof lease);
  if (owner == nullptr) return nullptr;
  owner->array = nullptr;
  owner->holders.store(1, std::memory_order_relaxed);
  new (lease_of(owner)) Lease(lease);
  return owner;
}

void release(Owner* owner) {
  if (owner->array != nullptr) {
    // A finalizing interpreter would hang or end this thread. The process is ending: leak.
    if (!Py_IsInitialized() || is_finalizing()) return;
    PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF(owner->array);
    PyGILState_Release(gil);
  } else {
    if (owner->holders.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    release(*lease_of(owner));
  }
  std::free(owner);
}

bool has_owner(const Captured& held) {
  return held.array != nullptr || (held.managed != nullptr && held.managed->deleter == let_go);
}

PyObject* hold_owner(const Captured& held) {
  if (held.array != nullptr) return hold_array(held.array);
  auto* owner = static_cast<Owner*>(held.managed->manager_ctx);
  return owner->array != nullptr ? hold_array(owner->array) : hold_block(owner);
}

}  // namespace ndtorch
