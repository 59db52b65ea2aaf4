// What Python calls to read and copy files: buffers, the GIL and exceptions around file_io.h.
#pragma once

#include <Python.h>

#include <cstdint>

#include "file_io.h"

namespace ndtorch {

// What a call did; an error has its exception set.
enum class Moved { kDone, kEndsEarly, kError };

// Fill a writable buffer.
Moved read_file(int file, uint64_t offset, PyObject* target, int threads);
Moved read_transposed(int file, const Columns& wanted, PyObject* target, int threads);

Moved copy_file(int source, uint64_t offset, int target, uint64_t at, uint64_t nbytes, int threads);

// Writes the runs that a buffer has, `count` of one length.
Moved write_runs(int file, uint64_t offset, uint64_t step, PyObject* source, int64_t count,
                 int threads);

// How many files of a tuple of names, as bytes, were `header` and a row of the buffer; -1 is an
// error.
int64_t read_equal_files(PyObject* paths, PyObject* header, PyObject* target, int threads);

}  // namespace ndtorch
