#include "copy.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace ndtorch {
namespace {

constexpr int64_t kBlock = 1024;          // items that go through the buffers at a time
constexpr int64_t kBuffer = kBlock * 16;  // bytes: the largest item is 16
constexpr int64_t kTile = 64;             // items along each side of a tile
constexpr int64_t kTileBuffer = kTile * kTile * 16;
constexpr int64_t kStrip = 1024;  // columns of a unit of tiles
constexpr int64_t kUnitBytes = 1 << 16;
// Below this, waking another thread costs more than it saves.
constexpr int64_t kAloneBytes = 3 << 18;
constexpr int64_t kShortRow = 64;  // items: shorter rows are put together before they are converted

}  // namespace

int threads_for(int64_t nbytes, int threads) { return nbytes < kAloneBytes ? 1 : threads; }

bool can_cast(Dtype from, Dtype to) { return item_size(from) != 0 && item_size(to) != 0; }

StridedCopy::StridedCopy(const CopyRequest& request)
    : kernels_(kernels()),
      dst_(static_cast<char*>(request.dst)),
      src_(static_cast<const char*>(request.src)),
      dst_size_(item_size(request.dst_dtype)),
      src_size_(item_size(request.src_dtype)) {
  swap_size_ = item_size(part_of(request.src_dtype));
  swaps_per_item_ = src_size_ / swap_size_;
  is_swapped_ = request.src_is_swapped && swap_size_ > 1;
  simplify(request);
  choose_steps(request);
  choose_tiles();
  if (is_tiled_) {
    const Axis &tall = axes_[tile_axis_], &wide = axes_[ndim_ - 1];
    tiles_ = (tall.size + kTile - 1) / kTile;
    strips_ = (wide.size + kStrip - 1) / kStrip;
    units_ = items_ / tall.size / wide.size * tiles_ * strips_;
    unit_bytes_ =
        std::min(kTile, tall.size) * std::min(kStrip, wide.size) * (dst_size_ + src_size_);
  } else {
    unit_items_ = std::max<int64_t>(1, kUnitBytes / (dst_size_ + src_size_));
    units_ = (items_ + unit_items_ - 1) / unit_items_;
    unit_bytes_ = unit_items_ * (dst_size_ + src_size_);
  }
}

// ---- setting up ------------------------------------------------------------------------------

// Leaves out axes of one item, sorts by the target's strides and merges what is contiguous in both.
void StridedCopy::simplify(const CopyRequest& request) {
  for (int i = 0; i < request.ndim; ++i) {
    items_ *= request.shape[i];
    if (request.shape[i] == 1) continue;
    Axis axis{request.shape[i], request.dst_strides[i], request.src_strides[i]};
    if (axis.dst < 0) {  // walk the target upwards; the order of items is free
      dst_ += axis.dst * (axis.size - 1);
      src_ += axis.src * (axis.size - 1);
      axis.dst = -axis.dst;
      axis.src = -axis.src;
    }
    int at = ndim_++;
    for (; at > 0 && axes_[at - 1].dst < axis.dst; --at) axes_[at] = axes_[at - 1];
    axes_[at] = axis;
  }
  if (items_ == 0) ndim_ = 0;
  int kept = 0;
  for (int i = 1; i < ndim_; ++i) {
    Axis& outer = axes_[kept];
    const Axis& inner = axes_[i];
    if (outer.dst == inner.dst * inner.size && outer.src == inner.src * inner.size) {
      outer = {outer.size * inner.size, inner.dst, inner.src};
    } else {
      axes_[++kept] = inner;
    }
  }
  if (ndim_ == 0)
    axes_[ndim_++] = {items_, dst_size_, src_size_};
  else
    ndim_ = kept + 1;
  int64_t dense = dst_size_;
  is_dst_dense_ = true;
  for (int i = ndim_; i-- > 0; dense *= axes_[i].size) is_dst_dense_ &= axes_[i].dst == dense;
  is_src_dense_ = ndim_ == 1 && axes_[0].src == src_size_;
}

void StridedCopy::add_step(CastKernel kernel, int64_t dst_size, int64_t per_item) {
  steps_[step_count_++] = {kernel, dst_size, per_item};
}

void StridedCopy::choose_steps(const CopyRequest& request) {
  Dtype from = request.src_dtype;
  const Dtype to = request.dst_dtype;
  if (from == to) return;
  const auto& cast = request.exact ? kernels_.cast_exact : kernels_.cast;
  const auto direct = [&](Dtype a, Dtype b, int64_t per_item = 1) {
    if (a == b) return;
    add_step(cast[static_cast<size_t>(direct_index(a))][static_cast<size_t>(direct_index(b))],
             item_size(b) * per_item, per_item);
  };
  if (is_complex(from) && is_complex(to)) {
    direct(part_of(from), part_of(to), 2);
    return;
  }
  if (is_complex(from)) {
    const size_t which = from == Dtype::kComplex128 ? 1 : 0;
    if (to == Dtype::kBool) {
      add_step((request.exact ? kernels_.truth_exact : kernels_.truth)[which], 1);
      return;
    }
    from = part_of(from);
    add_step((request.exact ? kernels_.real_exact : kernels_.real)[which], item_size(from));
  }
  if (is_float8(from)) {
    add_step(kernels_.from_float8[static_cast<size_t>(float8_index(from))], 4);
    from = Dtype::kFloat32;
  }
  if (is_float8(to)) {
    direct(from, Dtype::kFloat32);
    const auto which = static_cast<size_t>(float8_index(to));
    add_step((request.exact ? kernels_.to_float8_exact : kernels_.to_float8)[which], 1);
  } else {
    direct(from, part_of(to));
    if (is_complex(to)) add_step(kernels_.to_complex[to == Dtype::kComplex128 ? 1 : 0], dst_size_);
  }
}

// A target whose innermost axis jumps in the source while another axis does not: a transpose.
void StridedCopy::choose_tiles() {
  if (ndim_ < 2 || axes_[ndim_ - 1].dst != dst_size_) return;
  int best = ndim_ - 1;
  for (int i = ndim_ - 1; i-- > 0;) {
    if (std::abs(axes_[i].src) < std::abs(axes_[best].src) && axes_[i].src != 0) best = i;
  }
  const Axis &inner = axes_[ndim_ - 1], &outer = axes_[best];
  is_tiled_ = best != ndim_ - 1 && outer.src == src_size_ && inner.src != 0 && inner.size >= 8 &&
              outer.size >= 4;
  tile_axis_ = best;
}

// ---- running ---------------------------------------------------------------------------------

bool StridedCopy::run(int64_t begin, int64_t end) const {
  if (begin >= end) return true;
  if (is_tiled_) return run_tiles(begin, end);
  return run_items(begin * unit_items_, std::min(items_, end * unit_items_));
}

void StridedCopy::swap(char* dst, const char* src, int64_t count) const {
  kernels_.swap[log2_size(swap_size_)](dst, src, static_cast<size_t>(count * swaps_per_item_));
}

// Dense native items to dense items of the target's dtype; with no steps a plain copy.
bool StridedCopy::convert(char* dst, const char* src, int64_t count) const {
  if (step_count_ == 0) {
    std::memcpy(dst, src, static_cast<size_t>(count * dst_size_));
    return true;
  }
  if (step_count_ == 1) {
    return steps_[0].kernel(dst, src, static_cast<size_t>(count * steps_[0].per_item));
  }
  alignas(64) char buffers[2][kBuffer];
  int64_t src_step = src_size_;
  for (int64_t start = 0; start < count; start += kBlock) {
    const int64_t n = std::min(kBlock, count - start);
    const char* from = src + start * src_step;
    for (int i = 0; i < step_count_; ++i) {
      char* to = i + 1 == step_count_ ? dst + start * dst_size_ : buffers[i];
      if (!steps_[i].kernel(to, from, static_cast<size_t>(n * steps_[i].per_item))) return false;
      from = to;
    }
  }
  return true;
}

namespace {

// Where an item is: one index per axis, and how far the item is from the first.
template <typename Axis>
struct Position {
  const Axis* axes;
  int ndim;
  int64_t index[kMaxDims];
  int64_t dst = 0, src = 0;

  Position(const Axis* of, int count, int64_t item) : axes(of), ndim(count) {
    for (int i = ndim; i-- > 0; item /= axes[i].size) {
      index[i] = item % axes[i].size;
      dst += index[i] * axes[i].dst;
      src += index[i] * axes[i].src;
    }
  }

  int64_t left_in_row() const { return axes[ndim - 1].size - index[ndim - 1]; }

  // Moves on within a row, or from the end of one to the start of the next.
  void advance(int64_t count) {
    const Axis& inner = axes[ndim - 1];
    dst += count * inner.dst;
    src += count * inner.src;
    index[ndim - 1] += count;
    for (int i = ndim - 1; i > 0 && index[i] == axes[i].size; --i) {
      dst += axes[i - 1].dst - axes[i].size * axes[i].dst;
      src += axes[i - 1].src - axes[i].size * axes[i].src;
      index[i] = 0;
      ++index[i - 1];
    }
  }
};

inline void move_item(char* dst, const char* src, int64_t size) {
  switch (size) {
    case 1:
      *dst = *src;
      return;
    case 2:
      std::memcpy(dst, src, 2);
      return;
    case 4:
      std::memcpy(dst, src, 4);
      return;
    case 8:
      std::memcpy(dst, src, 8);
      return;
    default:
      std::memcpy(dst, src, 16);
  }
}

}  // namespace

// Items of the source, counted in the target's order, to dense memory.
void StridedCopy::gather(char* dst, int64_t begin, int64_t count) const {
  Position<Axis> at(axes_, ndim_, begin);
  const int64_t stride = axes_[ndim_ - 1].src;
  const size_t size = log2_size(src_size_);
  for (int64_t left = count; left > 0;) {
    const int64_t n = std::min(left, at.left_in_row());
    const char* src = src_ + at.src;
    if (stride == src_size_) {
      std::memcpy(dst, src, static_cast<size_t>(n * src_size_));
    } else if (stride == -src_size_) {
      kernels_.reverse[size](dst, src, stride, static_cast<size_t>(n));
    } else {
      kernels_.gather[size](dst, src, stride, static_cast<size_t>(n));
    }
    dst += n * src_size_;
    left -= n;
    at.advance(n);
  }
}

// Dense items to a target with gaps.
void StridedCopy::scatter(const char* src, int64_t begin, int64_t count) const {
  Position<Axis> at(axes_, ndim_, begin);
  const int64_t stride = axes_[ndim_ - 1].dst;
  for (int64_t left = count; left > 0;) {
    const int64_t n = std::min(left, at.left_in_row());
    char* dst = dst_ + at.dst;
    if (stride == dst_size_) {
      std::memcpy(dst, src, static_cast<size_t>(n * dst_size_));
    } else {
      for (int64_t i = 0; i < n; ++i) {
        move_item(dst + i * stride, src + i * dst_size_, dst_size_);
      }
    }
    src += n * dst_size_;
    left -= n;
    at.advance(n);
  }
}

bool StridedCopy::run_items(int64_t begin, int64_t end) const {
  const bool moves_only = step_count_ == 0;
  // Both dense, or dense row by row: kernels work on the memory itself.
  const Axis& inner = axes_[ndim_ - 1];
  const bool rows_are_dense = inner.dst == dst_size_ && inner.src == src_size_ &&
                              (inner.size >= kShortRow || (moves_only && !is_swapped_));
  if (rows_are_dense && (!is_swapped_ || moves_only)) {
    Position<Axis> at(axes_, ndim_, begin);
    while (begin < end) {
      const int64_t n = std::min(end - begin, at.left_in_row());
      if (is_swapped_) {
        swap(dst_ + at.dst, src_ + at.src, n);
      } else if (!convert(dst_ + at.dst, src_ + at.src, n)) {
        return false;
      }
      begin += n;
      at.advance(n);
    }
    return true;
  }
  if (is_dst_dense_ && moves_only && !is_swapped_) {
    gather(dst_ + begin * dst_size_, begin, end - begin);
    return true;
  }
  alignas(64) char gathered[kBuffer];
  alignas(64) char converted[kBuffer];
  for (; begin < end; begin += kBlock) {
    const int64_t n = std::min(kBlock, end - begin);
    const char* source = gathered;
    if (is_src_dense_ && !is_swapped_) {
      source = src_ + begin * src_size_;
    } else if (is_src_dense_) {
      swap(gathered, src_ + begin * src_size_, n);
    } else {
      gather(gathered, begin, n);
      if (is_swapped_) swap(gathered, gathered, n);
    }
    if (is_dst_dense_) {
      if (!convert(dst_ + begin * dst_size_, source, n)) return false;
      continue;
    }
    if (!moves_only) {
      if (!convert(converted, source, n)) return false;
      source = converted;
    }
    scatter(source, begin, n);
  }
  return true;
}

// ---- tiles -----------------------------------------------------------------------------------

// Rows along the axis in which the source is dense, columns along the target's.
bool StridedCopy::run_tile(char* dst, const char* src, int64_t rows, int64_t columns) const {
  const TransposeKernel transpose = kernels_.transpose[log2_size(src_size_)];
  const int64_t dst_stride = axes_[tile_axis_].dst;
  const int64_t src_stride = axes_[ndim_ - 1].src;
  const auto r = static_cast<size_t>(rows), c = static_cast<size_t>(columns);
  if (step_count_ == 0 && !is_swapped_) {
    transpose(dst, dst_stride, src, src_stride, r, c);
    return true;
  }
  alignas(64) char tile[kTileBuffer];
  const int64_t pitch = kTile * src_size_;
  transpose(tile, pitch, src, src_stride, r, c);
  for (int64_t i = 0; i < rows; ++i) {
    char* row = tile + i * pitch;
    if (is_swapped_) swap(row, row, columns);
    if (!convert(dst + i * dst_stride, row, columns)) return false;
  }
  return true;
}

bool StridedCopy::run_tiles(int64_t begin, int64_t end) const {
  const Axis tall = axes_[tile_axis_], wide = axes_[ndim_ - 1];
  // The other axes, in the target's order; the tiles of one plane follow each other.
  Axis others[kMaxDims];
  int count = 0;
  for (int i = 0; i < ndim_ - 1; ++i) {
    if (i != tile_axis_) others[count++] = axes_[i];
  }
  if (count == 0) others[count++] = {1, 0, 0};
  for (; begin < end; ++begin) {
    const Position<Axis> at(others, count, begin / (tiles_ * strips_));
    const int64_t row = begin / strips_ % tiles_ * kTile;
    const int64_t rows = std::min(kTile, tall.size - row);
    const int64_t strip = begin % strips_ * kStrip;
    const int64_t strip_end = std::min(wide.size, strip + kStrip);
    char* dst = dst_ + at.dst + row * tall.dst;
    const char* src = src_ + at.src + row * tall.src;
    for (int64_t column = strip; column < strip_end; column += kTile) {
      const int64_t columns = std::min(kTile, strip_end - column);
      if (!run_tile(dst + column * wide.dst, src + column * wide.src, rows, columns)) return false;
    }
  }
  return true;
}

Outcome copy(const StridedCopy& job, int threads, Interrupt interrupt) {
  const int64_t units = job.units();
  const int wanted = threads_for(units * job.unit_bytes(), threads);
  const int64_t grain = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, job.unit_bytes()));
  return parallel_for(units, grain, wanted, interrupt,
                      [&job](int64_t begin, int64_t end) { return job.run(begin, end); });
}

}  // namespace ndtorch
