// Everything the bridge uses that neither torch nor NumPy documents, and nothing else.
//
// Four kinds of thing: C++ symbols found by name, the offsets of fields found by looking at real
// tensors, what torch's deleters captured, and one NumPy flag. They are found and proved at import;
// when anything is unexpected the bridge is told so, and does without.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "dlpack_abi.h"

namespace ndtorch {

// NumPy's NPY_ARRAY_WARN_ON_WRITE, set on what `np.broadcast_arrays` returns and in no public
// header. Such an array claims to be writable, but its items overlap.
constexpr int kWarnOnWrite = static_cast<int>(1U << 31);

// What a storage's deleter lets go of: the struct that DLPack handed over, or the array that
// torch.from_numpy was given. Borrowed; at most one is not nullptr.
struct Captured {
  const dlpack::ManagedTensor* managed = nullptr;
  PyObject* array = nullptr;
};

// A tensor over the memory of `array`, and the struct it was made from.
struct Wrapped {
  nanobind::object array;
  nanobind::object tensor;
  const dlpack::ManagedTensor* managed;
};

class TensorLayout {
 public:
  // Finds the dispatch mode symbol, which both directions need. Returns why not, or "".
  std::string find_dispatch_modes(const void* function_of_torch);

  // Finds how to ask for transforms. Where torch does not tell, there never seem to be any.
  void find_transforms(const void* function_of_torch);

  // Finds the rest, which only tensor to array needs. Returns why not, or "".
  std::string calibrate(const void* function_of_torch);

  // Finds what the deleters of storages capture. Returns why not, or ""; then nothing is captured.
  std::string find_captured(const std::vector<Wrapped>& samples);

  // Whether a FakeTensorMode or another TorchDispatchMode would want to see the call.
  bool has_dispatch_modes() const { return any_modes_set_(false); }

  // Whether vmap, grad, functionalize or another transform of torch.func is running.
  bool in_transform() const {
    return is_key_included_ != nullptr && is_key_included_(transform_key_);
  }

  // Whether an exact Tensor or Parameter is a dense CPU tensor with no wrapper and no lazy
  // conjugate or negative bit: its dispatch keys are those of `torch.zeros(1)`, all of them.
  bool is_dense_cpu(PyObject* tensor) const {
    uint64_t keys;
    std::memcpy(&keys, impl(tensor) + key_set_offset_, sizeof keys);
    return keys == dense_keys_ || keys == dense_inference_keys_;
  }

  bool requires_grad(PyObject* tensor) const { return requires_grad_(impl(tensor)); }

  // Forbids the storage to move, as Tensor.numpy does, for arrays that point into it.
  void pin(PyObject* storage) const { impl(storage)[resizable_offset_] = 0; }

  // What keeps the memory alive that a storage has now. torch gives it other memory only while it
  // holds the GIL, so the answer is good until the caller lets go of that.
  Captured captured(PyObject* storage) const {
    const DataPtr memory = data_ptr(storage);
    if (memory.deleter != delete_function_) return {};
    const auto function = read<Function>(memory.context);
    if (function.data != memory.data) return {};
    if (function.invoke == drops_managed_) {
      return {.managed = static_cast<const dlpack::ManagedTensor*>(function.captured)};
    }
    if (function.invoke != drops_array_) return {};
    return {.array = static_cast<PyObject*>(function.captured)};
  }

 private:
  // The C++ object behind a Python tensor or storage: the first word after the object's head.
  static char* impl(PyObject* object) {
    char* pointer;
    std::memcpy(&pointer, reinterpret_cast<char*>(object) + sizeof(PyObject), sizeof pointer);
    return pointer;
  }

  // c10::DataPtr, up to its device.
  struct DataPtr {
    void* data;
    const void* deleter;
    void* context;
  };

  // c10::InefficientStdFunctionContext: the data and the std::function that lets go of it.
  struct Function {
    void* data;
    void* captured;
    void* more;
    const void* manage;
    const void* invoke;
  };

  template <typename Field>
  static Field read(const void* address) {
    Field field;
    std::memcpy(&field, address, sizeof field);
    return field;
  }

  DataPtr data_ptr(PyObject* storage) const {
    return read<DataPtr>(impl(storage) + data_ptr_offset_);
  }

  void find_key_set(nanobind::handle torch);
  void find_data_ptr(const std::vector<nanobind::object>& storages);
  const void* find_invoke(const std::vector<nanobind::object>& storages,
                          const std::vector<const void*>& captured) const;
  void find_resizable(nanobind::handle torch);

  bool (*any_modes_set_)(bool skip_infra_modes) = nullptr;
  bool (*is_key_included_)(uint16_t dispatch_key) = nullptr;
  uint16_t transform_key_ = 0;
  bool (*requires_grad_)(const void* tensor_impl) = nullptr;
  size_t key_set_offset_ = 0;
  size_t resizable_offset_ = 0;
  size_t data_ptr_offset_ = 0;
  const void* delete_function_ = nullptr;  // of no storage: each has a deleter
  const void* drops_managed_ = nullptr;
  const void* drops_array_ = nullptr;
  uint64_t dense_keys_ = 0;
  uint64_t dense_inference_keys_ = 0;
};

// An address of the library that holds `function_of_torch` or of one that it links, or nullptr.
void* find_symbol(const void* function_of_torch, const char* name);

}  // namespace ndtorch
