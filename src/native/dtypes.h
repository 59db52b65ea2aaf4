// The number formats that arrays and tensors share, by number: sizes and kinds. What their bits
// mean is in formats.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ndtorch {

// Numbered as torch's c10::ScalarType, which is serialized and so stable.
enum class Dtype : uint8_t {
  kUint8 = 0,
  kInt8 = 1,
  kInt16 = 2,
  kInt32 = 3,
  kInt64 = 4,
  kFloat16 = 5,
  kFloat32 = 6,
  kFloat64 = 7,
  kComplex64 = 9,
  kComplex128 = 10,
  kBool = 11,
  kBfloat16 = 15,
  kFloat8E5m2 = 23,
  kFloat8E4m3fn = 24,
  kFloat8E5m2fnuz = 25,
  kFloat8E4m3fnuz = 26,
  kUint16 = 27,
  kUint32 = 28,
  kUint64 = 29,
  kFloat8E8m0fnu = 44,
};

constexpr size_t kDtypeCount = 45;  // one past the highest number

// Bytes of an element; 0 where the number is no format of this file.
constexpr int64_t item_size(Dtype dtype) {
  switch (dtype) {
    case Dtype::kUint8:
    case Dtype::kInt8:
    case Dtype::kBool:
    case Dtype::kFloat8E5m2:
    case Dtype::kFloat8E4m3fn:
    case Dtype::kFloat8E5m2fnuz:
    case Dtype::kFloat8E4m3fnuz:
    case Dtype::kFloat8E8m0fnu:
      return 1;
    case Dtype::kInt16:
    case Dtype::kUint16:
    case Dtype::kFloat16:
    case Dtype::kBfloat16:
      return 2;
    case Dtype::kInt32:
    case Dtype::kUint32:
    case Dtype::kFloat32:
      return 4;
    case Dtype::kInt64:
    case Dtype::kUint64:
    case Dtype::kFloat64:
    case Dtype::kComplex64:
      return 8;
    case Dtype::kComplex128:
      return 16;
  }
  return 0;
}

constexpr bool is_complex(Dtype dtype) {
  return dtype == Dtype::kComplex64 || dtype == Dtype::kComplex128;
}

constexpr bool is_float8(Dtype dtype) {
  return (dtype >= Dtype::kFloat8E5m2 && dtype <= Dtype::kFloat8E4m3fnuz) ||
         dtype == Dtype::kFloat8E8m0fnu;
}

constexpr bool is_float(Dtype dtype) {
  return dtype == Dtype::kFloat16 || dtype == Dtype::kBfloat16 || dtype == Dtype::kFloat32 ||
         dtype == Dtype::kFloat64 || is_float8(dtype);
}

// The dtype of a complex number's two parts; any other dtype is its own.
constexpr Dtype part_of(Dtype dtype) {
  if (dtype == Dtype::kComplex64) return Dtype::kFloat32;
  return dtype == Dtype::kComplex128 ? Dtype::kFloat64 : dtype;
}

}  // namespace ndtorch
