#include "permutation.h"

#include <bit>
#include <cstddef>
#include <numeric>
#include <utility>

namespace ndtorch {
namespace {

// Up to here the order is shuffled as a table, which fits the second cache and is a lookup later.
constexpr int64_t kTableUpTo = 1 << 16;

// A number below `bound`, all equally likely (Lemire 2019).
uint32_t below(uint32_t bound, uint64_t key, uint64_t* counter) {
  uint64_t product = (mix(key, (*counter)++) >> 32) * bound;
  const uint32_t least = -bound % bound;
  while (static_cast<uint32_t>(product) < least) {
    product = (mix(key, (*counter)++) >> 32) * bound;
  }
  return static_cast<uint32_t>(product >> 32);
}

inline uint32_t hash(uint32_t value, uint32_t key) {
  uint32_t h = (value + key) * 0x85ebca6bU;
  h ^= h >> 13;
  h *= 0xc2b2ae35U;
  return h ^ (h >> 16);
}

}  // namespace

uint64_t mix(uint64_t key, uint64_t number) {
  uint64_t z = key + (number + 1) * 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

Permutation::Permutation(int64_t count, uint64_t key) : count_(count) {
  if (count <= kTableUpTo) {
    table_.resize(static_cast<std::size_t>(count));
    std::iota(table_.begin(), table_.end(), 0U);
    uint64_t counter = 0;
    for (std::size_t i = table_.size(); i > 1; --i) {
      std::swap(table_[i - 1], table_[below(static_cast<uint32_t>(i), mix(key, 0), &counter)]);
    }
    return;
  }
  const int bits = std::bit_width(static_cast<uint64_t>(count - 1));
  low_bits_ = bits / 2;
  high_bits_ = bits - low_bits_;
  for (int i = 0; i < kRounds; ++i) {
    keys_[i] = static_cast<uint32_t>(mix(mix(key, 1), static_cast<uint64_t>(i)) >> 32);
  }
}

// A Feistel network on the next power of two, whose halves need not be equally wide.
uint64_t Permutation::scramble(uint64_t place) const {
  const auto low_mask = static_cast<uint32_t>((uint64_t{1} << low_bits_) - 1);
  const auto high_mask = static_cast<uint32_t>((uint64_t{1} << high_bits_) - 1);
  uint32_t low = static_cast<uint32_t>(place) & low_mask;
  auto high = static_cast<uint32_t>(place >> low_bits_);
  for (int i = 0; i < kRounds; i += 2) {
    high ^= hash(low, keys_[i]) & high_mask;
    low ^= hash(high, keys_[i + 1]) & low_mask;
  }
  return uint64_t{high} << low_bits_ | low;
}

void Permutation::fill(int64_t begin, int64_t end, int64_t* out) const {
  if (!table_.empty()) {
    for (int64_t i = begin; i < end; ++i) *out++ = table_[static_cast<std::size_t>(i)];
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    // Walking the cycle until it is back among our numbers: less than two steps on average.
    uint64_t number = scramble(static_cast<uint64_t>(i));
    while (number >= static_cast<uint64_t>(count_)) number = scramble(number);
    *out++ = static_cast<int64_t>(number);
  }
}

}  // namespace ndtorch
