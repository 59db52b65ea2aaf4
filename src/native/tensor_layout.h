// Everything the bridge uses that neither torch nor NumPy documents, and nothing else.
//
// Three kinds of thing: C++ symbols found by name, the offsets of two fields found by looking at
// real tensors, and one NumPy flag. `calibrate` finds and proves them at import; when anything is
// unexpected it says so, and the bridge then uses torch's own functions.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace ndtorch {

// NumPy's NPY_ARRAY_WARN_ON_WRITE, set on what `np.broadcast_arrays` returns and in no public
// header. Such an array claims to be writable, but its items overlap.
constexpr int kWarnOnWrite = static_cast<int>(1U << 31);

class TensorLayout {
 public:
  // Finds the dispatch mode symbol, which both directions need. Returns why not, or "".
  std::string find_dispatch_modes(const void* function_of_torch);

  // Finds the rest, which only tensor to array needs. Returns why not, or "".
  std::string calibrate(const void* function_of_torch);

  // Whether a FakeTensorMode or another TorchDispatchMode would want to see the call.
  bool has_dispatch_modes() const { return any_modes_set_(false); }

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

 private:
  // The C++ object behind a Python tensor or storage: the first word after the object's head.
  static char* impl(PyObject* object) {
    char* pointer;
    std::memcpy(&pointer, reinterpret_cast<char*>(object) + sizeof(PyObject), sizeof pointer);
    return pointer;
  }

  void find_key_set(nanobind::handle torch);
  void find_resizable(nanobind::handle torch);

  bool (*any_modes_set_)(bool skip_infra_modes) = nullptr;
  bool (*requires_grad_)(const void* tensor_impl) = nullptr;
  size_t key_set_offset_ = 0;
  size_t resizable_offset_ = 0;
  uint64_t dense_keys_ = 0;
  uint64_t dense_inference_keys_ = 0;
};

// An address of the library that holds `function_of_torch` or of one that it links, or nullptr.
void* find_symbol(const void* function_of_torch, const char* name);

}  // namespace ndtorch
