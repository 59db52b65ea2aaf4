// Kernels that move elements without looking at them: gather, reverse, transpose, swap bytes.
#include <cstring>

#include "kernels.h"
#include "levels.h"

namespace ndtorch::NDTORCH_LEVEL {
namespace {

// 16 bytes at any address, whatever they are.
struct __attribute__((packed, may_alias)) Pair {
  uint64_t halves[2];
};

// An item at any address, whatever it is.
template <typename T>
struct Loose {
  typedef T Type __attribute__((aligned(1), may_alias));
};

template <>
struct Loose<Pair> {
  using Type = Pair;
};

template <typename T>
T load(const char* src) {
  T item;
  std::memcpy(&item, src, sizeof item);
  return item;
}

template <typename T>
void store(char* dst, T item) {
  std::memcpy(dst, &item, sizeof item);
}

template <typename T>
void gather(void* dst, const void* src, int64_t stride, size_t count) {
  auto* target = static_cast<char*>(dst);
  auto* source = static_cast<const char*>(src);
  for (size_t i = 0; i < count; ++i) {
    store(target + i * sizeof(T), load<T>(source));
    source += stride;
  }
}

// The same with a stride that the compiler knows, so that it can load whole vectors.
template <typename T>
void reverse(void* dst, const void* src, int64_t, size_t count) {
  auto* __restrict target = static_cast<typename Loose<T>::Type*>(dst);
  auto* __restrict last = static_cast<const typename Loose<T>::Type*>(src);
  const auto n = static_cast<int64_t>(count);
  for (int64_t i = 0; i < n; ++i) target[i] = last[-i];
}

constexpr size_t kPatch = 8;

// An 8 by 8 patch, with room between load and store for the compiler to keep it in registers.
template <typename T>
void transpose_patch(char* __restrict dst, int64_t dst_stride, const char* __restrict src,
                     int64_t src_stride) {
  T patch[kPatch][kPatch];
  for (size_t j = 0; j < kPatch; ++j) {
    for (size_t i = 0; i < kPatch; ++i) {
      patch[i][j] = load<T>(src + static_cast<int64_t>(j) * src_stride + i * sizeof(T));
    }
  }
  for (size_t i = 0; i < kPatch; ++i) {
    std::memcpy(dst + static_cast<int64_t>(i) * dst_stride, patch[i], sizeof patch[i]);
  }
}

template <typename T>
void transpose(void* dst, int64_t dst_stride, const void* src, int64_t src_stride, size_t rows,
               size_t columns) {
  auto* target = static_cast<char*>(dst);
  auto* source = static_cast<const char*>(src);
  const size_t whole_rows = rows / kPatch * kPatch;
  const size_t whole_columns = columns / kPatch * kPatch;
  for (size_t i = 0; i < whole_rows; i += kPatch) {
    for (size_t j = 0; j < whole_columns; j += kPatch) {
      transpose_patch<T>(target + static_cast<int64_t>(i) * dst_stride + j * sizeof(T), dst_stride,
                         source + static_cast<int64_t>(j) * src_stride + i * sizeof(T), src_stride);
    }
  }
  for (size_t i = 0; i < rows; ++i) {
    for (size_t j = i < whole_rows ? whole_columns : 0; j < columns; ++j) {
      store(target + static_cast<int64_t>(i) * dst_stride + j * sizeof(T),
            load<T>(source + static_cast<int64_t>(j) * src_stride + i * sizeof(T)));
    }
  }
}

inline uint16_t swapped(uint16_t bits) { return __builtin_bswap16(bits); }
inline uint32_t swapped(uint32_t bits) { return __builtin_bswap32(bits); }
inline uint64_t swapped(uint64_t bits) { return __builtin_bswap64(bits); }

template <typename T>
void swap(void* dst, const void* src, size_t count) {
  using Item = typename Loose<T>::Type;
  if (dst == src) {
    auto* items = static_cast<Item*>(dst);
    for (size_t i = 0; i < count; ++i) items[i] = swapped(items[i]);
    return;
  }
  auto* __restrict target = static_cast<Item*>(dst);
  auto* __restrict source = static_cast<const Item*>(src);
  for (size_t i = 0; i < count; ++i) target[i] = swapped(source[i]);
}

}  // namespace

void fill_moves(Kernels& table) {
  table.gather = {gather<uint8_t>, gather<uint16_t>, gather<uint32_t>, gather<uint64_t>,
                  gather<Pair>};
  table.reverse = {reverse<uint8_t>, reverse<uint16_t>, reverse<uint32_t>, reverse<uint64_t>,
                   reverse<Pair>};
  table.transpose = {transpose<uint8_t>, transpose<uint16_t>, transpose<uint32_t>,
                     transpose<uint64_t>, transpose<Pair>};
  table.swap = {nullptr, swap<uint16_t>, swap<uint32_t>, swap<uint64_t>, nullptr};
}

}  // namespace ndtorch::NDTORCH_LEVEL
