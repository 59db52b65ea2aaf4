#include "pictures.h"

#include <algorithm>

#include "copy.h"

namespace ndtorch {
namespace {

constexpr int64_t kPixels = 8192;    // of a unit: its memory fits the second cache
constexpr int64_t kGathered = 1024;  // pixels that go through the buffer at a time

// Runs of pixels: every picture has `rows` of `width`, cut into `blocks`.
struct Runs {
  int64_t rows, width, blocks;

  // Pictures whose rows follow each other without a gap count as one long row.
  Runs(int64_t height, int64_t pixels, bool is_gapless)
      : rows(is_gapless ? 1 : height),
        width(is_gapless ? height * pixels : pixels),
        blocks((width + kPixels - 1) / kPixels) {}

  struct Run {
    int64_t picture, row, column, count;
  };

  Run at(int64_t unit) const {
    const int64_t column = unit % blocks * kPixels;
    return {unit / blocks / rows, unit / blocks % rows, column, std::min(kPixels, width - column)};
  }
};

// Index of a dtype in a row of the kernels' tables.
size_t index_among(Dtype dtype, Dtype first, Dtype second) {
  if (dtype == first) return 0;
  return dtype == second ? 1 : 2;
}

template <typename Run>
Outcome run_pictures(const int64_t* shape, const Runs& runs, int64_t pixel_bytes, int threads,
                     Interrupt interrupt, Run run) {
  const int64_t units = shape[0] * runs.rows * runs.blocks;
  const int64_t nbytes = shape[0] * shape[1] * shape[2] * pixel_bytes;
  if (nbytes == 0) return Outcome::kDone;
  const int64_t grain = std::max<int64_t>(1, kChunkBytes / std::max<int64_t>(1, nbytes / units));
  return parallel_for(units, grain, threads_for(nbytes, threads), interrupt,
                      [&](int64_t begin, int64_t end) {
                        for (; begin < end; ++begin) run(runs.at(begin));
                        return true;
                      });
}

// Pixels that no kernel reads as they lie: into a dense buffer, in native order, floats as float32.
void gather_pixels(const PixelsRequest& request, const char* src, Dtype dtype, int64_t count,
                   void* buffer) {
  const int64_t shape[] = {count, request.shape[3]};
  const int64_t size = item_size(dtype);
  const int64_t strides[] = {request.shape[3] * size, size};
  const StridedCopy copy({.ndim = 2,
                          .shape = shape,
                          .dst = buffer,
                          .dst_strides = strides,
                          .dst_dtype = dtype,
                          .src = src,
                          .src_strides = request.src_strides + 2,
                          .src_dtype = request.src_dtype,
                          .src_is_swapped = request.src_is_swapped,
                          .exact = false});
  copy.run(0, copy.units());
}

}  // namespace

Outcome pixels_to_planes(const PixelsRequest& request, int threads, Interrupt interrupt) {
  const int64_t height = request.shape[1], width = request.shape[2], channels = request.shape[3];
  const int64_t* strides = request.src_strides;
  const bool is_integer = request.src_dtype == Dtype::kUint8 || request.src_dtype == Dtype::kUint16;
  const Dtype read_as = is_integer ? request.src_dtype : Dtype::kFloat32;
  const int64_t size = item_size(request.src_dtype), out_size = item_size(request.dst_dtype);
  const bool is_dense = request.src_dtype == read_as && (!request.src_is_swapped || size == 1) &&
                        (channels == 1 || strides[3] == size) && strides[2] == channels * size;
  const bool is_gapless = is_dense && strides[1] == width * channels * size;
  const Runs runs(height, width, is_gapless);
  const Kernels& table = kernels();
  const PixelKernel kernel =
      table.pixels[index_among(read_as, Dtype::kUint8, Dtype::kUint16)][index_among(
          request.dst_dtype, Dtype::kFloat32, Dtype::kFloat16)][request.is_interleaved ? 1 : 0];
  const auto convert = [&](const void* pixels, int64_t picture, int64_t at, int64_t count) {
    char* dst = static_cast<char*>(request.dst) + picture * height * width * channels * out_size;
    void* planes[kMaxChannels];
    for (int64_t c = 0; c < channels; ++c) {
      planes[c] =
          dst + (request.is_interleaved ? at * channels : c * height * width + at) * out_size;
    }
    kernel(planes, pixels, static_cast<size_t>(count), request.affine);
  };
  return run_pictures(
      request.shape, runs, channels * (size + out_size), threads, interrupt, [&](Runs::Run run) {
        const char* src = static_cast<const char*>(request.src) + run.picture * strides[0] +
                          run.row * strides[1] + run.column * strides[2];
        const int64_t at = run.row * runs.width + run.column;
        if (is_dense) {
          convert(src, run.picture, at, run.count);
          return;
        }
        alignas(64) char buffer[kGathered * kMaxChannels * 4];
        for (int64_t i = 0; i < run.count; i += kGathered) {
          const int64_t count = std::min(kGathered, run.count - i);
          gather_pixels(request, src + i * strides[2], read_as, count, buffer);
          convert(buffer, run.picture, at + i, count);
        }
      });
}

Outcome planes_to_pixels(const DisplayRequest& request, int threads, Interrupt interrupt) {
  const int64_t height = request.shape[1], width = request.shape[2], channels = request.shape[3];
  const int64_t* strides = request.src_strides;
  const int64_t size = item_size(request.src_dtype), out_size = item_size(request.dst_dtype);
  const Runs runs(height, width, strides[1] == width * strides[2]);
  const DisplayKernel kernel =
      kernels()
          .display[index_among(request.src_dtype, Dtype::kFloat32, Dtype::kFloat16)][index_among(
              request.dst_dtype, Dtype::kUint8, Dtype::kUint16)][request.is_interleaved ? 1 : 0];
  return run_pictures(
      request.shape, runs, channels * (size + out_size), threads, interrupt, [&](Runs::Run run) {
        const char* src = static_cast<const char*>(request.src) + run.picture * strides[0] +
                          run.row * strides[1] + run.column * strides[2];
        const void* planes[kMaxChannels];
        for (int64_t c = 0; c < channels; ++c) planes[c] = src + c * strides[3];
        const int64_t at = (run.picture * height * width) + run.row * runs.width + run.column;
        kernel(static_cast<char*>(request.dst) + at * channels * out_size, planes,
               static_cast<size_t>(run.count), request.affine);
      });
}

}  // namespace ndtorch
