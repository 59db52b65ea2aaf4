#include "file_calls.h"

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
