// Rows of an array, picked by their numbers, one after the other into dense memory; cast, or scaled
// and normalised as pictures, on the way. No Python here.
#pragma once

#include <cstdint>

#include "copy.h"
#include "pictures.h"

namespace ndtorch {

// Which rows, and how far they lie from each other, in bytes. Every index is within the source.
struct Rows {
  const int64_t* indices;
  int64_t count;
  int64_t src_stride, dst_stride;
};

// The place of the first number that is no row of `length`; `count` where all are.
int64_t first_outside(const int64_t* numbers, int64_t count, int64_t length);

// A gather made ready: it keeps nothing of a request but addresses.
class RowGather {
 public:
  // `row` is one row: its source that of row 0, its target, which is dense, the first place.
  RowGather(const CopyRequest& row, const Rows& rows);

  void run() const;

 private:
  void move_rows(char* dst, int64_t begin, int64_t end) const;
  void move_columns(char* dst, int64_t begin, int64_t end) const;
  void convert_blocks() const;
  void convert_rows() const;

  StridedCopy job_;  // of row 0 to the first place
  Rows rows_;
  char* dst_;
  const char* src_;
  const char* first_;  // the lowest byte of row 0
  int64_t extent_;     // from there to its highest
  int64_t row_items_;
  int64_t column_stride_;      // from an item of a row to its next; of `is_columns_` only
  int64_t src_row_, dst_row_;  // bytes of a row
  Dtype src_dtype_, dst_dtype_;
  bool src_is_swapped_;
  bool is_dense_;    // a row's items follow each other
  bool is_columns_;  // they do not, but the rows lie closer to each other
};

// The same for pictures; `picture` is that of row 0, of one picture, and the first place.
class PictureGather {
 public:
  PictureGather(const PixelsRequest& picture, const Rows& rows) : picture_(picture), rows_(rows) {}

  void run() const;

 private:
  void run_blocks(int64_t nbytes) const;

  PixelsRequest picture_;
  Rows rows_;
};

// Where row 0 lies: its lowest byte, and how many bytes there are up to its highest.
struct RowExtent {
  const char* first;
  int64_t nbytes;
};
RowExtent row_extent(const void* row, int64_t itemsize, size_t ndim, const int64_t* shape,
                     const int64_t* strides);

// Whether the kernel says of a few of these rows of a mapped file that they are in memory.
constexpr int64_t kSampledRows = 16;
bool seem_in_memory(RowExtent row, const Rows& rows);

// Tells the kernel that these rows of a mapped file will be read soon; it reads ahead and this does
// not wait. `may_skip`: does nothing where the kernel says of a few of them that they are in
// memory, for to tell it costs more than to copy a short row.
void announce_rows(RowExtent row, const Rows& rows, bool may_skip);

}  // namespace ndtorch
