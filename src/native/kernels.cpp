#include "kernels.h"

#include <cstdlib>
#include <string_view>

namespace ndtorch {

#define NDTORCH_DECLARE_LEVEL(level) \
  namespace level {                  \
  void fill_casts(Kernels& table);   \
  void fill_moves(Kernels& table);   \
  void fill_pixels(Kernels& table);  \
  }

NDTORCH_DECLARE_LEVEL(baseline)
#ifdef NDTORCH_X86_LEVELS
NDTORCH_DECLARE_LEVEL(x86_64_v3)
NDTORCH_DECLARE_LEVEL(x86_64_v4)
#endif

namespace {

#define NDTORCH_FILL(table, name)      \
  do {                                 \
    (table).level = #name;             \
    ndtorch::name::fill_casts(table);  \
    ndtorch::name::fill_moves(table);  \
    ndtorch::name::fill_pixels(table); \
  } while (false)

// `NDTORCH_LEVEL=baseline` or `x86_64_v3` asks for less than the machine has.
Kernels choose() {
  Kernels table{};
#ifdef NDTORCH_X86_LEVELS
  const char* wish = std::getenv("NDTORCH_LEVEL");
  const std::string_view at_most = wish == nullptr ? "" : wish;
  __builtin_cpu_init();
  if (at_most != "baseline") {
    if (at_most != "x86_64_v3" && __builtin_cpu_supports("x86-64-v4")) {
      NDTORCH_FILL(table, x86_64_v4);
      return table;
    }
    if (__builtin_cpu_supports("x86-64-v3")) {
      NDTORCH_FILL(table, x86_64_v3);
      return table;
    }
  }
#endif
  NDTORCH_FILL(table, baseline);
  return table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = choose();
  return table;
}

}  // namespace ndtorch
