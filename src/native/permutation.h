// A random order of the numbers 0 to n - 1 of which any stretch can be computed on its own: no
// table of n entries where n is large. Integers only, so it is the same on every machine.
#pragma once

#include <cstdint>
#include <vector>

namespace ndtorch {

class Permutation {
 public:
  // `key` is mixed before it is used; two keys have nothing to do with each other.
  Permutation(int64_t count, uint64_t key);

  int64_t count() const { return count_; }

  // out[i] is the number at the place `begin + i`, up to and without `end`.
  void fill(int64_t begin, int64_t end, int64_t* out) const;

 private:
  static constexpr int kRounds = 8;

  uint64_t scramble(uint64_t place) const;

  int64_t count_;
  int low_bits_ = 0, high_bits_ = 0;
  uint32_t keys_[kRounds];
  std::vector<uint32_t> table_;  // of few numbers: every order of them is equally likely
};

// A well mixed number for each pair: SplitMix64 (Steele, Lea and Flood 2014).
uint64_t mix(uint64_t key, uint64_t number);

}  // namespace ndtorch
