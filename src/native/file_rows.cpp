#include "file_rows.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <new>
#include <vector>

namespace ndtorch {
namespace {

constexpr uint64_t kReadAtOnce = uint64_t{2} << 20;
// Reading what lies between two rows costs a disk less than to be asked twice.
constexpr uint64_t kNear = uint64_t{16} << 10;

uint64_t place_of(const FileRows& rows, int64_t index) {
  return rows.offset + static_cast<uint64_t>(index) * rows.step;
}

// Reads all of it, or says how much there was.
uint64_t read_some(int file, uint64_t offset, char* target, uint64_t nbytes, int& number) {
  uint64_t done = 0;
  while (done < nbytes) {
    const ssize_t count =
        pread(file, target + done, nbytes - done, static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      number = count < 0 ? errno : 0;
      break;
    }
    done += static_cast<uint64_t>(count);
  }
  return done;
}

// Whether a few of the rows are in memory: then the others are too, most likely, and to ask for
// each would cost as much as reading it.
[[maybe_unused]] bool are_cached(int file, const FileRows& rows) {
#if defined(RWF_NOWAIT)
  constexpr int64_t kLookedAt = 4;
  for (int64_t i = 0; i < std::min(kLookedAt, rows.count); ++i) {
    const int64_t index = rows.indices[i * rows.count / std::min(kLookedAt, rows.count)];
    char byte;
    const iovec part{&byte, 1};
    const auto last = place_of(rows, index) + rows.nbytes - 1;
    if (preadv2(file, &part, 1, static_cast<off_t>(last), RWF_NOWAIT) != 1) return false;
  }
  return true;
#else
  return false;
#endif
}

bool follows(int64_t one, int64_t other) {
  return static_cast<uint64_t>(other) == static_cast<uint64_t>(one) + 1;
}

char* row_of(void* target, int64_t place, uint64_t nbytes) {
  return static_cast<char*>(target) + static_cast<uint64_t>(place) * nbytes;
}

// Where rows that are read by one call begin, and where they go.
struct Run {
  int file;
  uint64_t offset;
  char* target;
};

// Reads rows, those of one run at once; whether a row goes on with the run of the one before it,
// and what a run is that begins with a row, the caller knows.
template <typename GoesOn, typename RunOf>
Outcome read_runs(int64_t count, uint64_t row, Interrupt interrupt, FileFailure& failure,
                  int64_t& place, GoesOn goes_on, RunOf run_of) {
  const auto per_read =
      static_cast<int64_t>(std::max<uint64_t>(kReadAtOnce / std::max<uint64_t>(row, 1), 1));
  return parallel_for(count, per_read, 1, interrupt, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t next = begin + 1;
      while (next < end && goes_on(next)) ++next;
      const uint64_t nbytes = static_cast<uint64_t>(next - begin) * row;
      const Run run = run_of(begin);
      const uint64_t done = read_some(run.file, run.offset, run.target, nbytes, failure.number);
      if (done < nbytes) {
        place = begin + static_cast<int64_t>(done / row);
        return false;
      }
      begin = next;
    }
    return true;
  });
}

}  // namespace

Outcome read_rows(int file, const FileRows& rows, void* target, Interrupt interrupt,
                  FileFailure& failure, int64_t& place) {
  return read_runs(
      rows.count, rows.nbytes, interrupt, failure, place,
      [&](int64_t i) {
        return rows.step == rows.nbytes && follows(rows.indices[i - 1], rows.indices[i]);
      },
      [&](int64_t i) {
        return Run{file, place_of(rows, rows.indices[i]), row_of(target, i, rows.nbytes)};
      });
}

Outcome read_rows(const ScatteredRows& rows, void* target, Interrupt interrupt,
                  FileFailure& failure, int64_t& place) {
  return read_runs(
      rows.count, rows.nbytes, interrupt, failure, place,
      [&](int64_t i) {
        return rows.of_files[i - 1] == rows.of_files[i] &&
               follows(rows.indices[i - 1], rows.indices[i]) &&
               follows(rows.places[i - 1], rows.places[i]);
      },
      [&](int64_t i) {
        const ScatteredRows::File& file = rows.files[static_cast<size_t>(rows.of_files[i])];
        return Run{file.number, file.offset + static_cast<uint64_t>(rows.indices[i]) * rows.nbytes,
                   row_of(target, rows.places[i], rows.nbytes)};
      });
}

bool announce_rows([[maybe_unused]] int file, [[maybe_unused]] const FileRows& rows) {
#if defined(POSIX_FADV_WILLNEED)
  if (are_cached(file, rows)) return false;
  std::vector<int64_t> sorted;
  try {
    sorted.assign(rows.indices, rows.indices + rows.count);
  } catch (const std::bad_alloc&) {
    return true;  // it was advice
  }
  std::sort(sorted.begin(), sorted.end());
  for (size_t i = 0; i < sorted.size();) {
    const uint64_t begin = place_of(rows, sorted[i]);
    uint64_t end = begin + rows.nbytes;
    for (++i; i < sorted.size() && place_of(rows, sorted[i]) <= end + kNear; ++i) {
      end = std::max(end, place_of(rows, sorted[i]) + rows.nbytes);
    }
    posix_fadvise(file, static_cast<off_t>(begin), static_cast<off_t>(end - begin),
                  POSIX_FADV_WILLNEED);
  }
  return true;
#else
  return false;
#endif
}

bool announce_rows(const ScatteredRows& rows) {
  std::vector<std::vector<int64_t>> indices;
  try {
    indices.resize(rows.files.size());
    for (int64_t i = 0; i < rows.count; ++i) {
      indices[static_cast<size_t>(rows.of_files[i])].push_back(rows.indices[i]);
    }
  } catch (const std::bad_alloc&) {
    return true;
  }
  bool is_read = false;
  for (size_t i = 0; i < indices.size(); ++i) {
    const auto count = static_cast<int64_t>(indices[i].size());
    is_read |= announce_rows(rows.files[i].number, {indices[i].data(), count, rows.files[i].offset,
                                                    rows.nbytes, rows.nbytes});
  }
  return is_read;
}

}  // namespace ndtorch
