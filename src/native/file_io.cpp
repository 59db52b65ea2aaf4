#include "file_io.h"

#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "kernels.h"

namespace ndtorch {
namespace {

constexpr uint64_t kReadAtOnce = uint64_t{2} << 20;  // a huge page
constexpr uint64_t kCopyAtOnce = uint64_t{4} << 20;
constexpr uint64_t kBuffer = uint64_t{256} << 10;  // fits the cache of one core
constexpr uint64_t kLongestRun = uint64_t{64} << 10;
constexpr uint64_t kAlone = uint64_t{4} << 20;  // bytes up to which one thread is enough
// Reading what lies between two runs costs less than another call up to about so many bytes.
constexpr uint64_t kReadThrough = 2048;

// Of several threads that fail, one is heard.
class Failures {
 public:
  void set(int number) {
    int none = kNone;
    number_.compare_exchange_strong(none, number);
  }
  void get(FileFailure& failure) const {
    const int number = number_.load();
    if (number != kNone) failure.number = number;
  }

 private:
  static constexpr int kNone = -1;
  std::atomic<int> number_{kNone};
};

bool read_all(int file, uint64_t offset, void* target, uint64_t nbytes, Failures& failures) {
  auto* to = static_cast<char*>(target);
  while (nbytes > 0) {
    const ssize_t count = pread(file, to, nbytes, static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      failures.set(count < 0 ? errno : 0);
      return false;
    }
    to += count;
    offset += static_cast<uint64_t>(count);
    nbytes -= static_cast<uint64_t>(count);
  }
  return true;
}

int threads_of(uint64_t nbytes, int threads) { return nbytes <= kAlone ? 1 : threads; }

// Reads runs of some columns into a buffer, and turns them into rows.
class Transposer {
 public:
  Transposer(int file, const Columns& wanted, void* target, Failures& failures)
      : file_(file),
        wanted_(wanted),
        rows_at_once_(std::min(wanted.rows, static_cast<int64_t>(kLongestRun / wanted.item))),
        target_(static_cast<char*>(target)),
        failures_(failures) {}

  int64_t columns_at_once() const {
    return std::max<int64_t>(static_cast<int64_t>(kBuffer / pitch(rows_at_once_)), 1);
  }

  bool operator()(int64_t begin, int64_t end) const {
    const int64_t columns = std::min(columns_at_once(), end - begin);
    const std::unique_ptr<char[]> buffer(
        new (std::nothrow) char[static_cast<uint64_t>(columns) * pitch(rows_at_once_)]);
    if (buffer == nullptr) {
      failures_.set(ENOMEM);
      return false;
    }
    const auto row_nbytes = static_cast<int64_t>(wanted_.item) * wanted_.columns;
    const auto transpose = kernels().transpose[log2_size(static_cast<int64_t>(wanted_.item))];
    for (int64_t column = begin; column < end; column += columns) {
      const int64_t width = std::min(columns, end - column);
      for (int64_t row = 0; row < wanted_.rows; row += rows_at_once_) {
        const int64_t height = std::min(rows_at_once_, wanted_.rows - row);
        if (!read(buffer.get(), row, height, column, width)) return false;
        char* to = target_ + row * row_nbytes + column * static_cast<int64_t>(wanted_.item);
        transpose(to, row_nbytes, buffer.get(), static_cast<int64_t>(pitch(height)),
                  static_cast<size_t>(height), static_cast<size_t>(width));
      }
    }
    return true;
  }

 private:
  uint64_t run(int64_t rows) const { return static_cast<uint64_t>(rows) * wanted_.item; }
  bool reads_through(int64_t rows) const { return wanted_.step - run(rows) <= kReadThrough; }

  // Bytes from a column to the next, in the buffer.
  uint64_t pitch(int64_t rows) const { return reads_through(rows) ? wanted_.step : run(rows); }

  bool read(char* buffer, int64_t row, int64_t height, int64_t column, int64_t width) const {
    uint64_t from = wanted_.offset + static_cast<uint64_t>(column) * wanted_.step + run(row);
    if (reads_through(height)) {  // up to the last wanted byte: the file may end there
      const uint64_t nbytes = static_cast<uint64_t>(width - 1) * wanted_.step + run(height);
      return read_all(file_, from, buffer, nbytes, failures_);
    }
    for (int64_t i = 0; i < width; ++i, from += wanted_.step, buffer += run(height)) {
      if (!read_all(file_, from, buffer, run(height), failures_)) return false;
    }
    return true;
  }

  int file_;
  const Columns& wanted_;
  int64_t rows_at_once_;
  char* target_;
  Failures& failures_;
};

// Whether a file is the header, the row and nothing more; fills the row.
bool read_equal_file(const char* path, const char* header, uint64_t header_nbytes, char* found,
                     void* row, uint64_t nbytes) {
  // A fifo would block the open; it has no places to read at.
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) return false;
  char more;
  const iovec parts[] = {{found, header_nbytes}, {row, nbytes}, {&more, 1}};
  ssize_t count;
  do {
    count = preadv(file, parts, 3, 0);
  } while (count < 0 && errno == EINTR);
  close(file);
  return count == static_cast<ssize_t>(header_nbytes + nbytes) &&
         std::memcmp(found, header, header_nbytes) == 0;
}

}  // namespace

void OpenFile::close() {
  const int file = std::exchange(file_, -1);
  if (file >= 0) ::close(file);
}

Outcome read_file(int file, uint64_t offset, void* target, uint64_t nbytes, int threads,
                  Interrupt interrupt, FileFailure& failure) {
  // Chunks end where huge pages do, so that no two threads wait for the same one to be cleared.
  const uint64_t lead = std::min(nbytes, -reinterpret_cast<uintptr_t>(target) % kReadAtOnce);
  Failures failures;
  const auto bounds = [&](int64_t chunk) {
    return chunk == 0 ? 0
                      : std::min(nbytes, lead + (static_cast<uint64_t>(chunk) - 1) * kReadAtOnce);
  };
  const auto chunks = static_cast<int64_t>(1 + (nbytes - lead + kReadAtOnce - 1) / kReadAtOnce);
  const Outcome outcome = parallel_for(
      chunks, 1, threads_of(nbytes, threads), interrupt, [&](int64_t begin, int64_t end) {
        const uint64_t from = bounds(begin);
        return read_all(file, offset + from, static_cast<char*>(target) + from, bounds(end) - from,
                        failures);
      });
  failures.get(failure);
  return outcome;
}

Outcome read_transposed(int file, const Columns& wanted, void* target, int threads,
                        Interrupt interrupt, FileFailure& failure) {
  Failures failures;
  const Transposer transpose(file, wanted, target, failures);
  const auto items = static_cast<uint64_t>(wanted.rows) * static_cast<uint64_t>(wanted.columns);
  const Outcome outcome =
      parallel_for(wanted.columns, transpose.columns_at_once(),
                   threads_of(items * wanted.item, threads), interrupt, transpose);
  failures.get(failure);
  return outcome;
}

Outcome copy_file(int source, uint64_t offset, int target, uint64_t at, uint64_t nbytes,
                  int threads, Interrupt interrupt, FileFailure& failure) {
#if defined(__linux__)
  Failures failures;
  const auto copy = [&](int64_t begin, int64_t end) {
    auto from = static_cast<off_t>(offset) + begin, to = static_cast<off_t>(at) + begin;
    for (auto left = static_cast<size_t>(end - begin); left > 0;) {
      const ssize_t count = copy_file_range(source, &from, target, &to, left, 0);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) {
        failures.set(count < 0 ? errno : 0);
        return false;
      }
      left -= static_cast<size_t>(count);
    }
    start_writeback(target, at + static_cast<uint64_t>(begin), static_cast<uint64_t>(end - begin));
    return true;
  };
  const Outcome outcome =
      parallel_for(static_cast<int64_t>(nbytes), static_cast<int64_t>(kCopyAtOnce),
                   threads_of(nbytes, threads), interrupt, copy);
  failures.get(failure);
  return outcome;
#else
  failure.number = ENOSYS;
  return Outcome::kStopped;
#endif
}

Outcome write_runs(int file, uint64_t offset, uint64_t step, const void* source, uint64_t nbytes,
                   int64_t count, int threads, Interrupt interrupt, FileFailure& failure) {
  Failures failures;
  const auto write = [&](int64_t begin, int64_t end) {
    for (auto i = static_cast<uint64_t>(begin); i < static_cast<uint64_t>(end); ++i) {
      const char* from = static_cast<const char*>(source) + i * nbytes;
      for (uint64_t done = 0; done < nbytes;) {
        const auto at = static_cast<off_t>(offset + i * step + done);
        const ssize_t written = pwrite(file, from + done, nbytes - done, at);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) {
          failures.set(written < 0 ? errno : EIO);
          return false;
        }
        done += static_cast<uint64_t>(written);
      }
    }
    return true;
  };
  const int64_t at_once = std::max<int64_t>(static_cast<int64_t>(kReadAtOnce / (nbytes + 1)), 1);
  const uint64_t all = static_cast<uint64_t>(count) * nbytes;
  const Outcome outcome = parallel_for(count, at_once, threads_of(all, threads), interrupt, write);
  failures.get(failure);
  return outcome;
}

void start_writeback([[maybe_unused]] int file, [[maybe_unused]] uint64_t offset,
                     [[maybe_unused]] uint64_t nbytes) {
#if defined(__linux__)
  sync_file_range(file, static_cast<off64_t>(offset), static_cast<off64_t>(nbytes),
                  SYNC_FILE_RANGE_WRITE);
#endif
}

int reserve([[maybe_unused]] int file, [[maybe_unused]] uint64_t nbytes) {
#if defined(__linux__)
  while (nbytes > 0 && fallocate(file, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(nbytes)) != 0) {
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG) return errno;
    if (errno != EINTR) return 0;
  }
#endif
  return 0;
}

int64_t read_equal_files(const std::vector<const char*>& paths, const char* header,
                         uint64_t header_nbytes, void* target, uint64_t nbytes, int threads,
                         Interrupt interrupt, Outcome& outcome) {
  const auto count = static_cast<int64_t>(paths.size());
  std::atomic<int64_t> odd{count};
  // All before the first odd one are read, whatever order the threads go in.
  const auto read = [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> found(new (std::nothrow) char[header_nbytes + 1]);
    for (int64_t i = begin; i < end && i < odd.load(std::memory_order_relaxed); ++i) {
      const auto at = static_cast<size_t>(i);
      char* row = static_cast<char*>(target) + at * nbytes;
      if (found != nullptr &&
          read_equal_file(paths[at], header, header_nbytes, found.get(), row, nbytes)) {
        continue;
      }
      int64_t lowest = odd.load();
      while (i < lowest && !odd.compare_exchange_weak(lowest, i)) {
      }
    }
    return true;
  };
  constexpr int64_t kFilesAtOnce = 16;
  outcome = parallel_for(count, kFilesAtOnce, threads, interrupt, read);
  return odd.load();
}

}  // namespace ndtorch
