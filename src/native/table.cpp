#include "table.h"

#include <sys/resource.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "arrays.h"
#include "bridge.h"
#include "dtype_table.h"
#include "fresh.h"
#include "gather_calls.h"
#include "without_gil.h"

namespace ndtorch {
namespace {

// Batches of less are made before another thread could make use of the GIL.
constexpr int64_t kHoldGilBelow = 1 << 16;

// Of so many rows one may have to be waited for all the same.
constexpr int64_t kFewFaults = 8;

int64_t product(const int64_t* sizes, size_t count) {
  return std::accumulate(sizes, sizes + count, int64_t{1}, std::multiplies<>());
}

void set_dense(std::vector<int64_t>& strides, const std::vector<int64_t>& shape) {
  strides.resize(shape.size());
  int64_t items = 1;
  for (size_t i = shape.size(); i-- > 0; items *= shape[i]) strides[i] = items;
}

int64_t dst_row_bytes(const Column& column) {
  return column.dst_strides[0] * item_size(column.dst_dtype);
}

// `src` is where row 0 is.
void gather_column(const Column& column, const char* src, const Rows& rows, char* dst) {
  if (column.affine) {
    PixelsRequest picture{.shape = {1, column.shape[1], column.shape[2], column.shape[3]},
                          .src = src,
                          .src_dtype = column.src_dtype,
                          .src_is_swapped = column.src_is_swapped,
                          .dst = dst,
                          .dst_dtype = column.dst_dtype,
                          .is_interleaved = column.is_interleaved,
                          .affine = *column.affine};
    std::copy_n(column.strides.data(), 4, picture.src_strides);
    PictureGather(picture, rows).run();
    return;
  }
  int64_t strides[kMaxDims];
  const size_t ndim = column.shape.size() - 1;
  for (size_t i = 0; i < ndim; ++i) {
    strides[i] = column.dst_strides[i + 1] * item_size(column.dst_dtype);
  }
  RowGather({.ndim = static_cast<int>(ndim),
             .shape = column.shape.data() + 1,
             .dst = dst,
             .dst_strides = strides,
             .dst_dtype = column.dst_dtype,
             .src = src,
             .src_strides = column.strides.data() + 1,
             .src_dtype = column.src_dtype,
             .src_is_swapped = column.src_is_swapped,
             .exact = false},
            rows)
      .run();
}

int64_t rows_of(const Wanted& wanted) {
  return std::accumulate(wanted.counts.begin(), wanted.counts.end(), int64_t{0});
}

// `computed` holds them where an order has to be asked.
const int64_t* numbers_of(const Wanted& wanted, std::vector<int64_t>& computed) {
  if (wanted.order == nullptr) return wanted.numbers;
  computed.resize(static_cast<size_t>(rows_of(wanted)));
  int64_t* out = computed.data();
  for (size_t i = 0; i < wanted.counts.size(); ++i) {
    wanted.order->fill(wanted.begins[i], wanted.begins[i] + wanted.counts[i], out);
    out += wanted.counts[i];
  }
  return computed.data();
}

// How often this thread has waited for a page of a file.
int64_t reads_from_disk() {
#if defined(__linux__)
  rusage usage{};
  if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_majflt;
#endif
  return 0;
}

RowExtent extent_of(const Column& column, const char* row) {
  return row_extent(row, item_size(column.src_dtype), column.shape.size() - 1,
                    column.shape.data() + 1, column.strides.data() + 1);
}

}  // namespace

// What has been made of a call's batches.
struct Table::Task {
  const Wanted& wanted;
  Recycler* recycler;
  WithoutGil* released = nullptr;
  std::vector<Lease> leases = {};  // of the columns of the first batch, of the second, ...
  size_t wrapped = 0;              // so many of them are tensors'
  std::vector<std::optional<HeldRows>> held = {};  // for each column, of the stretch being gathered
  Holding holding = Holding::kDone;
  int64_t odd_row = 0, odd_length = -1;

  ~Task() {
    while (wrapped < leases.size()) release(leases[wrapped++]);
  }
};

Table::~Table() {
  for (Column& column : columns_) {
    Py_DECREF(column.source);
    Py_XDECREF(column.shards_object);
  }
}

bool Table::add(PyObject* object, Dtype dtype, const Affine* affine, bool is_interleaved,
                bool is_mapped) {
  if (!is_source(object)) return false;
  auto* source = reinterpret_cast<PyArrayObject*>(object);
  const int ndim = PyArray_NDIM(source);
  if (ndim == 0 || !can_cast(dtype, dtype)) return false;
  Column column{.source = object,
                .data = static_cast<const char*>(PyArray_DATA(source)),
                .nbytes = PyArray_NBYTES(source),
                .length = PyArray_DIM(source, 0),
                .src_dtype = *dtype_of(PyArray_DESCR(source)),
                .dst_dtype = dtype,
                .src_is_swapped = is_swapped(source),
                .shape = {PyArray_DIMS(source), PyArray_DIMS(source) + ndim},
                .strides = {PyArray_STRIDES(source), PyArray_STRIDES(source) + ndim},
                .is_interleaved = is_interleaved,
                .is_mapped = is_mapped};
  column.dst_shape = column.shape;
  column.dst_shape[0] = 1;
  if (product(column.dst_shape.data(), column.dst_shape.size()) == 0) return false;
  set_dense(column.dst_strides, column.dst_shape);
  if (affine != nullptr) {
    if (ndim != 4 || column.shape[3] != affine->channels) return false;
    column.affine = *affine;
    const int64_t height = column.shape[1], width = column.shape[2], channels = column.shape[3];
    const int64_t items = height * width * channels;
    column.dst_shape = {1, channels, height, width};
    if (is_interleaved) {
      column.dst_strides = {items, 1, width * channels, channels};
    } else {
      set_dense(column.dst_strides, column.dst_shape);
    }
  }
  int64_t src_row, dst_row, both;  // of a broadcast array they may be more than there are numbers
  if (__builtin_mul_overflow(product(column.shape.data() + 1, column.shape.size() - 1),
                             item_size(column.src_dtype), &src_row) ||
      __builtin_mul_overflow(column.dst_strides[0], item_size(dtype), &dst_row) ||
      __builtin_add_overflow(src_row, dst_row, &both) ||
      __builtin_add_overflow(row_nbytes_, both, &both)) {
    return false;
  }
  columns_.push_back(std::move(column));
  Py_INCREF(object);
  row_nbytes_ = both;
  has_mapped_ = has_mapped_ || is_mapped;
  return true;
}

bool Table::add_shards(PyObject* source, Dtype dtype, const Affine* affine, bool is_interleaved,
                       PyObject* shards_object, Shards* shards, int64_t offset) {
  if (!add(source, dtype, affine, is_interleaved, true)) return false;
  Column& column = columns_.back();
  const auto same = std::find_if(columns_.begin(), columns_.end() - 1, [&](const Column& other) {
    return other.shards != nullptr && other.shards->pieces().begin_as(shards->pieces());
  });
  column.begins_as = static_cast<size_t>(same - columns_.begin());
  column.shards_object = Py_NewRef(shards_object);
  column.shards = shards;
  column.offset = offset;
  column.length = shards->pieces().rows();
  has_shards_ = true;
  return true;
}

PyObject* Table::gather(const Wanted& wanted, const Wanted& later, Recycler* recycler) const {
  if (!can_wrap() || has_dispatch_modes() || in_transform()) return nullptr;
  for (const Column& column : columns_) {
    auto* source = reinterpret_cast<PyArrayObject*>(column.source);
    if (PyArray_DATA(source) != column.data || PyArray_NBYTES(source) != column.nbytes) {
      PyErr_SetString(PyExc_ValueError, "an array was resized while a loader had it");
      return nullptr;
    }
  }
  Task task{.wanted = wanted, .recycler = recycler};
  bool is_filled;
  int64_t nbytes;
  const bool is_long =
      __builtin_mul_overflow(rows_of(wanted), row_nbytes_, &nbytes) || nbytes >= kHoldGilBelow;
  if (!is_long && !has_mapped_) {
    is_filled = fill(task);
  } else {
    WithoutGil released;
    task.released = &released;
    announce(wanted);  // another thread may have said so, but not have come that far yet
    announce(later);
    is_filled = fill(task);
  }
  if (is_filled) return wrap(task);
  if (task.holding != Holding::kDone) return nullptr;
  if (task.odd_length < 0) return PyErr_NoMemory();
  return PyErr_Format(PyExc_IndexError, "row %lld of %lld", static_cast<long long>(task.odd_row),
                      static_cast<long long>(task.odd_length));
}

// Without the GIL. False where a row is none of a column's, or there is no memory.
bool Table::fill(Task& task) const {
  const int64_t rows = rows_of(task.wanted);
  std::vector<int64_t> computed;
  const int64_t* numbers = numbers_of(task.wanted, computed);
  for (const Column& column : columns_) {
    const int64_t odd = first_outside(numbers, rows, column.length);
    if (odd == rows) continue;
    task.odd_row = numbers[odd];
    task.odd_length = column.length;
    return false;
  }
  task.leases.reserve(task.wanted.counts.size() * columns_.size());
  for (const int64_t count : task.wanted.counts) {
    for (const Column& column : columns_) {
      int64_t nbytes;
      if (__builtin_mul_overflow(count, dst_row_bytes(column), &nbytes)) return false;
      const Lease lease = task.recycler->take(static_cast<size_t>(nbytes));
      if (lease.block.data == nullptr) return false;
      task.leases.push_back(lease);
    }
  }
  for (int64_t begin = 0; begin < rows;) {
    int64_t count = rows - begin;
    if (has_shards_ && !hold(task, numbers + begin, count)) return false;
    gather_stretch(task, numbers, begin, begin + count);
    begin += count;
  }
  return true;
}

// Holds the shards of rows, of fewer than `count` where they are in very many.
bool Table::hold(Task& task, const int64_t* numbers, int64_t& count) const {
  task.held.clear();  // before others are held
  task.held.resize(columns_.size());
  FileSizes sizes;
  std::vector<Touched> touched(columns_.size());
  for (size_t i = 0; i < columns_.size(); ++i) {
    const Column& column = columns_[i];
    if (column.shards == nullptr) continue;
    const Touched& found = touched[column.begins_as];
    if (column.begins_as == i) touched[i] = column.shards->touched(numbers, count);
    task.holding =
        column.shards->hold(found, numbers, column.offset, *task.released, sizes, task.held[i]);
    if (task.holding != Holding::kDone) return false;
    count = std::min(count, task.held[i]->count());
  }
  return true;
}

// Rows from one place to another of all that are wanted, which begin and end anywhere in batches.
void Table::gather_stretch(Task& task, const int64_t* numbers, int64_t begin, int64_t end) const {
  const Lease* leases = task.leases.data();
  int64_t first = 0;  // of a batch
  for (const int64_t size : task.wanted.counts) {
    const int64_t from = std::max(begin, first), to = std::min(end, first + size);
    for (size_t i = 0; i < columns_.size(); ++i, ++leases) {
      if (from >= to) continue;
      const Column& column = columns_[i];
      const int64_t row = dst_row_bytes(column), count = to - from;
      char* dst = static_cast<char*>(leases->block.data) + (from - first) * row;
      const int64_t faults = column.is_mapped ? reads_from_disk() : 0;
      if (column.shards != nullptr) {
        const HeldRows& held = *task.held[i];
        gather_column(column, held.origin(), held.rows(from - begin, count, row), dst);
      } else {
        gather_column(column, column.data, {numbers + from, count, column.strides[0], row}, dst);
      }
      if (column.is_mapped && reads_from_disk() - faults > count / kFewFaults) {
        is_misled_.store(true);
      }
    }
    first += size;
  }
}

void Table::announce(const Wanted& later) const {
  if (later.counts.empty() || !has_mapped_) return;
  std::vector<int64_t> computed;
  const int64_t* numbers = numbers_of(later, computed);
  const int64_t rows = rows_of(later);
  for (const Column& column : columns_) {
    if (!column.is_mapped || first_outside(numbers, rows, column.length) < rows) continue;
    const bool may_skip = !is_misled_.load();
    if (column.shards != nullptr) {  // to open one may take a while
      const char* behind = reinterpret_cast<const char*>(static_cast<intptr_t>(column.offset));
      announce_present(column.shards->pieces(), numbers, rows, extent_of(column, behind), may_skip);
    } else {
      announce_rows(extent_of(column, column.data), {numbers, rows, column.strides[0], 0},
                    may_skip);
    }
  }
}

PyObject* Table::wrap(Task& task) const {
  const std::vector<int64_t>& counts = task.wanted.counts;
  PyObject* batches = PyList_New(static_cast<Py_ssize_t>(counts.size()));
  for (size_t i = 0; batches != nullptr && i < counts.size(); ++i) {
    PyObject* leaves = PyList_New(static_cast<Py_ssize_t>(columns_.size()));
    if (leaves == nullptr) {
      Py_CLEAR(batches);
      break;
    }
    PyList_SET_ITEM(batches, static_cast<Py_ssize_t>(i), leaves);
    for (size_t c = 0; batches != nullptr && c < columns_.size(); ++c) {
      const Column& column = columns_[c];
      int64_t shape[kMaxDims];
      std::copy(column.dst_shape.begin(), column.dst_shape.end(), shape);
      shape[0] = counts[i];
      PyObject* tensor =
          wrap_block(task.leases[task.wrapped++], static_cast<int>(column.dst_shape.size()), shape,
                     column.dst_strides.data(), column.dst_dtype);
      if (tensor != nullptr) {
        PyList_SET_ITEM(leaves, static_cast<Py_ssize_t>(c), tensor);
      } else {
        Py_CLEAR(batches);
      }
    }
  }
  if (batches == nullptr && PyErr_Occurred() == nullptr) PyErr_NoMemory();
  return batches;
}

}  // namespace ndtorch
