// Rows of an open file, picked by their numbers. Knows no Python; a failure says where it was.
#pragma once

#include <cstdint>
#include <vector>

#include "file_io.h"
#include "threads.h"

namespace ndtorch {

// Which rows, and where they are in the file.
struct FileRows {
  const int64_t* indices;
  int64_t count;
  uint64_t offset;  // of row 0
  uint64_t step;    // bytes from a row to the next
  uint64_t nbytes;  // of a row
};

// The same of several files, in which rows follow each other without a gap.
struct ScatteredRows {
  struct File {
    int number;       // its descriptor
    uint64_t offset;  // of its row 0
  };
  std::vector<File> files;
  const int64_t* of_files;  // for each row its file
  const int64_t* indices;   // its number there
  const int64_t* places;    // and where in the target it goes, as a row of that
  int64_t count;
  uint64_t nbytes;
};

// Fills memory with rows, one after the other; those that follow each other in the file by one call
// of the system. kStopped comes with a failure, and with the place of the row that it was at.
Outcome read_rows(int file, const FileRows& rows, void* target, Interrupt interrupt,
                  FileFailure& failure, int64_t& place);
Outcome read_rows(const ScatteredRows& rows, void* target, Interrupt interrupt,
                  FileFailure& failure, int64_t& place);

// Tells the kernel that these rows will be read soon; it reads ahead and this does not wait.
// False where a few of them say that they are all in memory.
bool announce_rows(int file, const FileRows& rows);
bool announce_rows(const ScatteredRows& rows);

}  // namespace ndtorch
