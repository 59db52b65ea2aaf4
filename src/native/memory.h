// Memory for results, private mappings of files, and which file is mapped at an address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace ndtorch {

// Memory for a result, at a multiple of 64 bytes, not cleared.
struct Block {
  void* data;
  void* start;    // of what was allocated
  size_t length;  // of what was mapped; 0 where it is malloc's
};

// Large blocks lie on huge pages where the system has them: touching fresh memory page by page
// costs more than filling it. `data` is nullptr where there is no memory.
Block allocate(size_t nbytes);
void release(const Block& block);

// Which file an open descriptor or a mapping shows: names can change hands, these two do not.
struct FileId {
  uint64_t device;
  uint64_t inode;
};

// Bytes of a file in memory; `start` and `length` are what to give back to `unmap`.
struct Mapping {
  void* data;
  void* start;
  size_t length;
};

// What a mapping is for: to be written, which stays in this process, or to be read alone, which no
// limit of a process's own memory counts.
enum class Sharing { kPrivate, kReadOnly };

// Maps bytes of `path`. Nothing where the file is not `id`, is too short or cannot be opened, or
// where `nbytes` is 0.
std::optional<Mapping> map_file(const char* path, uint64_t offset, uint64_t nbytes, FileId id,
                                Sharing sharing);
void unmap(const Mapping& mapping);

struct FileMapping {
  std::string path;
  uint64_t offset;  // of the address, in the file
  FileId id;
  uint64_t nbytes;  // from the address to the end of the mapping
  bool shared;
  bool writable;
};

// Nothing for anonymous memory, a deleted file, and off Linux.
std::optional<FileMapping> mapping_at(uint64_t address);

}  // namespace ndtorch
