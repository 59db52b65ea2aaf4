// The gather and the recycler without Python, for sanitizers: rows held against copies of each row,
// pictures against each picture, blocks taken and given back by several threads at once and by a
// forked child.
#include "gather.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "chance.h"
#include "recycler.h"

namespace {

using namespace ndtorch;

constexpr Dtype kDtypes[] = {Dtype::kUint8,   Dtype::kInt16,     Dtype::kInt64,
                             Dtype::kFloat16, Dtype::kFloat32,   Dtype::kFloat64,
                             Dtype::kBool,    Dtype::kComplex64, Dtype::kBfloat16};

// A source of rows in memory of exactly its size: a byte before or after is a fault.
struct Source {
  std::vector<int64_t> shape, strides;  // of a row
  int64_t length, row_stride, first;
  std::vector<char> memory;

  Source(Random& random, std::vector<int64_t> of_row, int64_t size, int64_t rows)
      : shape(std::move(of_row)), strides(shape.size()), length(rows) {
    int64_t extent = size;
    for (size_t i = shape.size(); i-- > 0; extent *= shape[i]) strides[i] = extent;
    row_stride = extent + (random.once_in(2) ? 0 : random.below(3) * size + random.below(2));
    first = 0;
    memory.resize(static_cast<size_t>((length - 1) * row_stride + extent));
    for (char& byte : memory) byte = static_cast<char>(random.below(2));
    if (random.once_in(3)) {
      first = (length - 1) * row_stride;
      row_stride = -row_stride;
    }
    const size_t axis = shape.empty() ? 0 : static_cast<size_t>(random.below(4));
    if (axis < shape.size() && shape[axis] > 0) {  // backwards, and for two axes turned
      first += (shape[axis] - 1) * strides[axis];
      strides[axis] = -strides[axis];
      if (shape.size() == 2 && random.once_in(2)) {
        std::swap(shape[0], shape[1]);
        std::swap(strides[0], strides[1]);
      }
    }
  }

  // The same memory, where it holds one axis, as columns: an item of a row lies far from its next.
  void turn(int64_t size) {
    if (shape.size() != 1 || shape[0] == 0) return;
    first = 0;
    row_stride = size;
    strides[0] = size * length;
  }

  const char* data() const { return memory.data() + first; }
};

std::vector<int64_t> picks(Random& random, int64_t count, int64_t length) {
  std::vector<int64_t> numbers(static_cast<size_t>(count));
  for (int64_t& number : numbers) number = random.below(length);
  return numbers;
}

void test_rows(Random& random) {
  const Dtype from = kDtypes[random.below(std::size(kDtypes))];
  const Dtype to = random.once_in(2) ? from : kDtypes[random.below(std::size(kDtypes))];
  std::vector<int64_t> shape(static_cast<size_t>(random.below(3)));
  for (int64_t& side : shape) side = random.once_in(9) ? 0 : 1 + random.below(60);
  if (random.once_in(40)) shape = {17'000 + random.below(5)};
  Source source(random, shape, item_size(from), 1 + random.below(30));
  if (random.once_in(3)) source.turn(item_size(from));
  const bool is_large = !shape.empty() && shape[0] > 16'000;
  const auto numbers = picks(random, is_large ? 300 : random.below(90), source.length);
  const auto count = static_cast<int64_t>(numbers.size());
  int64_t items = 1;
  std::vector<int64_t> strides(source.shape.size());
  for (size_t i = source.shape.size(); i-- > 0; items *= source.shape[i]) {
    strides[i] = items * item_size(to);
  }
  const int64_t row_bytes = items * item_size(to);
  std::vector<char> got(static_cast<size_t>(count * row_bytes)), wanted(got.size());
  CopyRequest row{.ndim = static_cast<int>(source.shape.size()),
                  .shape = source.shape.data(),
                  .dst = got.data(),
                  .dst_strides = strides.data(),
                  .dst_dtype = to,
                  .src = source.data(),
                  .src_strides = source.strides.data(),
                  .src_dtype = from,
                  .src_is_swapped = random.once_in(4),
                  .exact = false};
  RowGather(row, {numbers.data(), count, source.row_stride, row_bytes}).run();
  for (int64_t i = 0; i < count; ++i) {
    row.dst = wanted.data() + i * row_bytes;
    row.src = source.data() + numbers[static_cast<size_t>(i)] * source.row_stride;
    const StridedCopy one(row);
    one.run(0, one.units());
  }
  require(got == wanted, "a gather is the copy of every row");
  require(first_outside(numbers.data(), count, source.length) == count, "all are rows");
  if (count == 0) return;
  auto spoiled = numbers;
  const auto at = static_cast<size_t>(random.below(count));
  spoiled[at] = random.once_in(2) ? source.length : -1;
  require(first_outside(spoiled.data(), count, source.length) == static_cast<int64_t>(at),
          "the first that is none is found");
}

void test_pictures(Random& random) {
  const int64_t channels = std::vector<int64_t>{1, 3, 4}[static_cast<size_t>(random.below(3))];
  const int64_t height = 1 + random.below(40), width = 1 + random.below(90);
  const int64_t nbytes = height * width * channels;
  const int64_t length = 1 + random.below(9);
  std::vector<uint8_t> pixels(static_cast<size_t>(length * nbytes));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.below(256));
  const auto numbers = picks(random, random.below(12), length);
  const auto count = static_cast<int64_t>(numbers.size());
  std::vector<float> got(static_cast<size_t>(count * nbytes)), wanted(got.size());
  PixelsRequest picture{.shape = {1, height, width, channels},
                        .src = pixels.data(),
                        .src_strides = {nbytes, width * channels, channels, 1},
                        .src_dtype = Dtype::kUint8,
                        .dst = got.data(),
                        .dst_dtype = Dtype::kFloat32,
                        .is_interleaved = random.once_in(2)};
  picture.affine.channels = static_cast<int>(channels);
  PictureGather(picture, {numbers.data(), count, nbytes, nbytes * 4}).run();
  for (int64_t i = 0; i < count; ++i) {
    picture.src = pixels.data() + numbers[static_cast<size_t>(i)] * nbytes;
    picture.dst = wanted.data() + i * nbytes;
    pixels_to_planes(picture, 1, Interrupt{});
  }
  require(got == wanted, "pictures are those of each");
}

void test_announcing(Random& random) {
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  const int64_t pages = 1 + random.below(40);
  void* map = mmap(nullptr, static_cast<size_t>(pages * page), PROT_READ,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(map != MAP_FAILED, "memory is mapped");
  const int64_t row = 1 + random.below(2 * page);
  const int64_t length = pages * page / row;
  if (length > 0) {
    const auto numbers = picks(random, random.below(50), length);
    const Rows rows{numbers.data(), static_cast<int64_t>(numbers.size()), row, 0};
    announce_rows({static_cast<char*>(map), row}, rows, random.once_in(2));
  }
  munmap(map, static_cast<size_t>(pages * page));
}

void fill(const Lease& lease, char with) { std::memset(lease.block.data, with, lease.capacity); }

bool is_full_of(const Lease& lease, char with) {
  const char* data = static_cast<const char*>(lease.block.data);
  return std::all_of(data, data + lease.capacity, [with](char byte) { return byte == with; });
}

void work(Recycler* home, uint64_t seed, int rounds) {
  Random random{std::mt19937_64(seed)};
  std::vector<std::pair<Lease, char>> held;
  for (int i = 0; i < rounds; ++i) {
    const auto with = static_cast<char>(random.below(256));
    held.emplace_back(home->take(static_cast<size_t>(random.below(3) * 100'000 + 10)), with);
    fill(held.back().first, with);
    while (held.size() > 8 || (!held.empty() && random.once_in(3))) {
      const auto at = static_cast<size_t>(random.below(static_cast<int64_t>(held.size())));
      require(is_full_of(held[at].first, held[at].second), "nobody writes into a block on loan");
      release(held[at].first);
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(at));
    }
  }
  for (const auto& [lease, with] : held) {
    require(is_full_of(lease, with), "nobody writes into a block on loan");
    release(lease);
  }
}

void test_recycler(bool may_fork, int rounds) {
  Recycler* home = Recycler::open(size_t{1} << 20);
  const Lease kept = home->take(200'000);
  fill(kept, 1);
  std::vector<std::thread> threads;
  for (uint64_t seed = 0; seed < 4; ++seed) threads.emplace_back(work, home, seed, rounds);
  if (may_fork) {
    const pid_t child = fork();
    if (child == 0) {
      work(home, 9, rounds);
      home->close();
      require(is_full_of(kept, 1), "a child has what its parent had");
      _exit(0);
    }
    int status = 1;
    require(waitpid(child, &status, 0) == child && status == 0, "a child goes on");
  }
  for (std::thread& thread : threads) thread.join();
  require(home->idle_bytes() <= size_t{1} << 20, "what is idle has a limit");
  const Lease other = home->take(300'000);
  home->close();
  require(is_full_of(kept, 1), "a block outlives its home");
  release(other);
  release(kept);
  Recycler* closing = Recycler::open(size_t{1} << 24);
  std::thread last(work, closing, 7, rounds);
  const Lease lease = closing->take(100'000);
  last.join();
  std::thread giver([lease] { release(lease); });
  closing->close();
  giver.join();
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  const bool may_fork = argc < 3 || std::strcmp(argv[2], "no-fork") != 0;
  Random random{std::mt19937_64(3)};
  for (int i = 0; i < rounds; ++i) test_rows(random);
  for (int i = 0; i < rounds / 10; ++i) test_pictures(random);
  for (int i = 0; i < rounds / 10; ++i) test_announcing(random);
  test_recycler(may_fork, rounds / 4);
  std::printf("%d gathers, level %s: ok\n", rounds, kernels().level);
}
