#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "bridge.h"
#include "builtins.h"
#include "memory.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
// NumPy numbers, NumPy dtype, torch scalar type, DLPack code, DLPack bits.
using Row = std::tuple<std::vector<int>, nb::object, int, uint8_t, uint8_t>;

// A file name in the encoding of the file system, which need not be UTF-8.
nb::bytes encode(nb::handle path) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) nb::raise_python_error();
  return nb::steal<nb::bytes>(encoded);
}

nb::object none_if_null(PyObject* object) {
  return object == nullptr ? nb::object(nb::none()) : nb::steal(object);
}

void set_dtypes(const std::vector<Row>& rows) {
  std::vector<ndtorch::DtypeRow> table;
  for (const auto& [numbers, dtype, scalar_type, code, bits] : rows) {
    table.push_back({numbers, dtype.ptr(), scalar_type, code, bits});
  }
  ndtorch::set_dtypes(table);
}

std::optional<Bytes> map_private(nb::str path, uint64_t offset, uint64_t nbytes, uint64_t device,
                                 uint64_t inode) {
  const nb::bytes name = encode(path);
  auto mapping = ndtorch::map_private(name.c_str(), offset, nbytes, {device, inode});
  if (!mapping) return std::nullopt;
  nb::capsule owner(new ndtorch::PrivateMapping(*mapping), [](void* pointer) noexcept {
    auto* held = static_cast<ndtorch::PrivateMapping*>(pointer);
    ndtorch::unmap(*held);
    delete held;
  });
  return Bytes(mapping->data, {static_cast<size_t>(nbytes)}, owner);
}

nb::object mapping_at(uint64_t address) {
  const auto found = ndtorch::mapping_at(address);
  if (!found) return nb::none();
  auto path = nb::steal(PyUnicode_DecodeFSDefaultAndSize(
      found->path.data(), static_cast<Py_ssize_t>(found->path.size())));
  return nb::make_tuple(path, found->offset, found->id.device, found->id.inode, found->nbytes,
                        found->shared, found->writable);
}

nb::object accelerate(nb::str name, nb::str module, nb::callable slow, const char* doc) {
  PyObject* builtin = ndtorch::accelerate(name.ptr(), module.ptr(), slow.ptr(), doc);
  if (builtin == nullptr) nb::raise_python_error();
  return nb::steal(builtin);
}

std::optional<uintptr_t> const_data_ptr(nb::handle tensor) {
  const void* pointer = nullptr;
  if (!ndtorch::const_data_ptr(tensor.ptr(), &pointer)) return std::nullopt;
  return reinterpret_cast<uintptr_t>(pointer);
}

}  // namespace

NB_MODULE(_native, m) {
  if (!ndtorch::import_numpy()) nb::raise_python_error();

  m.def("enable_to_torch", &ndtorch::enable_to_torch);
  m.def(
      "enable_to_numpy", [](nb::tuple dicts) { return ndtorch::enable_to_numpy(dicts.ptr()); },
      "accelerators"_a);
  m.def("set_dtypes", &set_dtypes, "rows"_a);
  m.def("watch", &ndtorch::watch, "active"_a);
  m.def("accelerate", &accelerate, "name"_a, "module"_a, "slow"_a, "doc"_a);
  m.def(
      "share", [](nb::handle array) { return none_if_null(ndtorch::share(array.ptr())); },
      "array"_a);
  m.def(
      "alias",
      [](nb::handle tensor, bool writable) {
        return none_if_null(ndtorch::alias(tensor.ptr(), writable));
      },
      "tensor"_a, "writable"_a);
  m.def("const_data_ptr", &const_data_ptr, "tensor"_a);

  m.def("map_private", &map_private, "path"_a, "offset"_a, "nbytes"_a, "device"_a, "inode"_a);
  m.def("mapping_at", &mapping_at, "address"_a);
}
