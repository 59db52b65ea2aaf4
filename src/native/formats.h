// What the bits of each number format mean, and how one becomes another: one element at a time.
//
// A format is a type with a `Storage` (what lies in memory) and a `Value` (what to compute with),
// and `load` and `store` between the two. Only kernels include this, each in the namespace of the
// vector instructions it is compiled for: two levels must not share one compiled function.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#ifndef NDTORCH_LEVEL
#error "formats.h is for kernels, which are compiled per level"
#endif

namespace ndtorch::NDTORCH_LEVEL {

template <typename T>
struct Plain {
  using Storage = T;
  using Value = T;
  static constexpr bool kIsFloat = std::is_floating_point_v<T>;
  static constexpr int kDigits = std::numeric_limits<T>::digits;
  static constexpr bool kIsSigned = std::is_signed_v<T>;
  static Value load(Storage bits) { return bits; }
  static Storage store(Value value) { return value; }
};

struct Bool {
  using Storage = uint8_t;
  using Value = uint8_t;
  static constexpr bool kIsFloat = false;
  static constexpr int kDigits = 1;
  static constexpr bool kIsSigned = false;
  static Value load(Storage bits) { return bits != 0; }
  static Storage store(Value value) { return value; }
};

// An IEEE-like float of `kExponentBits` and `kMantissaBits` below a sign, by arithmetic that
// vectorises and never meets a subnormal float32, which a thread may be set to flush to zero.
// `kIsFnuz`: no infinity, no negative zero, NaN is the sign alone; `kIsFn`: no infinity, NaN is
// all ones. Overflow goes to infinity, or to NaN where there is none, as in ml_dtypes.
template <typename Bits, int kExponentBits, int kMantissaBits, int kBias, bool kIsFn = false,
          bool kIsFnuz = false>
struct SmallFloat {
  using Storage = Bits;
  using Value = float;
  static constexpr bool kIsFloat = true;
  static constexpr int kDigits = kMantissaBits + 1;
  static constexpr bool kIsSigned = true;

  static constexpr uint32_t kSign = 1U << (kExponentBits + kMantissaBits);
  static constexpr uint32_t kExponentMask = ((1U << kExponentBits) - 1) << kMantissaBits;
  static constexpr int kShift = 23 - kMantissaBits;
  static constexpr uint32_t kNan =
      kIsFnuz ? kSign
              : (kIsFn ? kSign - 1 : (kExponentMask | (1U << (kMantissaBits - 1))));  // quiet

  static float load(Storage stored) {
    const uint32_t bits = stored;
    const uint32_t magnitude = bits & (kSign - 1);
    const uint32_t sign = (bits & kSign) << (31 - kExponentBits - kMantissaBits);
    const uint32_t normal = (magnitude << kShift) + (static_cast<uint32_t>(127 - kBias) << 23);
    // 2^(1 - bias - mantissa bits) for every unit of a subnormal's mantissa.
    constexpr float kUnit = std::bit_cast<float>((128U - kBias - kMantissaBits) << 23);
    const auto subnormal =
        std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * kUnit);
    uint32_t value = magnitude < (1U << kMantissaBits) ? subnormal : normal;
    if constexpr (kIsFnuz) {
      value = bits == kSign ? 0x7fc00000U : value;
    } else if constexpr (kIsFn) {
      value = magnitude == kNan ? 0x7fc00000U : value;
    } else {
      value = magnitude >= kExponentMask ? (magnitude << kShift) | 0x7f800000U : value;
    }
    return std::bit_cast<float>(value | sign);
  }

  static Storage store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t magnitude = bits & 0x7fffffffU;
    const uint32_t sign = (bits >> (31 - kExponentBits - kMantissaBits)) & kSign;
    // To nearest even: half a unit, less one, plus the last bit that stays.
    const uint32_t rounded = magnitude + ((1U << (kShift - 1)) - 1) + ((magnitude >> kShift) & 1U);
    const uint32_t normal =
        (rounded >> kShift) - (static_cast<uint32_t>(127 - kBias) << kMantissaBits);
    // Adding this float makes the adder round a subnormal at its last bit.
    constexpr uint32_t kMagic = (151U - kBias - kMantissaBits) << 23;
    const uint32_t subnormal =
        std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(kMagic)) -
        kMagic;
    constexpr uint32_t kSmallestNormal = (128U - kBias) << 23;
    uint32_t result = magnitude < kSmallestNormal ? subnormal : normal;
    constexpr uint32_t kLargest = kIsFnuz ? kSign - 1 : (kIsFn ? kSign - 2 : kExponentMask - 1);
    constexpr uint32_t kTooLarge = kIsFnuz || kIsFn ? kNan : kExponentMask;
    // The rounded number as it would be with more exponent bits: compared before it wraps.
    constexpr uint32_t kWrap =
        (kLargest + 1 + (static_cast<uint32_t>(127 - kBias) << kMantissaBits));
    result = (rounded >> kShift) >= kWrap ? kTooLarge : result;
    if constexpr (kIsFnuz) {
      result = magnitude > 0x7f800000U ? kNan : result;
      const uint32_t with_sign = result == 0 || result == kNan ? result : (result | sign);
      return static_cast<Storage>(with_sign);
    } else {
      uint32_t nan = kNan;
      if constexpr (sizeof(Storage) == 2) {  // NumPy keeps the payload's upper bits of a half
        const uint32_t payload =
            kExponentMask | ((magnitude >> kShift) & ((1U << kMantissaBits) - 1));
        nan = payload == kExponentMask ? payload + 1 : payload;
      }
      result = magnitude > 0x7f800000U ? nan : result;
      return static_cast<Storage>(result | sign);
    }
  }
};

using Float16 = SmallFloat<uint16_t, 5, 10, 15>;
using Float8E5m2 = SmallFloat<uint8_t, 5, 2, 15>;
using Float8E4m3fn = SmallFloat<uint8_t, 4, 3, 7, true>;
using Float8E5m2fnuz = SmallFloat<uint8_t, 5, 2, 16, false, true>;
using Float8E4m3fnuz = SmallFloat<uint8_t, 4, 3, 8, false, true>;

struct Bfloat16 {
  using Storage = uint16_t;
  using Value = float;
  static constexpr bool kIsFloat = true;
  static constexpr int kDigits = 8;
  static constexpr bool kIsSigned = true;

  static float load(Storage bits) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }

  static Storage store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    const uint32_t nan = ((bits >> 16) & 0x8000U) | 0x7fc0U;
    return static_cast<Storage>((bits & 0x7fffffffU) > 0x7f800000U ? nan : rounded);
  }
};

// An exponent and nothing else: no sign, no zero, 255 is NaN.
struct Float8E8m0fnu {
  using Storage = uint8_t;
  using Value = float;
  static constexpr bool kIsFloat = true;
  static constexpr int kDigits = 1;
  static constexpr bool kIsSigned = false;

  static float load(Storage bits) {
    const uint32_t exponent = bits;
    uint32_t value = exponent << 23;
    value = exponent == 0 ? 0x00400000U : value;  // 2^-127 is a subnormal float32
    value = exponent == 255 ? 0x7fc00000U : value;
    return std::bit_cast<float>(value);
  }

  static Storage store(float value) {
    const auto bits = std::bit_cast<uint32_t>(value);
    // To the nearest power of two, a tie to the even mantissa, which is the upper one.
    const uint32_t normal = (bits + 0x00400000U) >> 23;
    // A subnormal float32 above 2^-127 goes up, as torch and ml_dtypes have it.
    const uint32_t subnormal = bits > 0x00400000U ? 1U : 0U;
    uint32_t result = bits < 0x00800000U ? subnormal : normal;
    // Zero, negative, infinite and NaN have no number here, nor what rounds past 2^127.
    result = bits == 0 || bits >= 0x7f400000U ? 255U : result;
    return static_cast<Storage>(result);
  }
};

// ---- conversion ------------------------------------------------------------------------------

// Rounds to the neighbour whose last bit is odd unless exact, so that rounding once more to a
// format of at least two bits less gives what rounding directly gives (Boldo and Melquiond 2008).
inline float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  const auto back = static_cast<double>(nearest);
  const auto bits = std::bit_cast<uint32_t>(nearest);
  const double magnitude = value < 0 ? -value : value;
  const double back_magnitude = back < 0 ? -back : back;
  const uint32_t odd = back_magnitude > magnitude ? bits - 1 : bits + 1;
  const bool is_kept = back == value || value != value || (bits & 1U) != 0;
  return std::bit_cast<float>(is_kept ? bits : odd);
}

// The integers that a float goes through on its way to `To`, as x86 and NumPy on it have it.
template <typename To>
using ThroughInteger =
    std::conditional_t<sizeof(To) == 8 || std::is_same_v<To, uint32_t>, int64_t, int32_t>;

template <typename Integer, typename Float>
constexpr Float kLimit = -static_cast<Float>(std::numeric_limits<Integer>::min());

// Truncates; the lowest integer stands for what is out of range, where C++ leaves it undefined.
template <typename Integer, typename Float>
inline Integer truncate_within(Float value) {
  const bool fits = value >= -kLimit<Integer, Float> && value < kLimit<Integer, Float>;
  const auto whole = static_cast<Integer>(fits ? value : Float{0});
  return fits ? whole : std::numeric_limits<Integer>::min();
}

template <typename To, typename Float>
inline To truncate(Float value) {
  if constexpr (std::is_same_v<To, uint64_t>) {
    constexpr Float kHalf = kLimit<int64_t, Float>;
    const bool is_high = value >= kHalf;
    const auto low =
        static_cast<uint64_t>(truncate_within<int64_t>(is_high ? value - kHalf : value));
    return is_high ? low ^ (uint64_t{1} << 63) : low;
  } else {
    return static_cast<To>(truncate_within<ThroughInteger<To>>(value));
  }
}

// One element from one format to another. Floats round to nearest even, integers wrap, a float out
// of an integer's range does as above, and whatever is not zero is true.
template <typename From, typename To>
inline typename To::Storage convert(typename From::Storage stored) {
  const auto value = From::load(stored);
  if constexpr (std::is_same_v<To, Bool>) {
    return value != 0 ? 1 : 0;
  } else if constexpr (To::kIsFloat) {
    using Target = typename To::Value;
    if constexpr (std::is_same_v<To, Float16> && std::is_same_v<typename From::Value, double>) {
      return To::store(round_to_odd(value));
    } else {
      return To::store(static_cast<Target>(value));
    }
  } else if constexpr (From::kIsFloat) {
    return truncate<typename To::Storage>(value);
  } else {
    return static_cast<typename To::Storage>(value);
  }
}

// Whether every number of one format is a number of the other.
template <typename From, typename To>
constexpr bool kAlwaysSurvives =
    std::is_same_v<From, To> || std::is_same_v<From, Bool> ||
    (To::kIsFloat && !From::kIsFloat && From::kDigits <= To::kDigits) ||
    (To::kIsFloat && From::kIsFloat && sizeof(typename To::Storage) >= 4 &&
     sizeof(typename To::Storage) > sizeof(typename From::Storage)) ||
    (!To::kIsFloat && !From::kIsFloat && From::kDigits <= To::kDigits &&
     (To::kIsSigned || !From::kIsSigned));

template <typename Integer, typename Float>
inline bool is_whole_within(Float value, Integer whole) {
  constexpr Float kEnd =
      static_cast<Float>(uint64_t{1} << (std::numeric_limits<Integer>::digits - 1)) * 2;
  constexpr Float kStart = static_cast<Float>(std::numeric_limits<Integer>::min());
  return (value >= kStart) & (value < kEnd) & (static_cast<Float>(whole) == value);
}

// Whether a converted element has the value it came from. NaN survives as NaN, -0.0 as 0.
template <typename From, typename To>
inline bool survives(typename From::Storage before, typename To::Storage after) {
  const auto source = From::load(before);
  const auto target = To::load(after);
  if constexpr (From::kIsFloat && To::kIsFloat) {
    using Wide = std::conditional_t<sizeof(source) == 8 || sizeof(target) == 8, double, float>;
    return (static_cast<Wide>(source) == static_cast<Wide>(target)) |
           ((source != source) & (target != target));
  } else if constexpr (std::is_same_v<To, Bool>) {
    return source == static_cast<typename From::Value>(target);
  } else if constexpr (From::kIsFloat) {
    return is_whole_within(source, target);
  } else if constexpr (To::kIsFloat) {
    return is_whole_within(target, source) & (truncate<typename From::Storage>(target) == source);
  } else {
    return (static_cast<typename From::Value>(target) == source) & ((target < 0) == (source < 0));
  }
}

}  // namespace ndtorch::NDTORCH_LEVEL
