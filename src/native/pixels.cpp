// Kernels for pictures: interleaved pixels to planes, scaled and normalised on the way, and back.
#include <algorithm>
#include <bit>

#include "formats.h"
#include "kernels.h"
#include "levels.h"

namespace ndtorch::NDTORCH_LEVEL {
namespace {

using Float32 = Plain<float>;

template <typename T>
struct Loose {
  typedef T Type __attribute__((aligned(1), may_alias));
};

// Interleaved channels repeat every 48 elements for 1, 3 and 4 of them: three vectors of 16.
constexpr size_t kPeriod = 48;

enum class Method { kReciprocal, kDivide, kMultiply, kMultiplyOnly };

// The constants of one channel. By value, so that they stay in registers.
struct Step {
  float scale, scale_low, mean, std, std_low;
};

template <Method kMethod>
inline float apply(float x, const Step& step) {
  if constexpr (kMethod == Method::kReciprocal) {
    // A product with a reciprocal in two parts, which rounds as the quotient does.
    const float scaled = __builtin_fmaf(x, step.scale, x * step.scale_low) - step.mean;
    return __builtin_fmaf(scaled, step.std, scaled * step.std_low);
  } else if constexpr (kMethod == Method::kDivide) {
    return (x / step.scale - step.mean) / step.std;
  } else if constexpr (kMethod == Method::kMultiply) {
    return (x * step.scale - step.mean) / step.std;
  } else {
    return x * step.scale - step.mean;
  }
}

template <Method kMethod>
Step step_of(const Affine& affine, int channel) {
  if constexpr (kMethod == Method::kReciprocal) {
    return {affine.scale_high, affine.scale_low, affine.mean[channel], affine.std_high[channel],
            affine.std_low[channel]};
  } else {
    return {kMethod == Method::kDivide ? affine.divisor : affine.factor, 0, affine.mean[channel],
            affine.std[channel], 0};
  }
}

template <typename From, typename To, Method kMethod, int kChannels>
void to_planes(void* const* planes, const void* pixels, size_t count, const Affine& affine) {
  using Item = typename Loose<typename To::Storage>::Type;
  auto* __restrict source =
      static_cast<const typename Loose<typename From::Storage>::Type*>(pixels);
  Step steps[kChannels];
  for (int c = 0; c < kChannels; ++c) steps[c] = step_of<kMethod>(affine, c);
  Item* __restrict first = static_cast<Item*>(planes[0]);
  if constexpr (kChannels == 1) {
    for (size_t i = 0; i < count; ++i) {
      first[i] = To::store(apply<kMethod>(static_cast<float>(source[i]), steps[0]));
    }
  } else {
    Item* __restrict second = static_cast<Item*>(planes[1]);
    Item* __restrict third = static_cast<Item*>(planes[2]);
    Item* __restrict fourth = static_cast<Item*>(planes[kChannels - 1]);
    for (size_t i = 0; i < count; ++i) {
      first[i] = To::store(apply<kMethod>(static_cast<float>(source[i * kChannels]), steps[0]));
      second[i] =
          To::store(apply<kMethod>(static_cast<float>(source[i * kChannels + 1]), steps[1]));
      third[i] = To::store(apply<kMethod>(static_cast<float>(source[i * kChannels + 2]), steps[2]));
      if constexpr (kChannels == 4) {
        fourth[i] =
            To::store(apply<kMethod>(static_cast<float>(source[i * kChannels + 3]), steps[3]));
      }
    }
  }
}

template <typename From, typename To, Method kMethod>
void to_interleaved(void* const* planes, const void* pixels, size_t count, const Affine& affine) {
  auto* __restrict target = static_cast<typename Loose<typename To::Storage>::Type*>(planes[0]);
  auto* __restrict source =
      static_cast<const typename Loose<typename From::Storage>::Type*>(pixels);
  Step steps[kPeriod];
  for (size_t k = 0; k < kPeriod; ++k) {
    steps[k] = step_of<kMethod>(affine, static_cast<int>(k) % affine.channels);
  }
  float scale[kPeriod], scale_low[kPeriod], mean[kPeriod], std[kPeriod], std_low[kPeriod];
  for (size_t k = 0; k < kPeriod; ++k) {
    scale[k] = steps[k].scale;
    scale_low[k] = steps[k].scale_low;
    mean[k] = steps[k].mean;
    std[k] = steps[k].std;
    std_low[k] = steps[k].std_low;
  }
  const size_t items = count * static_cast<size_t>(affine.channels);
  for (size_t start = 0; start < items; start += kPeriod) {
    const size_t n = std::min(kPeriod, items - start);
    for (size_t k = 0; k < n; ++k) {
      const Step step{scale[k], scale_low[k], mean[k], std[k], std_low[k]};
      target[start + k] = To::store(apply<kMethod>(static_cast<float>(source[start + k]), step));
    }
  }
}

template <typename From, typename To, Method kMethod, bool kInterleaved>
void convert_pixels(void* const* planes, const void* pixels, size_t count, const Affine& affine) {
  if (kInterleaved) {
    to_interleaved<From, To, kMethod>(planes, pixels, count, affine);
  } else if (affine.channels == 1) {
    to_planes<From, To, kMethod, 1>(planes, pixels, count, affine);
  } else if (affine.channels == 3) {
    to_planes<From, To, kMethod, 3>(planes, pixels, count, affine);
  } else {
    to_planes<From, To, kMethod, 4>(planes, pixels, count, affine);
  }
}

template <typename From, typename To, bool kInterleaved>
void pixels(void* const* planes, const void* source, size_t count, const Affine& affine) {
  if (std::is_same_v<From, Plain<uint8_t>> && affine.by_reciprocal) {
    convert_pixels<From, To, Method::kReciprocal, kInterleaved>(planes, source, count, affine);
  } else if (affine.divides) {
    convert_pixels<From, To, Method::kDivide, kInterleaved>(planes, source, count, affine);
  } else if (affine.has_std) {
    convert_pixels<From, To, Method::kMultiply, kInterleaved>(planes, source, count, affine);
  } else {
    convert_pixels<From, To, Method::kMultiplyOnly, kInterleaved>(planes, source, count, affine);
  }
}

void split_reciprocal(float divisor, float* high, float* low) {
  *high = 1.0F / divisor;
  *low = static_cast<float>(1.0 / static_cast<double>(divisor) - static_cast<double>(*high));
}

void find_reciprocals(Affine& affine) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  Affine tried = affine;
  if (tried.divides) {
    split_reciprocal(tried.divisor, &tried.scale_high, &tried.scale_low);
  } else {
    tried.scale_high = tried.factor;
    tried.scale_low = 0;
  }
  unsigned differs = 0;
  for (int c = 0; c < tried.channels; ++c) {
    if (tried.has_std) split_reciprocal(tried.std[c], &tried.std_high[c], &tried.std_low[c]);
    const Step fast = step_of<Method::kReciprocal>(tried, c);
    const Step slow =
        tried.divides ? step_of<Method::kDivide>(tried, c) : step_of<Method::kMultiply>(tried, c);
    for (int pixel = 0; pixel < 256; ++pixel) {
      const auto x = static_cast<float>(pixel);
      const float exact =
          tried.divides ? apply<Method::kDivide>(x, slow) : apply<Method::kMultiply>(x, slow);
      differs |= std::bit_cast<uint32_t>(exact) ^
                 std::bit_cast<uint32_t>(apply<Method::kReciprocal>(x, fast));
    }
  }
  tried.by_reciprocal = differs == 0;
  if (tried.by_reciprocal) affine = tried;
#else
  (void)affine;
  (void)split_reciprocal;
#endif
}

// ---- the way back ----------------------------------------------------------------------------

template <typename To>
inline typename To::Storage display_one(float x, float std, float mean) {
  const float shown = x * std + mean;
  if constexpr (To::kIsFloat) {
    const float low = shown < 0 ? 0 : shown;  // NaN stays NaN
    return low > 1 ? 1 : low;
  } else {
    constexpr auto kLargest = static_cast<float>(std::numeric_limits<typename To::Storage>::max());
    const float low = shown > 0 ? shown : 0;  // NaN becomes 0
    const float clamped = low < 1 ? low : 1;
    // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the last bits.
    constexpr float kMagic = 12582912.0F;
    return static_cast<typename To::Storage>(std::bit_cast<uint32_t>(clamped * kLargest + kMagic));
  }
}

template <typename From, typename To, int kChannels>
void from_planes(void* pixels, const void* const* planes, size_t count, const Affine& affine) {
  using Item = const typename Loose<typename From::Storage>::Type;
  auto* __restrict target = static_cast<typename Loose<typename To::Storage>::Type*>(pixels);
  Item* __restrict sources[kChannels];
  float std[kChannels], mean[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    sources[c] = static_cast<Item*>(planes[c]);
    std[c] = affine.std[c];
    mean[c] = affine.mean[c];
  }
  for (size_t i = 0; i < count; ++i) {
    for (int c = 0; c < kChannels; ++c) {
      target[i * kChannels + static_cast<size_t>(c)] =
          display_one<To>(From::load(sources[c][i]), std[c], mean[c]);
    }
  }
}

template <typename From, typename To>
void from_interleaved(void* pixels, const void* const* planes, size_t count, const Affine& affine) {
  auto* __restrict target = static_cast<typename Loose<typename To::Storage>::Type*>(pixels);
  auto* __restrict source =
      static_cast<const typename Loose<typename From::Storage>::Type*>(planes[0]);
  float std[kPeriod], mean[kPeriod];
  for (size_t k = 0; k < kPeriod; ++k) {
    std[k] = affine.std[static_cast<int>(k) % affine.channels];
    mean[k] = affine.mean[static_cast<int>(k) % affine.channels];
  }
  const size_t items = count * static_cast<size_t>(affine.channels);
  for (size_t start = 0; start < items; start += kPeriod) {
    const size_t n = std::min(kPeriod, items - start);
    for (size_t k = 0; k < n; ++k) {
      target[start + k] = display_one<To>(From::load(source[start + k]), std[k], mean[k]);
    }
  }
}

template <typename From, typename To, bool kInterleaved>
void display(void* pixels, const void* const* planes, size_t count, const Affine& affine) {
  if (kInterleaved) {
    from_interleaved<From, To>(pixels, planes, count, affine);
  } else if (affine.channels == 1) {
    from_planes<From, To, 1>(pixels, planes, count, affine);
  } else if (affine.channels == 3) {
    from_planes<From, To, 3>(pixels, planes, count, affine);
  } else {
    from_planes<From, To, 4>(pixels, planes, count, affine);
  }
}

template <typename From>
void fill_pixels_from(std::array<std::array<PixelKernel, 2>, 3>& table) {
  table = {{{pixels<From, Float32, false>, pixels<From, Float32, true>},
            {pixels<From, Float16, false>, pixels<From, Float16, true>},
            {pixels<From, Bfloat16, false>, pixels<From, Bfloat16, true>}}};
}

template <typename From>
void fill_display_from(std::array<std::array<DisplayKernel, 2>, 3>& table) {
  table = {{{display<From, Plain<uint8_t>, false>, display<From, Plain<uint8_t>, true>},
            {display<From, Plain<uint16_t>, false>, display<From, Plain<uint16_t>, true>},
            {display<From, Float32, false>, display<From, Float32, true>}}};
}

}  // namespace

void fill_pixels(Kernels& table) {
  table.find_reciprocals = find_reciprocals;
  fill_pixels_from<Plain<uint8_t>>(table.pixels[0]);
  fill_pixels_from<Plain<uint16_t>>(table.pixels[1]);
  fill_pixels_from<Float32>(table.pixels[2]);
  fill_display_from<Float32>(table.display[0]);
  fill_display_from<Float16>(table.display[1]);
  fill_display_from<Bfloat16>(table.display[2]);
}

}  // namespace ndtorch::NDTORCH_LEVEL
