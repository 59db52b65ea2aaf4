#include "gather_calls.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <variant>
#include <vector>

#include "arrays.h"
#include "dtype_table.h"
#include "gather.h"
#include "without_gil.h"

namespace ndtorch {
namespace {

namespace nb = nanobind;

using Gather = std::variant<RowGather, PictureGather>;

// Gathers of less are done before another thread could make use of the GIL.
constexpr int64_t kHoldGilBelow = 1 << 16;

bool refuse(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return false;
}

bool check_numbers(PyObject* indices) {
  return is_row_numbers(indices) || refuse("no rows to be gathered");
}

bool refuse_row(int64_t row, int64_t length) {
  PyErr_Format(PyExc_IndexError, "row %lld of %lld", static_cast<long long>(row),
               static_cast<long long>(length));
  return false;
}

// The rows that an index array names, each one of the source's; their places are dense.
bool take_rows(PyObject* indices, PyArrayObject* source, Rows& rows) {
  if (!check_numbers(indices)) return false;
  if (PyArray_NDIM(source) == 0) return refuse("no rows to be gathered");
  auto* numbers = reinterpret_cast<PyArrayObject*>(indices);
  rows.indices = static_cast<const int64_t*>(PyArray_DATA(numbers));
  rows.count = PyArray_DIM(numbers, 0);
  rows.src_stride = PyArray_STRIDE(source, 0);
  const int64_t length = PyArray_DIM(source, 0);
  const int64_t odd = first_outside(rows.indices, rows.count, length);
  return odd == rows.count || refuse_row(rows.indices[odd], length);
}

// The rows of a job, and where row 0 of them would be.
bool take_rows_of_job(PyObject* given, PyArrayObject* source, Rows& rows, const void*& first) {
  first = PyArray_DATA(source);
  RowsInShards* in_shards;
  if (!nb::try_cast(nb::handle(given), in_shards)) return take_rows(given, source, rows);
  if (PyArray_NDIM(source) == 0) return refuse("no rows to be gathered");
  const HeldRows& held = in_shards->held;
  rows = held.rows(0, held.count(), 0);
  first = held.origin();
  return true;
}

bool add_job(PyObject* job, std::vector<Gather>& gathers, int64_t& nbytes) {
  if (!PyTuple_Check(job) || PyTuple_GET_SIZE(job) != 5) return refuse("not a job of a gather");
  PyObject* target = PyTuple_GET_ITEM(job, 0);
  PyObject* source = PyTuple_GET_ITEM(job, 1);
  if (!is_target(target) || !is_source(source)) return refuse("not arrays to gather");
  auto* to = reinterpret_cast<PyArrayObject*>(target);
  auto* from = reinterpret_cast<PyArrayObject*>(source);
  Rows rows{};
  const void* first;
  if (!take_rows_of_job(PyTuple_GET_ITEM(job, 2), from, rows, first)) return false;
  if (PyArray_NDIM(to) == 0 || PyArray_DIM(to, 0) != rows.count || !PyArray_IS_C_CONTIGUOUS(to)) {
    return refuse("not a place for each row");
  }
  const int64_t items = PyArray_SIZE(to);
  if (items == 0) return true;
  rows.dst_stride = PyArray_NBYTES(to) / rows.count;
  const int64_t row_items = items / rows.count;
  int64_t source_items = 1;
  for (int i = 1; i < PyArray_NDIM(from); ++i) source_items *= PyArray_DIM(from, i);
  if (row_items != source_items) return refuse("rows of other shapes");
  nbytes += 2 * PyArray_NBYTES(to);
  PyObject* steps = PyTuple_GET_ITEM(job, 3);
  if (steps != Py_None) {
    Affine* affine;
    if (!nb::try_cast(nb::handle(steps), affine) || PyArray_NDIM(from) != 4 ||
        PyArray_DIM(from, 3) != affine->channels) {
      return refuse("shapes of pixels and planes differ");
    }
    PixelsRequest picture{};
    picture.shape[0] = 1;
    std::copy_n(PyArray_DIMS(from) + 1, 3, picture.shape + 1);
    std::copy_n(PyArray_STRIDES(from), 4, picture.src_strides);
    picture.src = first;
    picture.src_dtype = *dtype_of(PyArray_DESCR(from));
    picture.src_is_swapped = is_swapped(from);
    picture.dst = PyArray_DATA(to);
    picture.dst_dtype = *dtype_of(PyArray_DESCR(to));
    picture.is_interleaved = PyObject_IsTrue(PyTuple_GET_ITEM(job, 4)) == 1;
    picture.affine = *affine;
    gathers.emplace_back(PictureGather(picture, rows));
    return true;
  }
  if (PyArray_NDIM(to) != PyArray_NDIM(from)) return refuse("rows of other shapes");
  CopyRequest row = copy_request(from);
  row.ndim -= 1;
  row.shape += 1;
  row.src_strides += 1;
  row.src = first;
  row.dst = PyArray_DATA(to);
  row.dst_strides = PyArray_STRIDES(to) + 1;
  row.dst_dtype = *dtype_of(PyArray_DESCR(to));
  if (!std::equal(row.shape, row.shape + row.ndim, PyArray_DIMS(to) + 1)) {
    return refuse("rows of other shapes");
  }
  gathers.emplace_back(RowGather(row, rows));
  return true;
}

}  // namespace

bool is_row_numbers(PyObject* object) {
  if (!PyArray_Check(object)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(object);
  return PyArray_NDIM(array) == 1 && PyArray_TYPE(array) == NPY_INT64 && !is_swapped(array) &&
         PyArray_IS_C_CONTIGUOUS(array) && PyArray_ISALIGNED(array);
}

bool gather(PyObject* jobs) {
  if (!PyTuple_Check(jobs)) return refuse("not a tuple of jobs");
  std::vector<Gather> gathers;  // addresses alone: other threads may change an array's shape
  const Py_ssize_t count = PyTuple_GET_SIZE(jobs);
  gathers.reserve(static_cast<size_t>(count));
  int64_t nbytes = 0;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!add_job(PyTuple_GET_ITEM(jobs, i), gathers, nbytes)) return false;
  }
  const auto run = [&](Interrupt interrupt) {
    return parallel_for(
        static_cast<int64_t>(gathers.size()), 1, 1, interrupt, [&](int64_t begin, int64_t end) {
          for (; begin < end; ++begin) {
            std::visit([](const auto& one) { one.run(); }, gathers[static_cast<size_t>(begin)]);
          }
          return true;
        });
  };
  if (nbytes < kHoldGilBelow) return run(Interrupt{}) == Outcome::kDone;
  WithoutGil released;
  return run(released.interrupt()) != Outcome::kInterrupted;
}

bool announce(PyObject* source, PyObject* rows) {
  if (!PyArray_Check(source)) return refuse("not an array");
  auto* from = reinterpret_cast<PyArrayObject*>(source);
  Rows wanted{};
  if (!take_rows(rows, from, wanted)) return false;
  const RowExtent row = row_extent(PyArray_DATA(from), PyArray_ITEMSIZE(from),
                                   static_cast<size_t>(PyArray_NDIM(from) - 1),
                                   PyArray_DIMS(from) + 1, PyArray_STRIDES(from) + 1);
  WithoutGil released;
  announce_rows(row, wanted, true);
  return true;
}

std::optional<RowsInShards> hold_rows(nb::handle shards, PyObject* rows, int64_t offset) {
  if (!check_numbers(rows)) return {};
  auto& held_in = nb::cast<Shards&>(shards);
  auto* array = reinterpret_cast<PyArrayObject*>(rows);
  const auto* numbers = static_cast<const int64_t*>(PyArray_DATA(array));
  const int64_t count = PyArray_DIM(array, 0), length = held_in.pieces().rows();
  const int64_t odd = first_outside(numbers, count, length);
  if (odd < count) {
    refuse_row(numbers[odd], length);
    return {};
  }
  std::optional<HeldRows> held;
  {
    WithoutGil released;
    FileSizes sizes;
    held_in.hold(held_in.touched(numbers, count), numbers, offset, released, sizes, held);
  }
  if (!held) return {};
  return RowsInShards{nb::borrow(shards), std::move(*held)};
}

bool announce_in_shards(const Shards& shards, PyObject* rows) {
  if (!check_numbers(rows)) return false;
  auto* array = reinterpret_cast<PyArrayObject*>(rows);
  const auto* numbers = static_cast<const int64_t*>(PyArray_DATA(array));
  const int64_t count = PyArray_DIM(array, 0), length = shards.pieces().rows();
  const int64_t odd = first_outside(numbers, count, length);
  if (odd < count) return refuse_row(numbers[odd], length);
  WithoutGil released;
  announce_present(shards.pieces(), numbers, count, {nullptr, shards.pieces().row_nbytes()}, true);
  return true;
}

}  // namespace ndtorch
