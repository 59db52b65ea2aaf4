// Gathers of NumPy arrays: checks what kernels trust, and releases the GIL for what is large.
#pragma once

#include <Python.h>
#include <nanobind/nanobind.h>

#include <optional>

#include "shards.h"

namespace ndtorch {

// Rows in shards, for a job.
struct RowsInShards {
  nanobind::object shards;
  HeldRows held;
};

// The first of some rows, whose numbers are an array: of as many shards as may be held at a time.
// Nothing where a shard is no memory, with no exception set, or with one.
std::optional<RowsInShards> hold_rows(nanobind::handle shards, PyObject* rows, int64_t offset);

// Tells the kernel that rows will be read soon, of the shards that are open.
bool announce_in_shards(const Shards& shards, PyObject* rows);

// Whether an object is an int64 array of one dimension that lies dense in memory.
bool is_row_numbers(PyObject* object);

// Does jobs one after the other on the calling thread, each a tuple of
//   target, source   arrays; the rows of the target, dense, are rows of the source
//   rows             int64 array of their numbers, one for each row of the target; or rows in
//                    shards, which are as those of the source
//   steps            None, or the `Affine` of pictures: the source is NHWC then
//   is_interleaved   whether pictures become NHWC too
// Every job is checked before the first is done. False with an exception set: IndexError where a
// row is none of the source's, and then nothing has been written.
bool gather(PyObject* jobs);

// Tells the kernel that rows of an array in a mapped file will be read soon. False as above.
bool announce(PyObject* source, PyObject* rows);

}  // namespace ndtorch
