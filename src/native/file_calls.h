// What Python calls to read and copy files: buffers, the GIL and exceptions around file_io.h.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "file_io.h"
#include "file_rows.h"

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

// Fills a writable buffer with rows of a file, whose numbers another buffer has, as int64. Gives
// how many were read, fewer where the file ends early; -1 is an error.
int64_t read_rows(int file, FileRows rows, PyObject* indices, PyObject* target);

// The same of several files: their descriptors and where in each row 0 is; for each row its file,
// its number there and its place in the buffer.
struct RowsOfFiles {
  std::vector<int> files;
  std::vector<uint64_t> offsets;
  uint64_t nbytes;  // of a row
  PyObject *of_files, *indices, *places;
};
int64_t read_rows(const RowsOfFiles& wanted, PyObject* target);

// Tells the kernel of rows that will be read soon; false is an error.
bool announce_rows(int file, FileRows rows, PyObject* indices);
// The same; places are nothing to it. Says whether there were any that are not in memory already.
bool announce_rows(const RowsOfFiles& wanted, bool& is_read);

// How many files of a tuple of names, as bytes, were `header` and a row of the buffer; -1 is an
// error.
int64_t read_equal_files(PyObject* paths, PyObject* header, PyObject* target, int threads);

}  // namespace ndtorch
