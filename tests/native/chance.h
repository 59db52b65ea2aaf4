// What the tests of the kernels share: what must hold, and numbers by chance that are the same in
// every run.

#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

struct Random {
  std::mt19937_64 engine;
  int64_t below(int64_t n) { return static_cast<int64_t>(engine() % static_cast<uint64_t>(n)); }
  bool once_in(int64_t n) { return below(n) == 0; }
};
