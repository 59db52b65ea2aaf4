// Pictures between interleaved pixels (HWC) and planes (CHW), scaled and normalised in one pass.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace ndtorch {

// Pictures of pixels into dense memory: NCHW, or NHWC where `is_interleaved`.
struct PixelsRequest {
  int64_t shape[4];  // pictures, height, width, channels
  const void* src;   // any strides, in bytes, in the order of `shape`
  int64_t src_strides[4];
  Dtype src_dtype;  // uint8, uint16, float16, float32 or float64
  bool src_is_swapped;
  void* dst;
  Dtype dst_dtype;  // float32, float16 or bfloat16
  bool is_interleaved;
  Affine affine;
};

Outcome pixels_to_planes(const PixelsRequest& request, int threads, Interrupt interrupt);

// Planes, or interleaved channels, back to dense NHWC pixels.
struct DisplayRequest {
  int64_t shape[4];  // pictures, height, width, channels
  const void* src;   // float32, float16 or bfloat16, dense along the width
  int64_t src_strides[4];
  Dtype src_dtype;
  bool is_interleaved;  // channels dense within a pixel, pixels dense along the width
  void* dst;
  Dtype dst_dtype;  // uint8, uint16 or float32
  Affine affine;    // mean and std alone are used
};

Outcome planes_to_pixels(const DisplayRequest& request, int threads, Interrupt interrupt);

}  // namespace ndtorch
