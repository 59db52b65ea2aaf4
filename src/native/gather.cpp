#include "gather.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace ndtorch {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kBlockBytes = 1 << 14;  // rows that are gathered before they are converted
// Rows are asked for this many bytes ahead of being copied: memory answers late, and the hardware
// cannot know which row comes next. Into the second cache, for the first has not so many requests
// open; of long rows the beginning, the hardware sees how they go on.
constexpr int64_t kAheadBytes = 1 << 13;
// Longer rows, where a batch of them exceeds what the caches keep for whoever reads it, are written
// past the caches: that saves reading the target's lines first.
constexpr int64_t kStreamRow = 12 << 10;
constexpr int64_t kStreamBytes = 4 << 20;

constexpr int64_t kColumnRows = 1 << 10;
constexpr int64_t kSmallPicture = 1 << 13;  // bytes: several are gathered, then converted

template <typename Item>
void move_items(char* dst, const char* src, const Rows& rows, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i, dst += sizeof(Item)) {
    std::memcpy(dst, src + rows.indices[i] * rows.src_stride, sizeof(Item));
  }
}

template <typename Item>
void move_tile_of(char* dst, const char* src, int64_t step, int64_t columns, const Rows& rows) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const char* from = src + rows.indices[i] * rows.src_stride;
    char* to = dst + i * rows.dst_stride;
    for (int64_t c = 0; c < columns; ++c) {
      std::memcpy(to + c * static_cast<int64_t>(sizeof(Item)), from + c * step, sizeof(Item));
    }
  }
}

void move_tile(char* dst, const char* src, int64_t step, int64_t columns, const Rows& rows,
               int64_t size) {
  struct Sixteen {
    uint64_t halves[2];
  };
  switch (size) {
    case 1:
      return move_tile_of<uint8_t>(dst, src, step, columns, rows);
    case 2:
      return move_tile_of<uint16_t>(dst, src, step, columns, rows);
    case 4:
      return move_tile_of<uint32_t>(dst, src, step, columns, rows);
    case 8:
      return move_tile_of<uint64_t>(dst, src, step, columns, rows);
    default:
      return move_tile_of<Sixteen>(dst, src, step, columns, rows);
  }
}

inline void prefetch(const char* row, int64_t nbytes) {
  for (int64_t at = 0; at < nbytes; at += kLine) __builtin_prefetch(row + at, 0, 2);
}

#if defined(__SSE2__)
void stream(char* dst, const char* src, int64_t nbytes) {
  const auto lead = static_cast<int64_t>(-reinterpret_cast<uintptr_t>(dst) & (kLine - 1));
  std::memcpy(dst, src, static_cast<size_t>(lead));
  int64_t at = lead;
  for (; at + kLine <= nbytes; at += kLine) {
    for (int64_t part = at; part < at + kLine; part += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(dst + part),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + part)));
    }
  }
  std::memcpy(dst + at, src + at, static_cast<size_t>(nbytes - at));
}

// Nobody may be told of the rows before they are where others see them.
void finish_stream() { _mm_sfence(); }
#else
void stream(char* dst, const char* src, int64_t nbytes) {
  std::memcpy(dst, src, static_cast<size_t>(nbytes));
}

void finish_stream() {}
#endif

}  // namespace

int64_t first_outside(const int64_t* numbers, int64_t count, int64_t length) {
  const auto is_outside = [length](int64_t row) {
    return static_cast<uint64_t>(row) >= static_cast<uint64_t>(length);
  };
  bool any = false;  // looked at all together first: without an exit the loop is a few instructions
  for (int64_t i = 0; i < count; ++i) any |= is_outside(numbers[i]);
  return any ? std::find_if(numbers, numbers + count, is_outside) - numbers : count;
}

RowGather::RowGather(const CopyRequest& row, const Rows& rows)
    : job_(row),
      rows_(rows),
      dst_(static_cast<char*>(row.dst)),
      src_(static_cast<const char*>(row.src)),
      row_items_(1),
      src_dtype_(row.src_dtype),
      dst_dtype_(row.dst_dtype),
      src_is_swapped_(row.src_is_swapped && item_size(part_of(row.src_dtype)) > 1),
      is_dense_(true) {
  const int64_t size = item_size(row.src_dtype);
  int64_t step = 0;  // along the innermost axis of more than one item
  bool is_even = true;
  for (int i = row.ndim; i-- > 0;) {
    if (row.shape[i] == 1) continue;
    if (step == 0) step = row.src_strides[i];
    is_even = is_even && row.src_strides[i] == step * row_items_;
    row_items_ *= row.shape[i];
  }
  is_dense_ = row_items_ <= 1 || (is_even && step == size);
  column_stride_ = step;
  // A line of the cache has items of several rows, and none of the same row.
  is_columns_ = !is_dense_ && is_even && std::abs(step) >= kLine &&
                std::abs(rows.src_stride) < kLine && rows.src_stride != 0;
  src_row_ = row_items_ * size;
  dst_row_ = row_items_ * item_size(row.dst_dtype);
  const RowExtent extent =
      row_extent(row.src, size, static_cast<size_t>(row.ndim), row.shape, row.src_strides);
  first_ = extent.first;
  extent_ = extent.nbytes;
}

void RowGather::run() const {
  if (rows_.count == 0 || row_items_ == 0) return;
  if ((is_dense_ || is_columns_) && src_dtype_ == dst_dtype_ && !src_is_swapped_) {
    move_rows(dst_, 0, rows_.count);
  } else if ((is_dense_ || is_columns_) && src_row_ <= kBlockBytes) {
    convert_blocks();
  } else {
    convert_rows();
  }
}

void RowGather::convert_rows() const {
  const int64_t ahead = std::max<int64_t>(1, kAheadBytes / extent_);
  const int64_t asked = std::min(extent_, kAheadBytes);
  StridedCopy job = job_;
  int64_t at = 0;  // the row that the job is at
  for (int64_t i = 0; i < rows_.count; ++i) {
    if (i + ahead < rows_.count) {
      prefetch(first_ + rows_.indices[i + ahead] * rows_.src_stride, asked);
    }
    job.move(i > 0 ? rows_.dst_stride : 0, (rows_.indices[i] - at) * rows_.src_stride);
    at = rows_.indices[i];
    job.run(0, job.units());
  }
}

// Copies rows as they are to places that follow each other.
void RowGather::move_rows(char* dst, int64_t begin, int64_t end) const {
  if (is_columns_) return move_columns(dst, begin, end);
  switch (src_row_) {
    case 1:
      return move_items<uint8_t>(dst, src_, rows_, begin, end);
    case 2:
      return move_items<uint16_t>(dst, src_, rows_, begin, end);
    case 4:
      return move_items<uint32_t>(dst, src_, rows_, begin, end);
    case 8:
      return move_items<uint64_t>(dst, src_, rows_, begin, end);
    default:
      break;
  }
  const int64_t ahead = std::max<int64_t>(1, kAheadBytes / src_row_);
  const int64_t asked = std::min(src_row_, kAheadBytes);
  const bool streams = src_row_ >= kStreamRow && (end - begin) * src_row_ >= kStreamBytes;
  for (int64_t i = begin; i < end; ++i, dst += src_row_) {
    if (i + ahead < end) prefetch(src_ + rows_.indices[i + ahead] * rows_.src_stride, asked);
    const char* src = src_ + rows_.indices[i] * rows_.src_stride;
    if (streams) {
      stream(dst, src, src_row_);
    } else {
      std::memcpy(dst, src, static_cast<size_t>(src_row_));
    }
  }
  if (streams) finish_stream();
}

// Some columns at a time: as many as fill a line of the target, of as many rows as the cache keeps
// the lines of.
void RowGather::move_columns(char* dst, int64_t begin, int64_t end) const {
  const int64_t size = item_size(src_dtype_);
  const int64_t width = std::max<int64_t>(1, kLine / size);
  for (; begin < end; begin += kColumnRows, dst += kColumnRows * src_row_) {
    const Rows part{rows_.indices + begin, std::min(kColumnRows, end - begin), rows_.src_stride,
                    src_row_};
    for (int64_t column = 0; column < row_items_; column += width) {
      const int64_t columns = std::min(width, row_items_ - column);
      move_tile(dst + column * size, src_ + column * column_stride_, column_stride_, columns, part,
                size);
    }
  }
}

// Short rows are put together first: converting one of a few items costs more than its items.
void RowGather::convert_blocks() const {
  alignas(kLine) char block[kBlockBytes];
  const int64_t per_block = kBlockBytes / src_row_;
  const int64_t src_size = item_size(src_dtype_), dst_size = item_size(dst_dtype_);
  for (int64_t begin = 0; begin < rows_.count; begin += per_block) {
    const int64_t end = std::min(rows_.count, begin + per_block);
    move_rows(block, begin, end);
    const int64_t items = (end - begin) * row_items_;
    const StridedCopy job({.ndim = 1,
                           .shape = &items,
                           .dst = dst_ + begin * dst_row_,
                           .dst_strides = &dst_size,
                           .dst_dtype = dst_dtype_,
                           .src = block,
                           .src_strides = &src_size,
                           .src_dtype = src_dtype_,
                           .src_is_swapped = src_is_swapped_,
                           .exact = false});
    job.run(0, job.units());
  }
}

void PictureGather::run() const {
  const int64_t* strides = picture_.src_strides;
  int64_t nbytes = item_size(picture_.src_dtype);
  bool is_dense = true;
  for (int i = 4; i-- > 1; nbytes *= picture_.shape[i]) {
    is_dense = is_dense && (picture_.shape[i] == 1 || strides[i] == nbytes);
  }
  if (is_dense && nbytes <= kSmallPicture) return run_blocks(nbytes);
  for (int64_t i = 0; i < rows_.count; ++i) {
    if (is_dense && i + 1 < rows_.count) {
      prefetch(static_cast<const char*>(picture_.src) + rows_.indices[i + 1] * rows_.src_stride,
               kAheadBytes);
    }
    PixelsRequest one = picture_;
    one.src = static_cast<const char*>(picture_.src) + rows_.indices[i] * rows_.src_stride;
    one.dst = static_cast<char*>(picture_.dst) + i * rows_.dst_stride;
    pixels_to_planes(one, 1, Interrupt{});
  }
}

// Small pictures are put together first: making one ready costs as much as its pixels.
void PictureGather::run_blocks(int64_t nbytes) const {
  alignas(kLine) char block[2 * kSmallPicture];
  const int64_t per_block = static_cast<int64_t>(sizeof block) / nbytes;
  const int64_t ahead = std::max<int64_t>(1, kAheadBytes / nbytes);
  const auto* source = static_cast<const char*>(picture_.src);
  PixelsRequest some = picture_;
  some.src = block;
  some.src_strides[0] = nbytes;
  for (int64_t begin = 0; begin < rows_.count; begin += per_block) {
    some.shape[0] = std::min(per_block, rows_.count - begin);
    for (int64_t i = begin; i < begin + some.shape[0]; ++i) {
      if (i + ahead < rows_.count) {
        prefetch(source + rows_.indices[i + ahead] * rows_.src_stride, nbytes);
      }
      std::memcpy(block + (i - begin) * nbytes, source + rows_.indices[i] * rows_.src_stride,
                  static_cast<size_t>(nbytes));
    }
    some.dst = static_cast<char*>(picture_.dst) + begin * rows_.dst_stride;
    pixels_to_planes(some, 1, Interrupt{});
  }
}

RowExtent row_extent(const void* row, int64_t itemsize, size_t ndim, const int64_t* shape,
                     const int64_t* strides) {
  int64_t low = 0, high = itemsize;
  for (size_t i = 0; i < ndim; ++i) {
    if (shape[i] == 0) return {static_cast<const char*>(row), 0};
    const int64_t span = (shape[i] - 1) * strides[i];
    (span < 0 ? low : high) += span;
  }
  return {static_cast<const char*>(row) + low, high - low};
}

}  // namespace ndtorch
