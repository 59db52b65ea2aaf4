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

nb::object storage_of(nb::handle tensor) { return tensor.attr("untyped_storage")(); }

bool is_function(const void* address) {
  Dl_info library;
  return address != nullptr && dladdr(address, &library) != 0;
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

void TensorLayout::find_transforms(const void* function_of_torch) {
  constexpr const char* kName = "_ZN3c104impl28tls_is_dispatch_key_includedENS_11DispatchKeyE";
  try {
    nb::object keys = nb::module_::import_("torch._C").attr("DispatchKey");
    transform_key_ = nb::cast<uint16_t>(keys.attr("FuncTorchDynamicLayerFrontMode").attr("value"));
    is_key_included_ =
        reinterpret_cast<decltype(is_key_included_)>(find_symbol(function_of_torch, kName));
  } catch (const std::exception&) {  // this torch names its keys differently
  }
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
    storage = storage_of(tensor);
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

std::string TensorLayout::find_captured(const std::vector<Wrapped>& samples) {
  try {
    nb::object torch = nb::module_::import_("torch");
    std::vector<nb::object> wrapped, converted, all;
    std::vector<const void*> managed, arrays;
    for (const Wrapped& each : samples) {
      wrapped.push_back(storage_of(each.tensor));
      managed.push_back(each.managed);
      converted.push_back(storage_of(torch.attr("from_numpy")(each.array)));
      arrays.push_back(each.array.ptr());
      all.insert(all.end(), {wrapped.back(), converted.back()});
    }
    find_data_ptr(all);
    drops_managed_ = find_invoke(wrapped, managed);
    drops_array_ = find_invoke(converted, arrays);
    require(drops_managed_ != drops_array_, "the deleters of storages are all the same");
    const void* deleter = data_ptr(all[0].ptr()).deleter;
    require(data_ptr(storage_of(zeros(torch, "float64")).ptr()).deleter != deleter,
            "memory of torch has the deleter of other memory");
    delete_function_ = deleter;
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// The word that is the data's address in every storage. Behind it there must be a deleter that all
// have in common and contexts that differ, before anything there is followed.
void TensorLayout::find_data_ptr(const std::vector<nb::object>& storages) {
  size_t hits = 0;
  for (size_t offset = 0; offset + sizeof(DataPtr) <= kStorageBytes; offset += sizeof(void*)) {
    bool found = true;
    for (const nb::object& storage : storages) {
      require(is_impl(impl(storage.ptr()), storage), "a storage's _cdata is elsewhere");
      const auto address = nb::cast<uintptr_t>(storage.attr("data_ptr")());
      found = found && read<uintptr_t>(impl(storage.ptr()) + offset) == address;
    }
    if (found) data_ptr_offset_ = offset, ++hits;
  }
  require(hits == 1, "the address in a storage was not found");
  const auto first = data_ptr(storages[0].ptr());
  require(is_function(first.deleter), "the deleter of a storage was not found");
  for (size_t i = 1; i < storages.size(); ++i) {
    const auto other = data_ptr(storages[i].ptr());
    require(other.deleter == first.deleter && other.context != first.context,
            "the deleter of a storage was not found");
  }
}

// The function that runs in the deleters of these storages, which have captured these pointers.
const void* TensorLayout::find_invoke(const std::vector<nb::object>& storages,
                                      const std::vector<const void*>& captured) const {
  const void* invoke = nullptr;
  for (size_t i = 0; i < storages.size(); ++i) {
    const auto memory = data_ptr(storages[i].ptr());
    const auto function = read<Function>(memory.context);
    require(function.data == memory.data && function.captured == captured[i] &&
                is_function(function.manage) && is_function(function.invoke) &&
                (i == 0 || function.invoke == invoke),
            "what a storage's deleter captured was not found");
    invoke = function.invoke;
  }
  return invoke;
}

}  // namespace ndtorch
