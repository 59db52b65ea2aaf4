// Rows that lie in several pieces of memory, such as maps of files: which row is in which piece,
// and where. Pieces come and go, one that somebody holds stays. No Python here.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "gather.h"

namespace ndtorch {

// The file that a piece is a map of, or was read from.
struct PieceFile {
  std::string path;
  int descriptor;  // by which it was open once: a shorter way to it, as long as it is
  uint64_t device, inode;
  int64_t end;  // bytes that it has to have
};

// How long files are, each asked for once.
class FileSizes {
 public:
  // -1 where neither the descriptor nor the path leads to the file any more.
  int64_t of(const PieceFile& file);

  int64_t count() const { return static_cast<int64_t>(sizes_.size()); }

 private:
  struct Size {
    uint64_t device;
    int64_t nbytes;
  };
  std::unordered_map<uint64_t, Size> sizes_;  // by inode
};

struct Piece {
  const char* first;  // its first row
  PieceFile file;
  void* owner;  // what keeps the memory
  bool is_map = true;
};

// The pieces that the first of some rows are in.
struct Touched {
  std::vector<int64_t> pieces;   // each once
  std::vector<int32_t> of_rows;  // for each row, which of these
};

class Pieces {
 public:
  // `starts`: the row that each begins with, and after these the number of all rows; ascending from
  // 0, at most 2**31 of them.
  Pieces(std::vector<int64_t> starts, int64_t row_nbytes);
  ~Pieces();  // nobody holds one; owners are the caller's
  Pieces(const Pieces&) = delete;
  Pieces& operator=(const Pieces&) = delete;

  int64_t count() const { return static_cast<int64_t>(slots_.size()); }
  int64_t rows() const { return starts_.back(); }
  int64_t row_nbytes() const { return row_nbytes_; }

  // Bytes from row 0 of all to a row, modulo 2**64: shards that are never opened may claim any
  // number of rows.
  uint64_t behind(int64_t row) const {
    return static_cast<uint64_t>(row) * static_cast<uint64_t>(row_nbytes_);
  }

  bool begin_as(const Pieces& other) const { return starts_ == other.starts_; }

  int64_t find(int64_t row) const;

  // Ends before the row with which there would be more than `most` pieces.
  Touched touched(const int64_t* rows, int64_t count, int64_t most) const;

  // Any thread may hold one that is there; false where it is not.
  bool hold(int64_t piece) const;
  void let_go(int64_t piece) const;

  // Of one that the caller holds: where row 0 of all would be if it had the rows before its own
  // too; what keeps it.
  uint64_t address(int64_t piece) const;
  void* owner(int64_t piece) const { return slot(piece).piece->owner; }

  // Those that the caller holds whose files are not found, or are shorter than they have to be.
  // Of maps each is looked at: to touch what a file has lost would end the process. Of the others
  // that many, in turn: there is no harm in what is noticed later.
  std::vector<int64_t> not_whole(const std::vector<int64_t>& held, int64_t looks,
                                 FileSizes& sizes) const;
  bool is_map(int64_t piece) const { return slot(piece).piece->is_map; }

  // By one thread at a time. `put` takes a piece that is not there, and holds it for the caller.
  // `take_out` gives the owner of one that nobody holds, the one used longest ago, where more than
  // `kept` are there; nullptr where there is none.
  void put(int64_t number, Piece piece);
  void* take_out(int64_t kept);
  int64_t open_count() const { return static_cast<int64_t>(open_.size()); }

 private:
  struct Slot {
    std::atomic<int32_t> holders{kAbsent};
    std::atomic<uint32_t> used{0};
    std::unique_ptr<Piece> piece;  // belongs to the one thread while nobody can hold it
  };
  static constexpr int32_t kAbsent = -1;

  Slot& slot(int64_t piece) const { return slots_[static_cast<size_t>(piece)]; }
  bool is_whole(int64_t piece, FileSizes& sizes) const;

  std::vector<int64_t> starts_;
  int64_t row_nbytes_;
  int shift_ = 0;
  std::vector<int32_t> first_;  // the piece of row i << shift_
  mutable std::vector<Slot> slots_;
  std::vector<int64_t> open_;  // of the one thread
  mutable std::atomic<uint32_t> clock_{0};
  mutable std::atomic<uint64_t> turn_{0};  // of those that need not all be looked at
};

// Pieces that are held, and where some rows are in them.
class HeldRows {
 public:
  HeldRows() = default;
  ~HeldRows();
  HeldRows(HeldRows&& other) noexcept;
  HeldRows& operator=(HeldRows&&) = delete;

  // Of rows of which every piece is held already, which this lets go of in the end. Places are
  // `offset` bytes behind where the rows begin.
  HeldRows(const Pieces& pieces, const Touched& touched, const int64_t* rows, int64_t offset);

  const char* origin() const { return origin_; }
  int64_t count() const { return static_cast<int64_t>(places_.size()); }

  // The rows as those of an array that begins at the origin; their numbers are bytes.
  Rows rows(int64_t begin, int64_t count, int64_t dst_stride) const {
    return {places_.data() + begin, count, 1, dst_stride};
  }

 private:
  const Pieces* pieces_ = nullptr;
  std::vector<int64_t> held_;
  const char* origin_ = nullptr;
  std::vector<int64_t> places_;
};

// Tells the kernel of rows that will be read soon, as `announce_rows` does, of the pieces that are
// there.
void announce_present(const Pieces& pieces, const int64_t* rows, int64_t count, RowExtent row,
                      bool may_skip);

}  // namespace ndtorch
