// Reading and copying open files by several threads. Knows no Python; a failure says where it was.
#pragma once

#include <cstdint>
#include <vector>

#include "threads.h"

namespace ndtorch {

// A descriptor that is closed with whoever has it, by no Python code: a Ctrl-C would be lost in it.
class OpenFile {
 public:
  explicit OpenFile(int file) : file_(file) {}
  ~OpenFile() { close(); }
  OpenFile(const OpenFile&) = delete;
  OpenFile& operator=(const OpenFile&) = delete;

  void close();

 private:
  int file_;
};

// What stopped the work: an error number of the system, or 0 where the file ended before it should.
struct FileFailure {
  int number = 0;
};

// Fills memory with the bytes of a file from `offset` on. kStopped comes with a failure.
Outcome read_file(int file, uint64_t offset, void* target, uint64_t nbytes, int threads,
                  Interrupt interrupt, FileFailure& failure);

// Columns of a file of which some rows are wanted.
struct Columns {
  uint64_t offset;  // of the first wanted item of the first column
  uint64_t step;    // bytes from a column to the next
  uint64_t item;    // bytes of an item: 1, 2, 4, 8 or 16
  int64_t rows;     // that are wanted of each column
  int64_t columns;
};

// Fills memory with those rows, one after the other. kStopped comes with a failure.
Outcome read_transposed(int file, const Columns& wanted, void* target, int threads,
                        Interrupt interrupt, FileFailure& failure);

// Copies bytes from file to file in the kernel, and has them written to the disk meanwhile. The
// number of a failure is that of copy_file_range(2); nothing was copied where it is EXDEV or so.
Outcome copy_file(int source, uint64_t offset, int target, uint64_t at, uint64_t nbytes,
                  int threads, Interrupt interrupt, FileFailure& failure);

// Writes `count` runs of memory that follow on each other, `step` bytes from one to the next.
// kStopped comes with a failure.
Outcome write_runs(int file, uint64_t offset, uint64_t step, const void* source, uint64_t nbytes,
                   int64_t count, int threads, Interrupt interrupt, FileFailure& failure);

// Has the kernel begin to write a range to the disk, and does not wait for it.
void start_writeback(int file, uint64_t offset, uint64_t nbytes);

// Sets space aside behind the end of a file without making it longer. Returns an error number, 0
// also where the file system cannot do that.
int reserve(int file, uint64_t nbytes);

// Reads files that are `header` and then `nbytes`, and nothing more, each into its row of memory.
// Returns how many of the first were such; the next is missing, unreadable or different.
int64_t read_equal_files(const std::vector<const char*>& paths, const char* header,
                         uint64_t header_nbytes, void* target, uint64_t nbytes, int threads,
                         Interrupt interrupt, Outcome& outcome);

}  // namespace ndtorch
