// Rows in pieces that Python opens when they are wanted, such as maps of the shards of a data set.
#pragma once

#include <Python.h>

#include <optional>
#include <vector>

#include "pieces.h"
#include "without_gil.h"

namespace ndtorch {

enum class Holding {
  kDone,
  kNotMemory,  // a shard cannot be had as memory
  kError,      // with an exception set
};

class Shards {
 public:
  // `open(number)` gives `(owner, address, path, descriptor, device, inode, end)`: what keeps the
  // memory, where its first row is, and the file that it is a map of, as in `PieceFile`; or None.
  // `check(owner)` is asked where such a file is not found, and raises if the memory must not be
  // touched. More than `most` are open only while they are held.
  Shards(std::vector<int64_t> starts, int64_t row_nbytes, PyObject* open, PyObject* check,
         int64_t most);
  ~Shards();  // under the GIL
  Shards(const Shards&) = delete;
  Shards& operator=(const Shards&) = delete;

  const Pieces& pieces() const { return pieces_; }

  // The shards of the first of some rows, of as many as may be held at a time.
  Touched touched(const int64_t* rows, int64_t count) const;

  // Holds these, after it has opened those that were not and looked at the files of all.
  Holding hold(const Touched& touched, const int64_t* rows, int64_t offset, WithoutGil& released,
               FileSizes& sizes, std::optional<HeldRows>& held);

 private:
  bool open(int64_t number, bool& is_memory);   // which is held then
  bool check(const std::vector<int64_t>& odd);  // both under the GIL, false with an exception set

  Pieces pieces_;
  PyObject* open_;
  PyObject* check_;
  int64_t most_;
};

}  // namespace ndtorch
