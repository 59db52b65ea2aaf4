#include "tensor_layout.h"

#include <dlfcn.h>

#include <stdexcept>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

namespace ndtorch {
namespace {

// No more than the classes measure in torch 2.13 (a TensorImpl 176 bytes, its key set last).
constexpr size_t kTensorBytes = 176;
constexpr size_t kStorageBytes = 80;

struct Sample {
  nb::object tensor;
  uint64_t keys;
};

Sample sample(nb::handle torch, nb::object tensor) {
  auto keys = torch.attr("_C").attr("_dispatch_keys")(tensor).attr("raw_repr")();
  return {std::move(tensor), nb::cast<uint64_t>(keys)};
}

nb::object zeros(nb::handle torch, const char* dtype, const char* device = "cpu") {
  return torch.attr("zeros")(3, "dtype"_a = torch.attr(dtype), "device"_a = device);
}

void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

bool is_impl(const void* impl, nb::handle object) {
  return nb::cast<uintptr_t>(object.attr("_cdata")) == reinterpret_cast<uintptr_t>(impl);
}

}  // namespace

void* find_symbol(const void* function_of_torch, const char* name) {
  Dl_info library;
  if (dladdr(function_of_torch, &library) == 0) return nullptr;
  // torch loads its libraries RTLD_LOCAL, so only a handle of its own can see them.
  void* handle = dlopen(library.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (handle == nullptr) return nullptr;
  void* symbol = dlsym(handle, name);
  dlclose(handle);
  return symbol;
}

std::string TensorLayout::find_dispatch_modes(const void* function_of_torch) {
  constexpr const char* kName = "_ZN3c104impl20TorchDispatchModeTLS13any_modes_setEb";
  any_modes_set_ =
      reinterpret_cast<decltype(any_modes_set_)>(find_symbol(function_of_torch, kName));
  return any_modes_set_ == nullptr ? "torch does not export TorchDispatchModeTLS::any_modes_set"
                                   : "";
}

std::string TensorLayout::calibrate(const void* function_of_torch) {
  constexpr const char* kName = "_ZNK3c1010TensorImpl13requires_gradEv";
  requires_grad_ =
      reinterpret_cast<decltype(requires_grad_)>(find_symbol(function_of_torch, kName));
  if (requires_grad_ == nullptr) return "torch does not export TensorImpl::requires_grad";
  try {
    nb::object torch = nb::module_::import_("torch");
    find_key_set(torch);
    find_resizable(torch);
    return "";
  } catch (const std::exception& error) {  // nb::python_error is one
    return error.what();
  }
}

void TensorLayout::find_key_set(nb::handle torch) {
  nb::object complex_zeros = zeros(torch, "complex64");
  nb::object conjugate = complex_zeros.attr("conj")();
  std::vector<Sample> samples;
  samples.push_back(sample(torch, zeros(torch, "float32")));
  samples.push_back(sample(torch, nb::object(conjugate.attr("imag"))));  // carries the neg bit
  samples.push_back(sample(torch, conjugate));
  samples.push_back(sample(torch, zeros(torch, "float32", "meta")));
  nb::object inference_zeros = torch.attr("inference_mode")()(torch.attr("zeros"));
  samples.push_back(sample(torch, inference_zeros(3, "device"_a = "cpu")));

  size_t hits = 0;
  for (size_t offset = 0; offset + sizeof(uint64_t) <= kTensorBytes; offset += sizeof(uint64_t)) {
    bool found = true;
    for (const Sample& each : samples) {
      require(is_impl(impl(each.tensor.ptr()), each.tensor), "a tensor's _cdata is elsewhere");
      uint64_t word;
      std::memcpy(&word, impl(each.tensor.ptr()) + offset, sizeof word);
      found = found && word == each.keys;
    }
    if (found) key_set_offset_ = offset, ++hits;
  }
  require(hits == 1, "the dispatch keys of a tensor were not found");
  dense_keys_ = samples.front().keys;
  dense_inference_keys_ = samples.back().keys;
  for (size_t other = 1; other + 1 < samples.size(); ++other) {
    require(!is_dense_cpu(samples[other].tensor.ptr()), "dispatch keys do not tell tensors apart");
  }
}

void TensorLayout::find_resizable(nb::handle torch) {
  std::vector<bool> candidate(kStorageBytes, true);
  nb::object storage;
  for (const char* dtype : {"uint8", "float64", "complex128"}) {
    nb::object tensor = zeros(torch, dtype);
    storage = tensor.attr("untyped_storage")();
    const char* bytes = impl(storage.ptr());
    require(is_impl(bytes, storage), "a storage's _cdata is elsewhere");
    const std::vector<char> before(bytes, bytes + kStorageBytes);
    tensor.attr("numpy")();
    for (size_t i = 0; i < kStorageBytes; ++i) {
      candidate[i] = candidate[i] && before[i] == 1 && bytes[i] == 0;
    }
  }
  size_t hits = 0;
  for (size_t i = 0; i < kStorageBytes; ++i) {
    if (candidate[i]) resizable_offset_ = i, ++hits;
  }
  require(hits == 1, "what Tensor.numpy changes in a storage was not found");
  auto is_resizable = [&] { return nb::cast<bool>(storage.attr("resizable")()); };
  require(!is_resizable(), "Tensor.numpy no longer pins the storage");
  impl(storage.ptr())[resizable_offset_] = 1;
  require(is_resizable(), "what Tensor.numpy changes in a storage is not its resizable flag");
  pin(storage.ptr());
  require(!is_resizable(), "what Tensor.numpy changes in a storage is not its resizable flag");
}

}  // namespace ndtorch
