#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string_view>
#if defined(__linux__)
#include <sys/sysmacros.h>
#endif

#ifndef MAP_NORESERVE
#define MAP_NORESERVE 0
#endif

namespace ndtorch {

namespace {

constexpr size_t kAlignment = 64;  // a cache line, and torch's own alignment
constexpr size_t kHugePage = size_t{1} << 21;
// Up to here glibc's malloc recycles what was freed, and memory that has been touched is faster
// than any fresh page.
constexpr size_t kMapFrom = size_t{1} << 25;
constexpr size_t kAdviseFrom = size_t{1} << 22;  // as NumPy

size_t round_up(size_t nbytes, size_t unit) { return (nbytes + unit - 1) / unit * unit; }

// Maps at a multiple of a huge page, or nullptr: mapped with one to spare, and cut on both sides.
void* map_aligned(size_t length) {
  size_t spare;
  if (__builtin_add_overflow(length, kHugePage, &spare)) return nullptr;
  void* raw = mmap(nullptr, spare, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto start = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = round_up(start, kHugePage);
  if (aligned > start) munmap(raw, aligned - start);
  const size_t tail = kHugePage - (aligned - start);
  if (tail > 0) munmap(reinterpret_cast<void*>(aligned + length), tail);
  return reinterpret_cast<void*>(aligned);
}

// Advice: where it is refused nothing is wrong.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] size_t nbytes) {
#ifdef MADV_HUGEPAGE
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = round_up(reinterpret_cast<uintptr_t>(data), page);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + nbytes) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

}  // namespace

Block allocate(size_t nbytes) {
  if (nbytes > PTRDIFF_MAX - kHugePage) return {nullptr, nullptr, 0};
  if (nbytes >= kMapFrom) {
    const size_t length = round_up(nbytes, static_cast<size_t>(sysconf(_SC_PAGESIZE)));
    void* data = map_aligned(length);
    if (data != nullptr) ask_for_huge_pages(data, length);
    return {data, data, length};
  }
  void* start = std::malloc(nbytes + kAlignment);
  if (start == nullptr) return {nullptr, nullptr, 0};
  void* data = reinterpret_cast<void*>(round_up(reinterpret_cast<uintptr_t>(start), kAlignment));
  if (nbytes >= kAdviseFrom) ask_for_huge_pages(data, nbytes);
  return {data, start, 0};
}

void release(const Block& block) {
  if (block.length > 0) {
    munmap(block.start, block.length);
  } else {
    std::free(block.start);
  }
}

std::optional<Mapping> map_file(const char* path, uint64_t offset, uint64_t nbytes, FileId id,
                                Sharing sharing) {
  uint64_t end;
  if (nbytes == 0 || __builtin_add_overflow(offset, nbytes, &end)) return std::nullopt;
  // A name that became a FIFO must not block the open.
  const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return std::nullopt;
  struct stat status;
  std::optional<Mapping> mapping;
  if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
      static_cast<uint64_t>(status.st_dev) == id.device &&
      static_cast<uint64_t>(status.st_ino) == id.inode &&
      static_cast<uint64_t>(status.st_size) >= end) {
    const uint64_t lead = offset % static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const size_t length = nbytes + lead;
    const bool is_private = sharing == Sharing::kPrivate;
    void* start = mmap(nullptr, length, is_private ? PROT_READ | PROT_WRITE : PROT_READ,
                       is_private ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED, fd,
                       static_cast<off_t>(offset - lead));
    if (start != MAP_FAILED) mapping = {static_cast<char*>(start) + lead, start, length};
  }
  close(fd);
  return mapping;
}

void unmap(const Mapping& mapping) { munmap(mapping.start, mapping.length); }

#if defined(__linux__)
namespace {

// The kernel writes a line feed in a name as \012 and leaves all else as it is.
std::string unescape(std::string_view name) {
  constexpr std::string_view kLineFeed = "\\012";
  std::string result;
  for (size_t i = 0; i < name.size();) {
    const bool escaped = name.substr(i, kLineFeed.size()) == kLineFeed;
    result += escaped ? '\n' : name[i];
    i += escaped ? kLineFeed.size() : 1;
  }
  return result;
}

}  // namespace

std::optional<FileMapping> mapping_at(uint64_t address) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    uint64_t start, end, offset, inode;
    unsigned device_major, device_minor;
    char access[5];
    int name_at = -1;
    const int fields =
        std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n",
                    &start, &end, access, &offset, &device_major, &device_minor, &inode, &name_at);
    if (fields != 7 || address < start || address >= end) continue;
    const std::string_view name = std::string_view(line).substr(static_cast<size_t>(name_at));
    // A file whose own name ends like a deleted one's is taken for deleted; that is the safe side.
    if (!name.starts_with('/') || name.ends_with(" (deleted)") || inode == 0) return std::nullopt;
    return FileMapping{.path = unescape(name),
                       .offset = offset + (address - start),
                       .id = {makedev(device_major, device_minor), inode},
                       .nbytes = end - address,
                       .shared = access[3] == 's',
                       .writable = access[1] == 'w'};
  }
  return std::nullopt;
}
#else
std::optional<FileMapping> mapping_at(uint64_t) { return std::nullopt; }
#endif

}  // namespace ndtorch
