// Rows in pieces without Python, for sanitizers: where they are against a search from the first
// piece on, gathers against copies of each row; pieces that come and go while several threads hold
// them.
#include "pieces.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <new>
#include <thread>

#include "chance.h"
#include "file_rows.h"

namespace {

std::atomic<size_t> allocated{0};  // bytes, by everybody

}  // namespace

void* operator new(size_t nbytes) {
  allocated += nbytes;
  void* memory = std::malloc(nbytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace {

using namespace ndtorch;

std::vector<int64_t> some_starts(Random& random, int64_t count, bool are_equal) {
  std::vector<int64_t> starts{0};
  const int64_t size = 1 + random.below(40);
  for (int64_t i = 0; i < count; ++i) {
    starts.push_back(starts.back() + (are_equal ? size : random.below(3) * random.below(50)));
  }
  starts.back() += 1;  // not all are empty
  return starts;
}

std::vector<int64_t> picks(Random& random, int64_t count, int64_t length) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t& number : numbers) number = random.below(length);
  return numbers;
}

char value_at(int64_t row, int64_t byte) { return static_cast<char>(row * 7 + byte); }

// Memory of one piece, of exactly its size.
std::vector<char>* memory_of(const std::vector<int64_t>& starts, int64_t piece, int64_t row_bytes) {
  auto* memory = new std::vector<char>;
  const auto at = static_cast<size_t>(piece);
  for (int64_t row = starts[at]; row < starts[at + 1]; ++row) {
    for (int64_t byte = 0; byte < row_bytes; ++byte) memory->push_back(value_at(row, byte));
  }
  return memory;
}

void put(Pieces& pieces, const std::vector<int64_t>& starts, int64_t piece, bool is_map = true) {
  auto* memory = memory_of(starts, piece, pieces.row_nbytes());
  const auto inode = static_cast<uint64_t>(piece);
  pieces.put(piece, {memory->data(), {"", -1, 0, inode, 0}, memory, is_map});
}

void drop(void* owner) { delete static_cast<std::vector<char>*>(owner); }

void test_find(Random& random) {
  const auto starts = some_starts(random, 1 + random.below(60), random.below(2) == 0);
  const Pieces pieces(starts, 1);
  for (int64_t row = 0; row < starts.back(); ++row) {
    const auto after = std::upper_bound(starts.begin(), starts.end(), row);
    require(pieces.find(row) == after - starts.begin() - 1, "a row is found in its piece");
  }
}

void test_gather(Random& random) {
  const int64_t row_bytes = 1 + random.below(300);
  const auto starts = some_starts(random, 1 + random.below(30), random.below(2) == 0);
  Pieces pieces(starts, row_bytes);
  const auto numbers = picks(random, 1 + random.below(200), starts.back());
  const int64_t most = 1 + random.below(12);
  const int64_t offset = random.below(row_bytes), width = row_bytes - offset;
  for (int64_t done = 0; done < static_cast<int64_t>(numbers.size());) {
    const int64_t* rows = numbers.data() + done;
    const auto left = static_cast<int64_t>(numbers.size()) - done;
    const Touched touched = pieces.touched(rows, left, most);
    require(static_cast<int64_t>(touched.pieces.size()) <= most, "no more than may be held");
    for (const int64_t piece : touched.pieces) {
      if (!pieces.hold(piece)) put(pieces, starts, piece);
    }
    const HeldRows held(pieces, touched, rows, offset);
    require(held.count() > 0 && held.count() <= left, "some rows are held");
    std::vector<char> got(static_cast<size_t>(held.count() * width));
    const int64_t step = 1;
    const CopyRequest row{.ndim = 1,
                          .shape = &width,
                          .dst = got.data(),
                          .dst_strides = &step,
                          .dst_dtype = Dtype::kUint8,
                          .src = held.origin(),
                          .src_strides = &step,
                          .src_dtype = Dtype::kUint8,
                          .src_is_swapped = false,
                          .exact = false};
    RowGather(row, held.rows(0, held.count(), width)).run();
    for (int64_t i = 0; i < held.count(); ++i) {
      for (int64_t byte = 0; byte < width; ++byte) {
        require(got[static_cast<size_t>(i * width + byte)] == value_at(rows[i], offset + byte),
                "a gathered row is the row");
      }
    }
    announce_present(pieces, rows, left, {nullptr, row_bytes}, random.below(2) == 0);
    done += held.count();
  }
  while (void* owner = pieces.take_out(0)) drop(owner);
  require(pieces.open_count() == 0, "nobody holds one any more");
}

// Against a search among those found before, of more pieces than rows and of fewer.
void test_touched(Random& random) {
  const int64_t count = 1 + random.below(random.once_in(2) ? 20 : 5000);
  const auto starts = some_starts(random, count, random.once_in(2));
  const Pieces pieces(starts, 1);
  const auto rows = picks(random, 1 + random.below(300), starts.back());
  const int64_t most = 1 + random.below(random.once_in(2) ? 10 : count);
  const auto wanted = static_cast<int64_t>(rows.size());
  const Touched found = pieces.touched(rows.data(), wanted, most);
  std::vector<int64_t> seen;
  size_t i = 0;
  for (; i < rows.size(); ++i) {
    const int64_t piece = pieces.find(rows[i]);
    auto at = std::find(seen.begin(), seen.end(), piece);
    if (at == seen.end() && static_cast<int64_t>(seen.size()) == most) break;
    if (at == seen.end()) at = seen.insert(at, piece);
    require(i < found.of_rows.size() && found.of_rows[i] == at - seen.begin(), "a row's piece");
  }
  require(found.pieces == seen && found.of_rows.size() == i, "the pieces, each once");
}

void test_many_pieces() {
  constexpr int64_t kPieces = 1 << 18;
  std::vector<int64_t> starts;
  for (int64_t i = 0; i <= kPieces; ++i) starts.push_back(2 * i);
  const Pieces pieces(starts, 1);
  const int64_t rows[] = {5, 2 * kPieces - 1, 4};
  const size_t before = allocated;
  const Touched found = pieces.touched(rows, 3, kPieces);
  require(found.pieces == std::vector<int64_t>{2, kPieces - 1}, "few of many");
  require(allocated - before < 1 << 12, "what few rows take does not depend on how many pieces");
}

// A piece that is never there may say that it has any number of rows.
void test_claims() {
  constexpr int64_t kMany = int64_t{1} << 62;
  Pieces pieces({0, kMany, kMany + 2}, 16);
  const char memory[32] = {};
  pieces.put(1, {memory, {"", -1, 0, 0, 0}, &pieces});
  const int64_t rows[] = {kMany, kMany + 1};
  const HeldRows held(pieces, pieces.touched(rows, 2, 1), rows, 3);
  require(held.origin() == memory + 3 && held.rows(0, 2, 0).indices[1] == 16, "rows of a piece");
}

void test_looks(Random& random) {
  const auto starts = some_starts(random, 1 + random.below(30), true);
  Pieces pieces(starts, 1);
  std::vector<int64_t> held, maps, others;
  for (int64_t piece = 0; piece < pieces.count(); ++piece) {
    const bool is_map = random.below(2) == 0;
    put(pieces, starts, piece, is_map);
    held.push_back(piece);
    (is_map ? maps : others).push_back(piece);
  }
  const int64_t all = static_cast<int64_t>(others.size()), looks = random.below(8);
  const int64_t calls = looks == 0 ? 0 : (all + looks - 1) / looks;
  std::vector<int64_t> seen;
  for (int64_t i = 0; i < calls; ++i) {
    FileSizes sizes;
    const auto found = pieces.not_whole(held, looks, sizes);
    const auto expected = static_cast<int64_t>(maps.size()) + std::min(looks, all);
    require(sizes.count() == expected, "files of maps are looked at, of others a few");
    require(static_cast<int64_t>(found.size()) == expected,
            "a file that is not there is found out");
    require(std::equal(maps.begin(), maps.end(), found.begin()), "of maps each");
    seen.insert(seen.end(), found.begin() + static_cast<std::ptrdiff_t>(maps.size()), found.end());
  }
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  require(looks == 0 || seen == others, "the others come in turn");
  for (const int64_t piece : held) pieces.let_go(piece);
  while (void* owner = pieces.take_out(0)) drop(owner);
}

void test_threads(int rounds) {
  Random random{std::mt19937_64(9)};
  const auto starts = some_starts(random, 20, true);
  Pieces pieces(starts, 16);
  std::mutex lock;
  const auto work = [&](uint64_t seed) {
    Random own{std::mt19937_64(seed)};
    for (int i = 0; i < rounds; ++i) {
      const auto rows = picks(own, 10, starts.back());
      const Touched touched = pieces.touched(rows.data(), 10, 4);
      for (const int64_t piece : touched.pieces) {
        if (pieces.hold(piece)) continue;
        const std::lock_guard guard(lock);
        if (pieces.hold(piece)) continue;
        put(pieces, starts, piece);
        while (void* owner = pieces.take_out(6)) drop(owner);
      }
      const HeldRows held(pieces, touched, rows.data(), 0);
      const Rows places = held.rows(0, held.count(), 0);
      for (int64_t at = 0; at < held.count(); ++at) {
        require(held.origin()[places.indices[at]] == value_at(rows[static_cast<size_t>(at)], 0),
                "a piece that is held stays");
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, seed);
  for (std::thread& thread : threads) thread.join();
  const std::lock_guard guard(lock);
  require(pieces.open_count() <= 6 + 4 * 4, "few are there at a time");
  while (void* owner = pieces.take_out(0)) drop(owner);
}

void test_files(Random& random) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("pieces_test." + std::to_string(static_cast<long>(getpid())));
  std::filesystem::create_directory(folder);
  const int64_t row_bytes = 1 + random.below(3000), length = 1 + random.below(9);
  ScatteredRows wanted{};
  wanted.nbytes = static_cast<uint64_t>(row_bytes);
  for (int64_t i = 0; i < 3; ++i) {
    const auto path = (folder / std::to_string(i)).string();
    const int file = open(path.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
    const auto memory = std::unique_ptr<std::vector<char>>(
        memory_of({0, i * length, (i + 1) * length}, 1, row_bytes));
    require(
        pwrite(file, memory->data(), memory->size(), 5 + i) == static_cast<ssize_t>(memory->size()),
        "written");
    wanted.files.push_back({file, static_cast<uint64_t>(5 + i)});
    FileSizes sizes, other;
    require(sizes.of({path, file, 0, 1, 0}) == -1, "a number alone is no file");
    require(other.of({path, -1, 0, 0, 0}) == -1, "nor is a name");
  }
  const int64_t count = 1 + random.below(40);
  const auto files = picks(random, count, 3), rows = picks(random, count, length);
  auto places = picks(random, count, 1);
  for (size_t i = 0; i < places.size(); ++i) places[i] = static_cast<int64_t>(i);
  std::shuffle(places.begin(), places.end(), random.engine);
  wanted.of_files = files.data();
  wanted.indices = rows.data();
  wanted.places = places.data();
  wanted.count = count;
  std::vector<char> got(static_cast<size_t>(count * row_bytes));
  FileFailure failure;
  int64_t place = -1;
  require(read_rows(wanted, got.data(), {}, failure, place) == Outcome::kDone, "all are read");
  for (size_t i = 0; i < places.size(); ++i) {
    for (int64_t byte = 0; byte < row_bytes; ++byte) {
      require(got[static_cast<size_t>(places[i] * row_bytes + byte)] ==
                  value_at(files[i] * length + rows[i], byte),
              "a row that is read is the row");
    }
  }
  announce_rows(wanted);
  require(ftruncate(wanted.files[1].number, 6) == 0, "cut");
  const bool is_cut = std::count(files.begin(), files.end(), 1) > 0;
  const Outcome again = read_rows(wanted, got.data(), {}, failure, place);
  require((again == Outcome::kStopped) == is_cut, "a file that is cut is found out");
  require(!is_cut || files[static_cast<size_t>(place)] == 1, "and which row it was");
  for (const ScatteredRows::File& file : wanted.files) close(file.number);
  std::filesystem::remove_all(folder);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  Random random{std::mt19937_64(3)};
  for (int i = 0; i < rounds / 2; ++i) test_find(random);
  for (int i = 0; i < rounds / 4; ++i) test_gather(random);
  for (int i = 0; i < rounds / 4; ++i) test_touched(random);
  test_many_pieces();
  test_claims();
  for (int i = 0; i < rounds / 20; ++i) test_files(random);
  for (int i = 0; i < rounds / 20; ++i) test_looks(random);
  test_threads(rounds);
  std::printf("%d look-ups of rows in pieces: ok\n", rounds / 2);
}
