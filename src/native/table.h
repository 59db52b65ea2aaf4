// The arrays that a loader takes rows from, and whole batches made of them: the rows' numbers, the
// memory and the gathers of several batches in one go without the GIL, which is asked for once.
#pragma once

#include <Python.h>

#include <atomic>
#include <optional>
#include <vector>

#include "gather.h"
#include "kernels.h"
#include "permutation.h"
#include "recycler.h"
#include "shards.h"

namespace ndtorch {

// Where an array lies and what becomes of its rows. It holds the array; of rows in shards this is
// one that has such rows, and they begin `offset` bytes behind those of the shards.
struct Column {
  PyObject* source;
  PyObject* shards_object;  // held too, or nullptr
  Shards* shards;
  size_t begins_as;  // the first column whose shards begin with the same rows
  int64_t offset;
  const char* data;
  int64_t nbytes, length;
  Dtype src_dtype, dst_dtype;
  bool src_is_swapped;
  std::vector<int64_t> shape, strides;          // of the source
  std::vector<int64_t> dst_shape, dst_strides;  // of a batch, the strides in items; [0] is a row's
  std::optional<Affine> affine;
  bool is_interleaved;
  bool is_mapped;
};

// Rows in the order in which they are wanted, as counts for one batch after the other: their
// numbers, or the places of an order.
struct Wanted {
  const int64_t* numbers = nullptr;
  const Permutation* order = nullptr;
  std::vector<int64_t> begins;  // of the places, for each batch
  std::vector<int64_t> counts;
};

class Table {
 public:
  Table() = default;
  ~Table();  // under the GIL
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;

  // Adds an array whose rows become rows of that dtype, or pictures. `is_mapped`: a file may have
  // to be read for them. False, with no exception set, where they have no items, more bytes
  // than can be counted, or cannot be gathered here.
  bool add(PyObject* source, Dtype dtype, const Affine* affine, bool is_interleaved,
           bool is_mapped);

  // The same of rows in shards, that are as those of the source; this is mapped.
  bool add_shards(PyObject* source, Dtype dtype, const Affine* affine, bool is_interleaved,
                  PyObject* shards_object, Shards* shards, int64_t offset);

  // A list with a list of a tensor for each column for each batch, after the kernel has been told
  // of the rows that come `later`. nullptr with no exception set where torch wants to see what
  // becomes of tensors, or a shard is no memory, and with one set for a row that is none.
  PyObject* gather(const Wanted& wanted, const Wanted& later, Recycler* recycler) const;

 private:
  struct Task;
  bool fill(Task& task) const;
  bool hold(Task& task, const int64_t* numbers, int64_t& count) const;
  void gather_stretch(Task& task, const int64_t* numbers, int64_t begin, int64_t end) const;
  void announce(const Wanted& later) const;
  PyObject* wrap(Task& task) const;

  std::vector<Column> columns_;
  int64_t row_nbytes_ = 0;  // that are read and written for one row of each column
  bool has_mapped_ = false, has_shards_ = false;
  // Whether pages that were said to be in memory had to be read all the same: the kernel does not
  // tell everybody.
  mutable std::atomic<bool> is_misled_{false};
};

}  // namespace ndtorch
