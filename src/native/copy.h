// Copies of strided memory: any layout to any layout, cast, swapped and transposed on the way, in
// one pass. No Python and no allocation here; a `StridedCopy` lives on its caller's stack.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "kernels.h"
#include "threads.h"

namespace ndtorch {

// Read and written by one chunk of work: enough that taking it costs nothing, and little enough
// that a thread which loses its core does not keep the others waiting.
constexpr int64_t kChunkBytes = 1 << 18;

constexpr int kMaxDims = 64;  // NumPy's own limit

// What is copied. Strides are in bytes; the target's are in native order and do not overlap, and
// source and target have no byte in common.
struct CopyRequest {
  int ndim;
  const int64_t* shape;
  void* dst;
  const int64_t* dst_strides;
  Dtype dst_dtype;
  const void* src;
  const int64_t* src_strides;
  Dtype src_dtype;
  bool src_is_swapped;
  bool exact;  // stop at an element whose value would not survive
};

// Whether the formats are ones that `StridedCopy` converts.
bool can_cast(Dtype from, Dtype to);

// A copy made ready: axes sorted and merged, kernels chosen. It keeps nothing of the request but
// the two addresses. Units are independent of each other.
class StridedCopy {
 public:
  explicit StridedCopy(const CopyRequest& request);

  int64_t units() const { return units_; }
  int64_t unit_bytes() const { return unit_bytes_; }  // about, of source and target together

  // False where an element would not survive an exact cast.
  bool run(int64_t begin, int64_t end) const;

  // Makes it the same copy from and to other addresses, so many bytes further on.
  void move(int64_t dst, int64_t src) {
    dst_ += dst;
    src_ += src;
  }

 private:
  struct Axis {
    int64_t size, dst, src;
  };
  // Conversion as up to three kernels one after the other, such as float8 to float32 to int64.
  struct Step {
    CastKernel kernel;
    int64_t dst_size;
    int64_t per_item;  // elements that the kernel counts in one item
  };

  void simplify(const CopyRequest& request);
  void choose_steps(const CopyRequest& request);
  void choose_tiles();
  void add_step(CastKernel kernel, int64_t dst_size, int64_t per_item = 1);

  bool run_items(int64_t begin, int64_t end) const;
  bool run_tiles(int64_t begin, int64_t end) const;
  bool run_tile(char* dst, const char* src, int64_t rows, int64_t columns) const;
  void gather(char* dst, int64_t begin, int64_t count) const;
  void scatter(const char* src, int64_t begin, int64_t count) const;
  bool convert(char* dst, const char* src, int64_t count) const;
  void swap(char* dst, const char* src, int64_t count) const;

  const Kernels& kernels_;
  char* dst_;
  const char* src_;
  int64_t dst_size_, src_size_;  // of an item
  Axis axes_[kMaxDims];          // the last is the innermost
  int ndim_ = 0;
  int64_t items_ = 1;
  Step steps_[3];
  int step_count_ = 0;
  bool is_swapped_ = false;
  int64_t swap_size_ = 1, swaps_per_item_ = 1;
  bool is_dst_dense_ = false;
  bool is_src_dense_ = false;
  bool is_tiled_ = false;
  int tile_axis_ = 0;  // the axis along which the source is dense; the last is the target's
  int64_t tiles_ = 0, strips_ = 0;
  int64_t units_ = 0, unit_items_ = 0, unit_bytes_ = 0;
};

// Runs a copy on up to `threads` threads; kStopped means that a value would not survive.
Outcome copy(const StridedCopy& job, int threads, Interrupt interrupt);

// How many threads are worth waking for so many bytes.
int threads_for(int64_t nbytes, int threads);

}  // namespace ndtorch
