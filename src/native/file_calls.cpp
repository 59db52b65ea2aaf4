#include "file_calls.h"

#include <algorithm>
#include <cerrno>
#include <vector>

#include "without_gil.h"

namespace ndtorch {
namespace {

// The memory of an object while this lives, or none and an exception.
class Buffer {
 public:
  Buffer(PyObject* object, int flags) {
    held_ = PyObject_GetBuffer(object, &view_, flags | PyBUF_C_CONTIGUOUS) == 0;
  }
  ~Buffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  explicit operator bool() const { return held_; }
  void* data() const { return view_.buf; }
  uint64_t nbytes() const { return static_cast<uint64_t>(view_.len); }

 private:
  Py_buffer view_;
  bool held_;
};

template <typename Act>
Moved moved(Act act) {
  FileFailure failure;
  Outcome outcome;
  {
    WithoutGil released;
    outcome = act(released.interrupt(), failure);
  }
  if (outcome == Outcome::kDone) return Moved::kDone;
  if (outcome == Outcome::kInterrupted) return Moved::kError;
  if (failure.number == 0) return Moved::kEndsEarly;
  errno = failure.number;
  PyErr_SetFromErrno(PyExc_OSError);
  return Moved::kError;
}

Moved refuse(const char* what) {
  PyErr_SetString(PyExc_ValueError, what);
  return Moved::kError;
}

}  // namespace

Moved read_file(int file, uint64_t offset, PyObject* target, int threads) {
  const Buffer buffer(target, PyBUF_WRITABLE);
  if (!buffer) return Moved::kError;
  return moved([&](Interrupt interrupt, FileFailure& failure) {
    return read_file(file, offset, buffer.data(), buffer.nbytes(), threads, interrupt, failure);
  });
}

Moved read_transposed(int file, const Columns& wanted, PyObject* target, int threads) {
  const Buffer buffer(target, PyBUF_WRITABLE);
  if (!buffer) return Moved::kError;
  const uint64_t item = wanted.item;
  const bool is_known = item == 1 || item == 2 || item == 4 || item == 8 || item == 16;
  if (!is_known || wanted.rows <= 0 || wanted.columns <= 0) return refuse("no such items");
  uint64_t run, nbytes;
  if (__builtin_mul_overflow(static_cast<uint64_t>(wanted.rows), item, &run) ||
      __builtin_mul_overflow(static_cast<uint64_t>(wanted.columns), run, &nbytes) ||
      nbytes != buffer.nbytes() || wanted.step < run) {
    return refuse("the buffer is of another size");
  }
  return moved([&](Interrupt interrupt, FileFailure& failure) {
    return read_transposed(file, wanted, buffer.data(), threads, interrupt, failure);
  });
}

Moved copy_file(int source, uint64_t offset, int target, uint64_t at, uint64_t nbytes,
                int threads) {
  return moved([&](Interrupt interrupt, FileFailure& failure) {
    return copy_file(source, offset, target, at, nbytes, threads, interrupt, failure);
  });
}

Moved write_runs(int file, uint64_t offset, uint64_t step, PyObject* source, int64_t count,
                 int threads) {
  const Buffer buffer(source, PyBUF_SIMPLE);
  if (!buffer) return Moved::kError;
  if (count <= 0 || buffer.nbytes() % static_cast<uint64_t>(count) != 0) {
    return refuse("the buffer is of another size");
  }
  const uint64_t nbytes = buffer.nbytes() / static_cast<uint64_t>(count);
  return moved([&](Interrupt interrupt, FileFailure& failure) {
    return write_runs(file, offset, step, buffer.data(), nbytes, count, threads, interrupt,
                      failure);
  });
}

namespace {

bool set_indices(const Buffer& numbers, FileRows& rows) {
  if (!numbers) return false;
  rows.indices = static_cast<const int64_t*>(numbers.data());
  rows.count = static_cast<int64_t>(numbers.nbytes() / sizeof(int64_t));
  return true;
}

// The numbers that a buffer has are each at least 0 and below a limit.
bool are_below(const Buffer& numbers, uint64_t limit) {
  const auto* begin = static_cast<const uint64_t*>(numbers.data());
  return std::all_of(begin, begin + numbers.nbytes() / sizeof(uint64_t),
                     [limit](uint64_t number) { return number < limit; });
}

bool set_files(const RowsOfFiles& wanted, const Buffer& of_files, const Buffer& indices,
               ScatteredRows& rows) {
  if (!of_files || !indices) return false;
  if (of_files.nbytes() != indices.nbytes() || wanted.files.size() != wanted.offsets.size() ||
      wanted.nbytes == 0 || !are_below(of_files, wanted.files.size())) {
    refuse("no such rows of files");
    return false;
  }
  for (size_t i = 0; i < wanted.files.size(); ++i) {
    rows.files.push_back({wanted.files[i], wanted.offsets[i]});
  }
  rows.of_files = static_cast<const int64_t*>(of_files.data());
  rows.indices = static_cast<const int64_t*>(indices.data());
  rows.count = static_cast<int64_t>(indices.nbytes() / sizeof(int64_t));
  rows.nbytes = wanted.nbytes;
  return true;
}

}  // namespace

int64_t read_rows(const RowsOfFiles& wanted, PyObject* target) {
  const Buffer of_files(wanted.of_files, PyBUF_SIMPLE), indices(wanted.indices, PyBUF_SIMPLE);
  ScatteredRows rows{};
  if (!set_files(wanted, of_files, indices, rows)) return -1;
  const Buffer places(wanted.places, PyBUF_SIMPLE);
  const Buffer buffer(target, PyBUF_WRITABLE);
  if (!places || !buffer) return -1;
  if (places.nbytes() != indices.nbytes() || !are_below(places, buffer.nbytes() / wanted.nbytes)) {
    refuse("the buffer is of another size");
    return -1;
  }
  rows.places = static_cast<const int64_t*>(places.data());
  int64_t place = rows.count;
  const Moved done = moved([&](Interrupt interrupt, FileFailure& failure) {
    return read_rows(rows, buffer.data(), interrupt, failure, place);
  });
  return done == Moved::kError ? -1 : place;
}

bool announce_rows(const RowsOfFiles& wanted, bool& is_read) {
  const Buffer of_files(wanted.of_files, PyBUF_SIMPLE), indices(wanted.indices, PyBUF_SIMPLE);
  ScatteredRows rows{};
  if (!set_files(wanted, of_files, indices, rows)) return false;
  const WithoutGil released;
  is_read = announce_rows(rows);
  return true;
}

int64_t read_rows(int file, FileRows rows, PyObject* indices, PyObject* target) {
  const Buffer numbers(indices, PyBUF_SIMPLE);
  if (!set_indices(numbers, rows)) return -1;
  const Buffer buffer(target, PyBUF_WRITABLE);
  if (!buffer) return -1;
  uint64_t nbytes;
  if (__builtin_mul_overflow(static_cast<uint64_t>(rows.count), rows.nbytes, &nbytes) ||
      nbytes != buffer.nbytes() || rows.nbytes == 0) {
    refuse("the buffer is of another size");
    return -1;
  }
  int64_t place = rows.count;
  const Moved done = moved([&](Interrupt interrupt, FileFailure& failure) {
    return read_rows(file, rows, buffer.data(), interrupt, failure, place);
  });
  return done == Moved::kError ? -1 : place;
}

bool announce_rows(int file, FileRows rows, PyObject* indices) {
  const Buffer numbers(indices, PyBUF_SIMPLE);
  if (!set_indices(numbers, rows)) return false;
  const WithoutGil released;
  announce_rows(file, rows);
  return true;
}

int64_t read_equal_files(PyObject* paths, PyObject* header, PyObject* target, int threads) {
  const Buffer start(header, PyBUF_SIMPLE);
  if (!start) return -1;
  const Buffer buffer(target, PyBUF_WRITABLE);
  if (!buffer) return -1;
  const Py_ssize_t count = PyTuple_Check(paths) ? PyTuple_GET_SIZE(paths) : 0;
  std::vector<const char*> names;
  for (Py_ssize_t i = 0; i < count; ++i) {
    char* name;  // lives as long as the tuple does
    if (PyBytes_AsStringAndSize(PyTuple_GET_ITEM(paths, i), &name, nullptr) != 0) return -1;
    names.push_back(name);
  }
  if (count == 0 || buffer.nbytes() % static_cast<uint64_t>(count) != 0) {
    refuse("the buffer is of another size");
    return -1;
  }
  const uint64_t row = buffer.nbytes() / static_cast<uint64_t>(count);
  Outcome outcome = Outcome::kDone;
  int64_t equal;
  {
    WithoutGil released;
    equal = read_equal_files(names, static_cast<const char*>(start.data()), start.nbytes(),
                             buffer.data(), row, threads, released.interrupt(), outcome);
  }
  return outcome == Outcome::kInterrupted ? -1 : equal;
}

}  // namespace ndtorch
