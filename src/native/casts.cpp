// Kernels that convert dense runs from one number format to another.
#include <algorithm>

#include "formats.h"
#include "kernels.h"
#include "levels.h"

namespace ndtorch::NDTORCH_LEVEL {
namespace {

using Float32 = Plain<float>;
using Float64 = Plain<double>;

// Checked kernels look back after each block, while it is still in the nearest cache.
constexpr size_t kBlock = 4096;

// Memory that may have any address and any type.
template <typename T>
struct Loose {
  typedef T Type __attribute__((aligned(1), may_alias));
};

template <typename Format>
using Source = const typename Loose<typename Format::Storage>::Type* __restrict;
template <typename Format>
using Target = typename Loose<typename Format::Storage>::Type* __restrict;

template <typename From, typename To>
bool cast(void* dst, const void* src, size_t count) {
  auto* target = static_cast<Target<To>>(dst);
  auto* source = static_cast<Source<From>>(src);
  for (size_t i = 0; i < count; ++i) target[i] = convert<From, To>(source[i]);
  return true;
}

template <typename From, typename To>
bool cast_exact(void* dst, const void* src, size_t count) {
  if constexpr (kAlwaysSurvives<From, To>) {
    return cast<From, To>(dst, src, count);
  } else {
    auto* target = static_cast<Target<To>>(dst);
    auto* source = static_cast<Source<From>>(src);
    for (size_t start = 0; start < count; start += kBlock) {
      const size_t end = std::min(count, start + kBlock);
      unsigned lost = 0;
      for (size_t i = start; i < end; ++i) {
        const typename From::Storage before = source[i];
        const typename To::Storage after = convert<From, To>(before);
        target[i] = after;
        lost |= static_cast<unsigned>(!survives<From, To>(before, after));
      }
      if (lost != 0) return false;
    }
    return true;
  }
}

// ---- complex ---------------------------------------------------------------------------------

template <typename Part, bool kIsChecked>
bool real(void* dst, const void* src, size_t count) {
  auto* target = static_cast<Target<Part>>(dst);
  auto* source = static_cast<Source<Part>>(src);
  unsigned lost = 0;
  for (size_t i = 0; i < count; ++i) {
    target[i] = source[2 * i];
    if constexpr (kIsChecked) lost |= static_cast<unsigned>(source[2 * i + 1] != 0);
  }
  return lost == 0;
}

template <typename Part, bool kIsChecked>
bool truth(void* dst, const void* src, size_t count) {
  auto* target = static_cast<Target<Bool>>(dst);
  auto* source = static_cast<Source<Part>>(src);
  unsigned lost = 0;
  for (size_t i = 0; i < count; ++i) {
    const typename Part::Value re = source[2 * i];
    const typename Part::Value im = source[2 * i + 1];
    target[i] = static_cast<uint8_t>((re != 0) | (im != 0));
    if constexpr (kIsChecked) {
      lost |= static_cast<unsigned>((im != 0) | ((re != 0) & (re != 1)));
    }
  }
  return lost == 0;
}

template <typename Part>
bool to_complex(void* dst, const void* src, size_t count) {
  auto* target = static_cast<Target<Part>>(dst);
  auto* source = static_cast<Source<Part>>(src);
  for (size_t i = 0; i < count; ++i) {
    target[2 * i] = source[i];
    target[2 * i + 1] = 0;
  }
  return true;
}

// ---- tables ----------------------------------------------------------------------------------

// In the order of `direct_index`.
template <typename Do>
void for_each_direct(Do each) {
  size_t i = 0;
  each.template operator()<Bool>(i++);
  each.template operator()<Plain<uint8_t>>(i++);
  each.template operator()<Plain<uint16_t>>(i++);
  each.template operator()<Plain<uint32_t>>(i++);
  each.template operator()<Plain<uint64_t>>(i++);
  each.template operator()<Plain<int8_t>>(i++);
  each.template operator()<Plain<int16_t>>(i++);
  each.template operator()<Plain<int32_t>>(i++);
  each.template operator()<Plain<int64_t>>(i++);
  each.template operator()<Float16>(i++);
  each.template operator()<Bfloat16>(i++);
  each.template operator()<Float32>(i++);
  each.template operator()<Float64>(i++);
}

template <typename Format>
void fill_float8(Kernels& table, size_t i) {
  table.from_float8[i] = cast<Format, Float32>;
  table.to_float8[i] = cast<Float32, Format>;
  table.to_float8_exact[i] = cast_exact<Float32, Format>;
}

template <typename Part>
void fill_complex(Kernels& table, size_t i) {
  table.real[i] = real<Part, false>;
  table.real_exact[i] = real<Part, true>;
  table.truth[i] = truth<Part, false>;
  table.truth_exact[i] = truth<Part, true>;
  table.to_complex[i] = to_complex<Part>;
}

}  // namespace

void fill_casts(Kernels& table) {
  for_each_direct([&]<typename From>(size_t from) {
    for_each_direct([&]<typename To>(size_t to) {
      table.cast[from][to] = cast<From, To>;
      table.cast_exact[from][to] = cast_exact<From, To>;
    });
  });
  fill_float8<Float8E5m2>(table, 0);
  fill_float8<Float8E4m3fn>(table, 1);
  fill_float8<Float8E5m2fnuz>(table, 2);
  fill_float8<Float8E4m3fnuz>(table, 3);
  fill_float8<Float8E8m0fnu>(table, 4);
  fill_complex<Float32>(table, 0);
  fill_complex<Float64>(table, 1);
}

}  // namespace ndtorch::NDTORCH_LEVEL
