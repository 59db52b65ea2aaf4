#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "bindings.h"
#include "bridge.h"
#include "builtins.h"
#include "dlpack_abi.h"
#include "dtype_table.h"
#include "file_calls.h"
#include "fresh.h"
#include "kernels.h"
#include "memory.h"
#include "numpy_api.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using ndtorch::Blocks;
using ndtorch::none_if_null;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using FixedBytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;
// NumPy numbers, NumPy dtype, torch dtype, scalar type, rank of its kind, DLPack code and bits.
using Row = std::tuple<std::vector<int>, nb::object, nb::object, int, int, uint8_t, uint8_t>;

// A file name in the encoding of the file system, which need not be UTF-8.
nb::bytes encode(nb::handle path) {
  PyObject* encoded = nullptr;
  if (!PyUnicode_FSConverter(path.ptr(), &encoded)) nb::raise_python_error();
  return nb::steal<nb::bytes>(encoded);
}

// Whether it is versioned, its flags, type of device, whether it has memory, code, bits and lanes
// of an item, shape, strides in items.
using DlpackFacts = std::tuple<bool, uint64_t, int, bool, int, int, int, std::vector<int64_t>,
                               std::vector<int64_t>>;

// What a DLPack capsule says of its tensor, before anybody consumes it; None for what is no such
// capsule or describes no tensor of at most 64 dimensions.
std::optional<DlpackFacts> dlpack_facts(nb::handle capsule) {
  namespace dlpack = ndtorch::dlpack;
  constexpr int32_t kMaxDims = 64;
  const bool versioned = PyCapsule_IsValid(capsule.ptr(), dlpack::kVersionedCapsule) != 0;
  if (!versioned && PyCapsule_IsValid(capsule.ptr(), dlpack::kUnversionedCapsule) == 0) return {};
  const char* name = versioned ? dlpack::kVersionedCapsule : dlpack::kUnversionedCapsule;
  void* pointer = PyCapsule_GetPointer(capsule.ptr(), name);
  const auto* managed = static_cast<const dlpack::ManagedTensor*>(pointer);
  if (versioned && managed->version.major != dlpack::kMajorVersion) return {};
  // What comes before the tensor in the versioned struct is not there in the old one.
  const dlpack::Tensor& tensor =
      versioned ? managed->tensor : *static_cast<const dlpack::Tensor*>(pointer);
  if (tensor.ndim < 0 || tensor.ndim > kMaxDims) return {};
  if (tensor.ndim > 0 && tensor.shape == nullptr) return {};
  const std::vector<int64_t> shape(tensor.shape, tensor.shape + tensor.ndim);
  std::vector<int64_t> strides(shape.size(), 1);
  if (tensor.strides != nullptr) {
    strides.assign(tensor.strides, tensor.strides + tensor.ndim);
  } else {
    for (size_t i = shape.size(); i-- > 1;) {
      // Sizes that no memory has would overflow; the extent is then refused as well.
      const bool overflows = __builtin_mul_overflow(strides[i], shape[i], &strides[i - 1]);
      if (overflows) strides[i - 1] = std::numeric_limits<int64_t>::max();
    }
  }
  return DlpackFacts(versioned, versioned ? managed->flags : 0, tensor.device.type,
                     tensor.data != nullptr, tensor.dtype.code, tensor.dtype.bits,
                     tensor.dtype.lanes, shape, strides);
}

void set_dtypes(const std::vector<Row>& rows) {
  std::vector<ndtorch::DtypeRow> table;
  for (const auto& [numbers, numpy, torch, scalar_type, rank, code, bits] : rows) {
    table.push_back({numbers, numpy.ptr(), torch.ptr(), scalar_type, rank, code, bits});
  }
  ndtorch::set_dtypes(table);
}

template <typename Array>
std::optional<Array> map_file(nb::str path, uint64_t offset, uint64_t nbytes, uint64_t device,
                              uint64_t inode, ndtorch::Sharing sharing) {
  const nb::bytes name = encode(path);
  auto mapping = ndtorch::map_file(name.c_str(), offset, nbytes, {device, inode}, sharing);
  if (!mapping) return std::nullopt;
  nb::capsule owner(new ndtorch::Mapping(*mapping), [](void* pointer) noexcept {
    auto* held = static_cast<ndtorch::Mapping*>(pointer);
    ndtorch::unmap(*held);
    delete held;
  });
  return Array(mapping->data, {static_cast<size_t>(nbytes)}, owner);
}

std::optional<Bytes> map_private(nb::str path, uint64_t offset, uint64_t nbytes, uint64_t device,
                                 uint64_t inode) {
  return map_file<Bytes>(path, offset, nbytes, device, inode, ndtorch::Sharing::kPrivate);
}

std::optional<FixedBytes> map_shared(nb::str path, uint64_t offset, uint64_t nbytes,
                                     uint64_t device, uint64_t inode) {
  return map_file<FixedBytes>(path, offset, nbytes, device, inode, ndtorch::Sharing::kReadOnly);
}

nb::object mapping_at(uint64_t address) {
  const auto found = ndtorch::mapping_at(address);
  if (!found) return nb::none();
  auto path = nb::steal(PyUnicode_DecodeFSDefaultAndSize(
      found->path.data(), static_cast<Py_ssize_t>(found->path.size())));
  return nb::make_tuple(path, found->offset, found->id.device, found->id.inode, found->nbytes,
                        found->shared, found->writable);
}

nb::object accelerate(nb::str name, nb::str module, nb::callable slow, nb::callable inside,
                      const char* doc) {
  PyObject* builtin = ndtorch::accelerate(name.ptr(), module.ptr(), slow.ptr(), inside.ptr(), doc);
  if (builtin == nullptr) nb::raise_python_error();
  return nb::steal(builtin);
}

std::optional<uintptr_t> const_data_ptr(nb::handle tensor) {
  const void* pointer = nullptr;
  if (!ndtorch::const_data_ptr(tensor.ptr(), &pointer)) return std::nullopt;
  return reinterpret_cast<uintptr_t>(pointer);
}

// A tensor and the array over its memory.
nb::object fresh(nb::tuple shape, int scalar_type, const Blocks* blocks) {
  int64_t sizes[ndtorch::kMaxDims];
  const size_t ndim = shape.size();
  if (ndim > ndtorch::kMaxDims) return nb::none();
  for (size_t i = 0; i < ndim; ++i) sizes[i] = nb::cast<int64_t>(shape[i]);
  void* data;
  nb::object tensor = none_if_null(
      ndtorch::fresh_tensor(static_cast<int>(ndim), sizes, static_cast<ndtorch::Dtype>(scalar_type),
                            &data, blocks == nullptr ? nullptr : blocks->recycler()));
  if (tensor.is_none()) return tensor;
  nb::object array = none_if_null(ndtorch::alias(tensor.ptr(), true));
  return array.is_none() ? array : nb::make_tuple(tensor, array);
}

// False where a value would be lost, or where no kernel does it.
bool done(ndtorch::Filled filled) {
  if (filled == ndtorch::Filled::kError) nb::raise_python_error();
  return filled == ndtorch::Filled::kDone;
}

nb::tuple survey(nb::tuple arrays) {
  const ndtorch::Survey found = ndtorch::survey(arrays.ptr());
  return nb::make_tuple(found.is_plain, found.odd_one, found.dtypes);
}

// Per channel; an empty `std` does not divide, and `divisor` 0 multiplies by `factor`.
ndtorch::Affine affine(int channels, float divisor, float factor, const std::vector<float>& mean,
                       const std::vector<float>& std) {
  ndtorch::Affine result;
  const auto count = static_cast<size_t>(channels);
  if (channels < 1 || channels > ndtorch::kMaxChannels || (!mean.empty() && mean.size() != count) ||
      (!std.empty() && std.size() != count)) {
    throw nb::value_error("not a number for each channel");
  }
  result.channels = channels;
  result.divides = divisor != 0;
  result.divisor = divisor;
  result.factor = factor;
  result.has_std = !std.empty();
  std::copy(mean.begin(), mean.end(), result.mean);
  std::copy(std.begin(), std.end(), result.std);
  ndtorch::kernels().find_reciprocals(result);
  return result;
}

// Whether the file had all that was wanted of it.
bool had_all(ndtorch::Moved moved) {
  if (moved == ndtorch::Moved::kError) nb::raise_python_error();
  return moved == ndtorch::Moved::kDone;
}

void reserve(int file, uint64_t nbytes) {
  errno = ndtorch::reserve(file, nbytes);
  if (errno == 0) return;
  PyErr_SetFromErrno(PyExc_OSError);
  nb::raise_python_error();
}

int64_t read_equal_files(nb::tuple paths, nb::bytes header, nb::handle target, int threads) {
  const int64_t equal = ndtorch::read_equal_files(paths.ptr(), header.ptr(), target.ptr(), threads);
  if (equal < 0) nb::raise_python_error();
  return equal;
}

int64_t read_rows(int file, uint64_t offset, uint64_t step, uint64_t nbytes, nb::handle indices,
                  nb::handle target) {
  const ndtorch::FileRows rows{nullptr, 0, offset, step, nbytes};
  const int64_t done = ndtorch::read_rows(file, rows, indices.ptr(), target.ptr());
  if (done < 0) nb::raise_python_error();
  return done;
}

void announce_file(int file, uint64_t offset, uint64_t step, uint64_t nbytes, nb::handle indices) {
  const ndtorch::FileRows rows{nullptr, 0, offset, step, nbytes};
  if (!ndtorch::announce_rows(file, rows, indices.ptr())) nb::raise_python_error();
}

int64_t read_files(std::vector<int> files, std::vector<uint64_t> offsets, uint64_t nbytes,
                   nb::handle of_files, nb::handle rows, nb::handle places, nb::handle target) {
  const int64_t done = ndtorch::read_rows(
      {std::move(files), std::move(offsets), nbytes, of_files.ptr(), rows.ptr(), places.ptr()},
      target.ptr());
  if (done < 0) nb::raise_python_error();
  return done;
}

bool announce_files(std::vector<int> files, std::vector<uint64_t> offsets, uint64_t nbytes,
                    nb::handle of_files, nb::handle rows) {
  bool is_read;
  if (!ndtorch::announce_rows(
          {std::move(files), std::move(offsets), nbytes, of_files.ptr(), rows.ptr(), nullptr},
          is_read)) {
    nb::raise_python_error();
  }
  return is_read;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // Python's caches keep `Affine`s until the process ends
  if (!ndtorch::import_numpy()) nb::raise_python_error();

  m.def("enable_to_torch", &ndtorch::enable_to_torch);
  m.def(
      "enable_to_numpy", [](nb::tuple dicts) { return ndtorch::enable_to_numpy(dicts.ptr()); },
      "accelerators"_a);
  m.def("enable_owners", &ndtorch::enable_owners);
  m.def("set_dtypes", &set_dtypes, "rows"_a);
  m.def("watch", &ndtorch::watch, "active"_a);
  m.def("accelerate", &accelerate, "name"_a, "module"_a, "slow"_a, "inside"_a, "doc"_a);
  m.def(
      "share", [](nb::handle array) { return none_if_null(ndtorch::share(array.ptr())); },
      "array"_a);
  m.def(
      "alias",
      [](nb::handle tensor, bool writable) {
        return none_if_null(ndtorch::alias(tensor.ptr(), writable));
      },
      "tensor"_a, "writable"_a);
  m.def(
      "has_owner", [](nb::handle tensor) { return ndtorch::has_owner(tensor.ptr()); }, "tensor"_a);
  m.def("const_data_ptr", &const_data_ptr, "tensor"_a);

  m.def(
      "set_thread_count", [](nb::callable count) { ndtorch::set_thread_count(count.ptr()); },
      "get_num_threads"_a);
  m.def("level", [] { return ndtorch::kernels().level; });
  m.def("fresh", &fresh, "shape"_a, "scalar_type"_a, "blocks"_a.none() = nb::none());
  m.def(
      "copy",
      [](nb::handle target, nb::handle source, bool exact) {
        return done(ndtorch::copy_array(target.ptr(), source.ptr(), exact));
      },
      "target"_a, "source"_a, "exact"_a);
  m.def("survey", &survey, "arrays"_a);
  m.def(
      "stack_plain",
      [](nb::handle arrays) {
        PyObject* tensor = ndtorch::stack_plain_arrays(arrays.ptr());
        if (tensor == nullptr && PyErr_Occurred() != nullptr) nb::raise_python_error();
        return none_if_null(tensor);
      },
      "arrays"_a.none());
  m.def(
      "stack",
      [](nb::handle target, nb::tuple sources, nb::handle padding) {
        PyObject* item = padding.is_none() ? nullptr : padding.ptr();
        return done(ndtorch::stack_arrays(target.ptr(), sources.ptr(), item));
      },
      "target"_a, "sources"_a, "padding"_a.none());
  nb::class_<ndtorch::Affine>(m, "Affine");
  m.def("affine", &affine, "channels"_a, "divisor"_a, "factor"_a, "mean"_a, "std"_a);
  m.def(
      "fill_planes",
      [](nb::handle target, nb::handle pixels, bool is_interleaved, const ndtorch::Affine& steps) {
        return done(ndtorch::fill_planes(target.ptr(), pixels.ptr(), is_interleaved, steps));
      },
      "target"_a, "pixels"_a, "is_interleaved"_a, "steps"_a);
  m.def(
      "fill_pixels",
      [](nb::handle target, nb::handle planes, const ndtorch::Affine& steps) {
        return done(ndtorch::fill_pixels(target.ptr(), planes.ptr(), steps));
      },
      "target"_a, "planes"_a, "steps"_a);

  ndtorch::bind_batches(m);

  nb::class_<ndtorch::OpenFile>(m, "OpenFile")
      .def(nb::init<int>(), "descriptor"_a)
      .def("close", &ndtorch::OpenFile::close);

  m.def("dlpack_facts", &dlpack_facts, "capsule"_a.none());
  m.def("map_private", &map_private, "path"_a, "offset"_a, "nbytes"_a, "device"_a, "inode"_a);
  m.def("map_shared", &map_shared, "path"_a, "offset"_a, "nbytes"_a, "device"_a, "inode"_a);
  m.def("mapping_at", &mapping_at, "address"_a);

  m.def(
      "read_file",
      [](int file, uint64_t offset, nb::handle target, int threads) {
        return had_all(ndtorch::read_file(file, offset, target.ptr(), threads));
      },
      "file"_a, "offset"_a, "target"_a, "threads"_a);
  m.def(
      "read_transposed",
      [](int file, uint64_t offset, uint64_t step, uint64_t item, int64_t rows, int64_t columns,
         nb::handle target, int threads) {
        const ndtorch::Columns wanted{offset, step, item, rows, columns};
        return had_all(ndtorch::read_transposed(file, wanted, target.ptr(), threads));
      },
      "file"_a, "offset"_a, "step"_a, "item"_a, "rows"_a, "columns"_a, "target"_a, "threads"_a);
  m.def(
      "copy_file",
      [](int source, uint64_t offset, int target, uint64_t at, uint64_t nbytes, int threads) {
        return had_all(ndtorch::copy_file(source, offset, target, at, nbytes, threads));
      },
      "source"_a, "offset"_a, "target"_a, "at"_a, "nbytes"_a, "threads"_a);
  m.def(
      "write_runs",
      [](int file, uint64_t offset, uint64_t step, nb::handle source, int64_t count, int threads) {
        had_all(ndtorch::write_runs(file, offset, step, source.ptr(), count, threads));
      },
      "file"_a, "offset"_a, "step"_a, "source"_a, "count"_a, "threads"_a);
  m.def("start_writeback", &ndtorch::start_writeback, "file"_a, "offset"_a, "nbytes"_a);
  m.def("reserve", &reserve, "file"_a, "nbytes"_a);
  m.def("read_rows", &read_rows, "file"_a, "offset"_a, "step"_a, "nbytes"_a, "rows"_a, "target"_a);
  m.def("announce_file", &announce_file, "file"_a, "offset"_a, "step"_a, "nbytes"_a, "rows"_a);
  m.def("read_rows_of_files", &read_files, "files"_a, "offsets"_a, "nbytes"_a, "of_files"_a,
        "rows"_a, "places"_a, "target"_a);
  m.def("announce_files", &announce_files, "files"_a, "offsets"_a, "nbytes"_a, "of_files"_a,
        "rows"_a);
  m.def("read_equal_files", &read_equal_files, "paths"_a, "header"_a, "target"_a, "threads"_a);
}
