// The inner loops: functions over dense runs of memory that know no shapes, threads or Python.
//
// They are compiled once for every level of vector instructions, and `kernels` picks the table for
// the machine at hand. No kernel allocates; pointers need no alignment; sources and targets of one
// call must not overlap.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "dtypes.h"

namespace ndtorch {

// Converts `count` elements. Returns false where an element did not survive and the kernel checks.
using CastKernel = bool (*)(void* dst, const void* src, size_t count);

// Gathers `count` elements that lie `stride` bytes apart.
using GatherKernel = void (*)(void* dst, const void* src, int64_t stride, size_t count);

// Transposes items: row i, column j of dst is row j, column i of src. Strides are in bytes.
using TransposeKernel = void (*)(void* dst, int64_t dst_stride, const void* src, int64_t src_stride,
                                 size_t rows, size_t columns);

// Reverses the bytes of `count` components, in place or from one place to another.
using SwapKernel = void (*)(void* dst, const void* src, size_t count);

constexpr int kMaxChannels = 4;

// What becomes of a pixel: ((x / divisor or x * factor) - mean) / std, in float32, in this order.
struct Affine {
  int channels = 1;
  bool divides = false;  // by `divisor`; otherwise multiplies by `factor`
  float divisor = 1;
  float factor = 1;
  bool has_std = false;
  float mean[kMaxChannels] = {};
  float std[kMaxChannels] = {1, 1, 1, 1};
  // Set by `find_reciprocals` where multiplying gives what dividing does, bit for bit.
  bool by_reciprocal = false;
  float scale_high = 1, scale_low = 0;
  float std_high[kMaxChannels] = {1, 1, 1, 1};
  float std_low[kMaxChannels] = {};
};

// Interleaved pixels to a plane per channel, `planes[c]`, or to interleaved ones, `planes[0]`.
using PixelKernel = void (*)(void* const* planes, const void* pixels, size_t count,
                             const Affine& affine);

// The way back, planes or interleaved to interleaved: clamp(x * std + mean, 0, 1), for integers
// times their largest value and rounded to nearest even.
using DisplayKernel = void (*)(void* pixels, const void* const* planes, size_t count,
                               const Affine& affine);

constexpr size_t kDirect = 13;    // formats that convert into each other in one step
constexpr size_t kItemSizes = 5;  // 1, 2, 4, 8, 16 bytes: the index is the logarithm

struct Kernels {
  const char* level;
  std::array<std::array<CastKernel, kDirect>, kDirect> cast;        // [from][to]
  std::array<std::array<CastKernel, kDirect>, kDirect> cast_exact;  // the same, checked
  std::array<CastKernel, 5> from_float8;  // to float32, in the order of `float8_index`
  std::array<CastKernel, 5> to_float8;    // from float32
  std::array<CastKernel, 5> to_float8_exact;
  // Of complex64, complex128: the real part, checked that the rest is zero; any part is not zero.
  std::array<CastKernel, 2> real, real_exact, truth, truth_exact;
  std::array<CastKernel, 2> to_complex;
  std::array<GatherKernel, kItemSizes> gather;
  std::array<GatherKernel, kItemSizes> reverse;  // stride is minus the item
  std::array<TransposeKernel, kItemSizes> transpose;
  std::array<SwapKernel, kItemSizes> swap;  // 2, 4, 8 bytes
  // Tries all 256 pixels; leaves `affine` as it is where a division is needed.
  void (*find_reciprocals)(Affine& affine);
  // [uint8, uint16, float32][to float32, float16, bfloat16][interleaved]
  std::array<std::array<std::array<PixelKernel, 2>, 3>, 3> pixels;
  // [float32, float16, bfloat16][to uint8, uint16, float32][interleaved]
  std::array<std::array<std::array<DisplayKernel, 2>, 3>, 3> display;
};

// Where a dtype stands in the tables of `Kernels`; -1 where it does not.
constexpr int direct_index(Dtype dtype) {
  constexpr Dtype kOrder[kDirect] = {
      Dtype::kBool,     Dtype::kUint8,   Dtype::kUint16, Dtype::kUint32, Dtype::kUint64,
      Dtype::kInt8,     Dtype::kInt16,   Dtype::kInt32,  Dtype::kInt64,  Dtype::kFloat16,
      Dtype::kBfloat16, Dtype::kFloat32, Dtype::kFloat64};
  for (size_t i = 0; i < kDirect; ++i) {
    if (kOrder[i] == dtype) return static_cast<int>(i);
  }
  return -1;
}

constexpr int float8_index(Dtype dtype) {
  if (!is_float8(dtype)) return -1;
  return dtype == Dtype::kFloat8E8m0fnu
             ? 4
             : static_cast<int>(dtype) - static_cast<int>(Dtype::kFloat8E5m2);
}

constexpr size_t log2_size(int64_t item_size) {
  return static_cast<size_t>(std::countr_zero(static_cast<uint64_t>(item_size)));
}

// The kernels for the vector instructions of this machine.
const Kernels& kernels();

}  // namespace ndtorch
