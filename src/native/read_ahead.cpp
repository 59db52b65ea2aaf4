// Rows of mapped files that will be wanted soon.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "gather.h"

namespace ndtorch {
namespace {

constexpr uintptr_t kSampledPages = 16;

struct Span {
  uintptr_t begin, end;
};

uintptr_t page_size() {
  static const auto size = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return size;
}

Span pages_of(RowExtent row, const Rows& rows, int64_t i) {
  const uintptr_t page = page_size();
  const auto first = reinterpret_cast<uintptr_t>(row.first) +
                     static_cast<uintptr_t>(rows.indices[i] * rows.src_stride);
  return {first / page * page,
          (first + static_cast<uintptr_t>(row.nbytes) + page - 1) / page * page};
}

bool is_in_memory(Span span) {
  unsigned char is_there[kSampledPages];
  const uintptr_t count = std::min((span.end - span.begin) / page_size(), kSampledPages);
#if defined(__linux__)
  unsigned char* out = is_there;
#else
  auto* out = reinterpret_cast<char*>(is_there);
#endif
  if (mincore(reinterpret_cast<void*>(span.begin), count * page_size(), out) != 0) return false;
  return std::all_of(is_there, is_there + count,
                     [](unsigned char bits) { return (bits & 1) != 0; });
}

}  // namespace

bool seem_in_memory(RowExtent row, const Rows& rows) {
  const int64_t samples = std::min(kSampledRows, rows.count);
  for (int64_t i = 0; i < samples; ++i) {
    if (!is_in_memory(pages_of(row, rows, rows.count * i / samples))) return false;
  }
  return true;
}

void announce_rows(RowExtent row, const Rows& rows, bool may_skip) {
  if (rows.count == 0 || row.nbytes == 0) return;
  if (may_skip && seem_in_memory(row, rows)) return;
  std::vector<Span> spans(static_cast<size_t>(rows.count));
  for (int64_t i = 0; i < rows.count; ++i) spans[static_cast<size_t>(i)] = pages_of(row, rows, i);
  std::sort(spans.begin(), spans.end(), [](Span a, Span b) { return a.begin < b.begin; });
  for (size_t i = 0; i < spans.size();) {
    Span merged = spans[i];
    for (++i; i < spans.size() && spans[i].begin <= merged.end; ++i) {
      merged.end = std::max(merged.end, spans[i].end);
    }
    madvise(reinterpret_cast<void*>(merged.begin), merged.end - merged.begin, MADV_WILLNEED);
  }
}

}  // namespace ndtorch
