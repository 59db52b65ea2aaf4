#include "pieces.h"

#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <utility>

namespace ndtorch {
namespace {

// Which place a piece has among those seen so far. As large as the rows are many, however many
// pieces there are: a table of them all where that is no larger, and else one that is searched.
class Places {
 public:
  Places(int64_t pieces, int64_t rows) {
    constexpr int64_t kPerRow = 8;  // entries that cost less to clear than a row to look up
    const bool has_all = pieces <= kPerRow * rows;
    const auto entries = static_cast<uint64_t>(has_all ? pieces : 2 * rows);
    const int bits = std::bit_width(std::max<uint64_t>(entries, 2) - 1);
    shift_ = has_all ? 0 : 64 - bits;
    factor_ = has_all ? 1 : 0x9e3779b97f4a7c15U;  // 2^64 over the golden ratio
    entries_.assign(size_t{1} << bits, -1);
  }

  // Its entry, which is -1 where it has not been among `seen`.
  int32_t& of(int64_t piece, const std::vector<int64_t>& seen) {
    uint64_t at = static_cast<uint64_t>(piece) * factor_ >> shift_;
    while (entries_[at] >= 0 && seen[static_cast<size_t>(entries_[at])] != piece) {
      at = (at + 1) & (entries_.size() - 1);
    }
    return entries_[at];
  }

 private:
  uint64_t factor_;
  int shift_;
  std::vector<int32_t> entries_;
};

}  // namespace

int64_t FileSizes::of(const PieceFile& file) {
  const auto known = sizes_.find(file.inode);
  if (known != sizes_.end() && known->second.device == file.device) return known->second.nbytes;
  struct stat found{};
  const auto is_it = [&](int failed) {
    return failed == 0 && static_cast<uint64_t>(found.st_dev) == file.device &&
           static_cast<uint64_t>(found.st_ino) == file.inode;
  };
  // The number may be that of another file by now, which is seen then.
  const bool is_found =
      is_it(fstat(file.descriptor, &found)) || is_it(stat(file.path.c_str(), &found));
  const int64_t nbytes = is_found ? static_cast<int64_t>(found.st_size) : -1;
  sizes_.insert_or_assign(file.inode, Size{file.device, nbytes});
  return nbytes;
}

Pieces::Pieces(std::vector<int64_t> starts, int64_t row_nbytes)
    : starts_(std::move(starts)), row_nbytes_(row_nbytes), slots_(starts_.size() - 1) {
  // A stretch of rows of which the first piece is kept has about half a piece, if they are equal.
  while (rows() >> shift_ > 2 * count()) ++shift_;
  const int64_t stretches = (rows() >> shift_) + 1;
  first_.reserve(static_cast<size_t>(stretches) + 1);
  int64_t piece = 0;
  for (int64_t i = 0; i < stretches; ++i) {
    while (piece + 1 < count() && starts_[static_cast<size_t>(piece) + 1] <= i << shift_) ++piece;
    first_.push_back(static_cast<int32_t>(piece));
  }
  first_.push_back(static_cast<int32_t>(std::max<int64_t>(count() - 1, 0)));
}

Pieces::~Pieces() = default;

int64_t Pieces::find(int64_t row) const {
  const int32_t* first = first_.data() + (row >> shift_);
  const int64_t* begin = starts_.data() + first[0] + 1;
  // No branch where rows in random order would have it guessed wrong.
  if (first[1] - first[0] < 2) return first[0] + static_cast<int64_t>(row >= *begin);
  return std::upper_bound(begin, starts_.data() + first[1] + 1, row) - starts_.data() - 1;
}

Touched Pieces::touched(const int64_t* rows, int64_t count, int64_t most) const {
  Touched found;
  found.of_rows.reserve(static_cast<size_t>(count));
  Places places(this->count(), count);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t piece = find(rows[i]);
    int32_t& at = places.of(piece, found.pieces);
    if (at < 0) {
      if (static_cast<int64_t>(found.pieces.size()) == most) break;
      at = static_cast<int32_t>(found.pieces.size());
      found.pieces.push_back(piece);
    }
    found.of_rows.push_back(at);
  }
  return found;
}

bool Pieces::hold(int64_t piece) const {
  Slot& each = slot(piece);
  int32_t holders = each.holders.load(std::memory_order_relaxed);
  do {
    if (holders == kAbsent) return false;
  } while (!each.holders.compare_exchange_weak(holders, holders + 1, std::memory_order_acquire,
                                               std::memory_order_relaxed));
  each.used.store(clock_.fetch_add(1, std::memory_order_relaxed), std::memory_order_relaxed);
  return true;
}

void Pieces::let_go(int64_t piece) const {
  slot(piece).holders.fetch_sub(1, std::memory_order_release);
}

uint64_t Pieces::address(int64_t piece) const {
  return reinterpret_cast<uintptr_t>(slot(piece).piece->first) -
         behind(starts_[static_cast<size_t>(piece)]);
}

bool Pieces::is_whole(int64_t piece, FileSizes& sizes) const {
  const PieceFile& file = slot(piece).piece->file;
  return sizes.of(file) >= file.end;
}

std::vector<int64_t> Pieces::not_whole(const std::vector<int64_t>& held, int64_t looks,
                                       FileSizes& sizes) const {
  std::vector<int64_t> found, others;
  for (const int64_t piece : held) {
    if (!slot(piece).piece->is_map) {
      others.push_back(piece);
    } else if (!is_whole(piece, sizes)) {
      found.push_back(piece);
    }
  }
  const auto count = std::min(static_cast<uint64_t>(looks), static_cast<uint64_t>(others.size()));
  const uint64_t begin = turn_.fetch_add(count, std::memory_order_relaxed);
  for (uint64_t i = begin; i < begin + count; ++i) {
    const int64_t piece = others[i % others.size()];
    if (!is_whole(piece, sizes)) found.push_back(piece);
  }
  return found;
}

void Pieces::put(int64_t number, Piece piece) {
  Slot& each = slot(number);
  auto held = std::make_unique<Piece>(std::move(piece));
  open_.push_back(number);  // the last that can fail
  each.piece = std::move(held);
  each.used.store(clock_.fetch_add(1, std::memory_order_relaxed), std::memory_order_relaxed);
  each.holders.store(1, std::memory_order_release);
}

void* Pieces::take_out(int64_t kept) {
  if (open_count() <= kept) return nullptr;
  const uint32_t now = clock_.load(std::memory_order_relaxed);
  auto oldest = open_.end();
  uint32_t age = 0;
  for (auto at = open_.begin(); at != open_.end(); ++at) {
    if (slot(*at).holders.load(std::memory_order_relaxed) != 0) continue;
    const uint32_t unused = now - slot(*at).used.load(std::memory_order_relaxed);
    if (oldest == open_.end() || unused > age) {
      oldest = at;
      age = unused;
    }
  }
  if (oldest == open_.end()) return nullptr;
  Slot& each = slot(*oldest);
  int32_t nobody = 0;
  if (!each.holders.compare_exchange_strong(nobody, kAbsent, std::memory_order_acquire)) {
    return nullptr;  // somebody wants it after all: the next to put one tries again
  }
  const std::unique_ptr<Piece> piece = std::move(each.piece);
  *oldest = open_.back();
  open_.pop_back();
  return piece->owner;
}

HeldRows::HeldRows(const Pieces& pieces, const Touched& touched, const int64_t* rows,
                   int64_t offset)
    : pieces_(&pieces), held_(touched.pieces) {
  const size_t count = touched.of_rows.size();
  if (count == 0) return;
  std::vector<uint64_t> begins;
  for (const int64_t piece : held_) begins.push_back(pieces.address(piece));
  const auto place_of = [&](size_t i) {
    return begins[static_cast<size_t>(touched.of_rows[i])] + pieces.behind(rows[i]) +
           static_cast<uint64_t>(offset);
  };
  const uint64_t origin = place_of(0);
  origin_ = reinterpret_cast<const char*>(origin);
  places_.resize(count);
  for (size_t i = 0; i < count; ++i) places_[i] = static_cast<int64_t>(place_of(i) - origin);
}

HeldRows::HeldRows(HeldRows&& other) noexcept
    : pieces_(std::exchange(other.pieces_, nullptr)),
      held_(std::move(other.held_)),
      origin_(other.origin_),
      places_(std::move(other.places_)) {}

HeldRows::~HeldRows() {
  if (pieces_ == nullptr) return;
  for (const int64_t piece : held_) pieces_->let_go(piece);
}

namespace {

// Those of some rows whose pieces are there.
HeldRows hold_present(const Pieces& pieces, const int64_t* rows, int64_t count) {
  const Touched all = pieces.touched(rows, count, pieces.count());
  Touched present;
  std::vector<int32_t> which(all.pieces.size(), -1);
  for (size_t i = 0; i < all.pieces.size(); ++i) {
    if (!pieces.hold(all.pieces[i])) continue;
    which[i] = static_cast<int32_t>(present.pieces.size());
    present.pieces.push_back(all.pieces[i]);
  }
  std::vector<int64_t> numbers;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t at = which[static_cast<size_t>(all.of_rows[static_cast<size_t>(i)])];
    if (at < 0) continue;
    present.of_rows.push_back(at);
    numbers.push_back(rows[i]);
  }
  return {pieces, present, numbers.data(), 0};
}

}  // namespace

void announce_present(const Pieces& pieces, const int64_t* rows, int64_t count, RowExtent row,
                      bool may_skip) {
  if (count == 0 || row.nbytes == 0) return;
  const auto extent_in = [&](const HeldRows& held) {
    return RowExtent{held.origin() + reinterpret_cast<intptr_t>(row.first), row.nbytes};
  };
  if (may_skip) {  // before all of them are looked up
    int64_t samples[kSampledRows];
    const int64_t few = std::min(kSampledRows, count);
    for (int64_t i = 0; i < few; ++i) samples[i] = rows[count * i / few];
    const HeldRows held = hold_present(pieces, samples, few);
    if (held.count() == 0 || seem_in_memory(extent_in(held), held.rows(0, held.count(), 0))) return;
  }
  const HeldRows held = hold_present(pieces, rows, count);
  if (held.count() > 0) announce_rows(extent_in(held), held.rows(0, held.count(), 0), false);
}

}  // namespace ndtorch
