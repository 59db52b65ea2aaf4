// The kernels without Python, for sanitizers: random copies held against the same copy item by
// item, pictures against the formula, the pool used by several threads at once, stopped and forked,
// files read, copied and written against what is in them.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "chance.h"
#include "copy.h"
#include "file_io.h"
#include "file_rows.h"
#include "memory.h"
#include "pictures.h"

namespace {

using namespace ndtorch;

constexpr Dtype kDtypes[] = {
    Dtype::kUint8,      Dtype::kInt8,         Dtype::kInt16,          Dtype::kInt32,
    Dtype::kInt64,      Dtype::kFloat16,      Dtype::kFloat32,        Dtype::kFloat64,
    Dtype::kComplex64,  Dtype::kComplex128,   Dtype::kBool,           Dtype::kBfloat16,
    Dtype::kFloat8E5m2, Dtype::kFloat8E4m3fn, Dtype::kFloat8E5m2fnuz, Dtype::kFloat8E4m3fnuz,
    Dtype::kUint16,     Dtype::kUint32,       Dtype::kUint64,         Dtype::kFloat8E8m0fnu};

// An array of any strides, whose items do not overlap unless it may repeat them.
struct Layout {
  std::vector<int64_t> strides;
  std::vector<char> memory;
  int64_t first;

  Layout(Random& random, const std::vector<int64_t>& shape, int64_t size, bool may_repeat) {
    std::vector<size_t> order(shape.size());
    std::iota(order.begin(), order.end(), size_t{0});
    if (random.once_in(2))
      std::shuffle(order.begin(), order.end(), random.engine);
    else
      std::reverse(order.begin(), order.end());
    strides.resize(shape.size());
    int64_t low = 0, high = 0, extent = size;
    for (size_t axis : order) {
      int64_t stride = extent;
      if (random.once_in(5)) stride += random.below(3) * (random.once_in(2) ? size : 1);
      if (may_repeat && random.once_in(8)) stride = 0;
      const int64_t reach = stride * std::max<int64_t>(shape[axis] - 1, 0);
      extent += reach;
      const bool backwards = random.once_in(4);
      strides[axis] = backwards ? -stride : stride;
      (backwards ? low : high) += backwards ? -reach : reach;
    }
    first = 16 - low + random.below(8);
    memory.resize(static_cast<size_t>(first + high + size + 16));
  }

  char* data() { return memory.data() + first; }
};

bool copy_one(const CopyRequest& whole, int64_t dst, int64_t src) {
  CopyRequest one = whole;
  one.ndim = 0;
  one.dst = static_cast<char*>(whole.dst) + dst;
  one.src = static_cast<const char*>(whole.src) + src;
  const StridedCopy job(one);
  return job.run(0, job.units());
}

// Copies every item by itself; the same answer where nothing of the engine is used.
bool copy_item_by_item(const CopyRequest& whole) {
  int64_t items = 1;
  for (int i = 0; i < whole.ndim; ++i) items *= whole.shape[i];
  bool survived = true;
  for (int64_t item = 0; item < items; ++item) {
    int64_t dst = 0, src = 0, rest = item;
    for (int i = whole.ndim; i-- > 0; rest /= whole.shape[i]) {
      dst += rest % whole.shape[i] * whole.dst_strides[i];
      src += rest % whole.shape[i] * whole.src_strides[i];
    }
    survived &= copy_one(whole, dst, src);
  }
  return survived;
}

void test_random_copy(Random& random) {
  std::vector<int64_t> shape(static_cast<size_t>(random.below(5)));
  int64_t items = 1;
  for (int64_t& n : shape) {
    const int64_t most = std::max<int64_t>(2, 20'000 / items);
    n = random.once_in(12) ? random.below(2) : 1 + random.below(std::min<int64_t>(most, 150));
    items *= std::max<int64_t>(n, 1);
  }
  const Dtype from = kDtypes[random.below(std::size(kDtypes))];
  const Dtype to = random.once_in(3) ? from : kDtypes[random.below(std::size(kDtypes))];
  Layout source(random, shape, item_size(from), true);
  Layout target(random, shape, item_size(to), false);
  for (char& byte : source.memory) {
    byte = static_cast<char>(from == Dtype::kBool ? random.below(2) : random.below(256));
  }
  CopyRequest request{.ndim = static_cast<int>(shape.size()),
                      .shape = shape.data(),
                      .dst = target.data(),
                      .dst_strides = target.strides.data(),
                      .dst_dtype = to,
                      .src = source.data(),
                      .src_strides = source.strides.data(),
                      .src_dtype = from,
                      .src_is_swapped = random.once_in(4),
                      .exact = random.once_in(3)};
  const std::vector<char> before = source.memory;
  const StridedCopy job(request);
  const Outcome outcome = copy(job, 1 + static_cast<int>(random.below(4)), {});
  const std::vector<char> got = target.memory;
  std::fill(target.memory.begin(), target.memory.end(), 0);
  const bool survived = copy_item_by_item(request);
  require((outcome == Outcome::kDone) == survived, "an exact copy stops where an item stops");
  if (survived) require(got == target.memory, "a copy is that of every item");
  require(source.memory == before, "the source stays as it is");
}

void test_large_copy_on_threads(Random& random) {
  const int64_t rows = 700 + random.below(300), columns = 900 + random.below(200);
  const int64_t shape[] = {rows, columns};
  std::vector<double> source(static_cast<size_t>(rows * columns));
  std::iota(source.begin(), source.end(), 0.0);
  std::vector<float> target(source.size());
  const int64_t dst[] = {columns * 4, 4}, plain[] = {columns * 8, 8}, turned[] = {8, rows * 8};
  for (const int64_t* src : {plain, turned}) {
    const CopyRequest request{
        2,   shape,           target.data(), dst,  Dtype::kFloat32, source.data(),
        src, Dtype::kFloat64, false,         false};
    require(copy(StridedCopy(request), 4, {}) == Outcome::kDone, "a large copy is done");
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        const auto at = static_cast<size_t>(src == plain ? i * columns + j : j * rows + i);
        require(target[static_cast<size_t>(i * columns + j)] == static_cast<float>(source[at]),
                "a large copy has the values of its source");
      }
    }
  }
}

void test_pictures(Random& random) {
  const int64_t channels = std::vector<int64_t>{1, 3, 4}[static_cast<size_t>(random.below(3))];
  const int64_t count = 1 + random.below(3), height = random.below(90), width = random.below(300);
  PixelsRequest there{};
  const int64_t shape[] = {count, height, width, channels};
  std::copy_n(shape, 4, there.shape);
  std::vector<uint8_t> pixels(static_cast<size_t>(count * height * width * channels));
  for (uint8_t& pixel : pixels) pixel = static_cast<uint8_t>(random.below(256));
  std::vector<float> planes(pixels.size());
  std::vector<uint8_t> back(pixels.size());
  const int64_t strides[] = {height * width * channels, width * channels, channels, 1};
  std::copy_n(strides, 4, there.src_strides);
  there.src = pixels.data();
  there.src_dtype = Dtype::kUint8;
  there.dst = planes.data();
  there.dst_dtype = Dtype::kFloat32;
  Affine& affine = there.affine;
  affine.channels = static_cast<int>(channels);
  affine.divides = true;
  affine.divisor = 255;
  affine.has_std = true;
  for (int c = 0; c < channels; ++c) {
    affine.mean[c] = 0.1F * static_cast<float>(c);
    affine.std[c] = 0.2F + 0.1F * static_cast<float>(c);
  }
  if (random.once_in(2)) kernels().find_reciprocals(affine);
  require(pixels_to_planes(there, 4, {}) == Outcome::kDone, "pixels become planes");
  const int64_t plane = height * width;
  for (int64_t i = 0; i < count * plane * channels; ++i) {
    const int64_t picture = i / (plane * channels), c = i / plane % channels, at = i % plane;
    const float x = pixels[static_cast<size_t>((picture * plane + at) * channels + c)];
    volatile float scaled = x / 255.0F;  // each step rounds
    volatile float centred = scaled - affine.mean[c];
    require(planes[static_cast<size_t>(i)] == centred / affine.std[c], "a pixel is scaled");
  }
  DisplayRequest here{};
  std::copy_n(shape, 4, here.shape);
  const int64_t planar[] = {plane * channels * 4, width * 4, 4, plane * 4};
  std::copy_n(planar, 4, here.src_strides);
  here.src = planes.data();
  here.src_dtype = Dtype::kFloat32;
  here.dst = back.data();
  here.dst_dtype = Dtype::kUint8;
  here.affine = affine;
  require(planes_to_pixels(here, 4, {}) == Outcome::kDone, "planes become pixels");
  require(back == pixels, "every pixel comes back");
}

void test_every_unit_is_done_once(int threads) {
  std::vector<std::atomic<int>> done(5000);
  const Outcome outcome = parallel_for(5000, 3, threads, {}, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) ++done[static_cast<size_t>(begin)];
    return true;
  });
  require(outcome == Outcome::kDone, "work is done");
  for (const auto& count : done) require(count == 1, "every unit is done once");
}

void test_work_that_stops() {
  std::atomic<int> calls{0};
  const Outcome stopped =
      parallel_for(100'000, 1, 4, {}, [&](int64_t, int64_t) { return ++calls < 10; });
  require(stopped == Outcome::kStopped && calls < 100, "work stops soon");
  bool is_due = true;
  const Interrupt interrupt{[](void* due) { return *static_cast<bool*>(due); }, &is_due};
  const Outcome interrupted = parallel_for(1'000'000, 1, 2, interrupt, [](int64_t, int64_t) {
    usleep(20);
    return true;
  });
  require(interrupted == Outcome::kInterrupted, "work is interrupted");
}

void test_threads_at_once() {
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([] {
      for (int round = 0; round < 50; ++round) test_every_unit_is_done_once(3);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void test_forked_child() {
  const pid_t child = fork();
  if (child == 0) {
    require(is_forked(), "a child knows that it is one");
    test_every_unit_is_done_once(4);
    _exit(0);
  }
  int status = 1;
  waitpid(child, &status, 0);
  require(status == 0, "a forked child has helpers of its own");
  require(!is_forked(), "a parent is no child");
}

// As a signal handler of Python may: the child comes back into the work that was going on.
void test_fork_within_work() {
  std::vector<std::atomic<int>> done(2000);
  pid_t child = -1;
  struct State {
    pid_t* child;
  } state{&child};
  const Interrupt interrupt{[](void* context) {
                              pid_t& forked = *static_cast<State*>(context)->child;
                              if (forked == -1) forked = fork();
                              return false;
                            },
                            &state};
  const Outcome outcome = parallel_for(2000, 1, 4, interrupt, [&](int64_t begin, int64_t) {
    usleep(200);
    ++done[static_cast<size_t>(begin)];
    return true;
  });
  bool all = outcome == Outcome::kDone;
  for (const auto& count : done) all &= count > 0;
  if (child == 0) _exit(all ? 0 : 1);
  require(all && child > 0, "a parent that forks within work does all of it");
  int status = 1;
  waitpid(child, &status, 0);
  require(status == 0, "a child forked within work does all of it");
}

// A file without a name.
struct TemporaryFile {
  std::FILE* stream = std::tmpfile();
  int number = fileno(stream);
  ~TemporaryFile() { std::fclose(stream); }
  void write(const std::vector<char>& bytes) const {
    require(pwrite(number, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()),
            "a temporary file can be written");
  }
  std::vector<char> read(size_t nbytes) const {
    std::vector<char> bytes(nbytes);
    const ssize_t count = pread(number, bytes.data(), nbytes, 0);
    bytes.resize(static_cast<size_t>(std::max<ssize_t>(count, 0)));
    return bytes;
  }
};

std::vector<char> random_bytes(Random& random, size_t nbytes) {
  std::vector<char> bytes(nbytes);
  for (char& byte : bytes) byte = static_cast<char>(random.engine());
  return bytes;
}

void test_reading_and_copying(Random& random, size_t nbytes) {
  const TemporaryFile file, other;
  const std::vector<char> bytes = random_bytes(random, nbytes);
  file.write(bytes);
  const auto offset = static_cast<size_t>(random.below(static_cast<int64_t>(nbytes)));
  const std::vector<char> wanted(bytes.begin() + static_cast<ptrdiff_t>(offset), bytes.end());
  std::vector<char> got(wanted.size() + 1);
  FileFailure failure;
  Outcome outcome = read_file(file.number, offset, got.data(), wanted.size(), 3, {}, failure);
  require(outcome == Outcome::kDone, "a file is read");
  require(std::equal(wanted.begin(), wanted.end(), got.begin()), "what is read is what is there");
  failure.number = -1;
  outcome = read_file(file.number, offset, got.data(), got.size(), 3, {}, failure);
  require(outcome == Outcome::kStopped && failure.number == 0, "a file that ends early is told");
  outcome = read_file(-1, offset, got.data(), got.size(), 3, {}, failure);
  require(outcome == Outcome::kStopped && failure.number == EBADF, "a failure has its number");
  require(reserve(other.number, nbytes) == 0, "space is set aside");
  outcome = copy_file(file.number, offset, other.number, 0, wanted.size(), 3, {}, failure);
  if (outcome == Outcome::kStopped && (failure.number == ENOSYS || failure.number == EXDEV)) return;
  require(outcome == Outcome::kDone && other.read(nbytes + 1) == wanted, "a file is copied");
}

void test_columns_and_runs(Random& random) {
  const int64_t item = int64_t{1} << random.below(5), columns = 1 + random.below(3000);
  const int64_t rows = 1 + random.below(60), all_rows = rows + random.below(2000);
  const TemporaryFile file, other;
  const auto nbytes = static_cast<size_t>(item * columns * all_rows);
  const std::vector<char> bytes = random_bytes(random, nbytes);
  file.write(bytes);
  const int64_t first = random.below(all_rows - rows + 1);
  const Columns wanted{static_cast<uint64_t>(first * item), static_cast<uint64_t>(all_rows * item),
                       static_cast<uint64_t>(item), rows, columns};
  std::vector<char> got(static_cast<size_t>(rows * columns * item));
  FileFailure failure;
  const Outcome outcome = read_transposed(file.number, wanted, got.data(), 3, {}, failure);
  require(outcome == Outcome::kDone, "columns are read");
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const char* from = bytes.data() + (j * all_rows + first + i) * item;
      require(std::equal(from, from + item, got.data() + (i * columns + j) * item),
              "columns become rows");
    }
  }
  const auto run = static_cast<uint64_t>(columns * item), step = run + 5;
  require(
      write_runs(other.number, 3, step, got.data(), run, rows, 3, {}, failure) == Outcome::kDone,
      "runs are written");
  const std::vector<char> found = other.read(3 + step * static_cast<uint64_t>(rows));
  for (int64_t i = 0; i < rows; ++i) {
    const auto row = got.begin() + i * columns * item;
    require(
        std::equal(row, row + columns * item, found.begin() + 3 + i * static_cast<int64_t>(step)),
        "runs are written where they belong");
  }
}

void test_equal_files(Random& random) {
  char folder[] = "/tmp/ndtorch-test-XXXXXX";
  require(mkdtemp(folder) != nullptr, "there is a folder");
  const std::vector<char> header = random_bytes(random, 80);
  constexpr size_t kRow = 5000;
  std::vector<std::string> names;
  std::vector<std::vector<char>> rows;
  for (int i = 0; i < 100; ++i) {
    names.push_back(std::string(folder) + "/" + std::to_string(i));
    rows.push_back(random_bytes(random, kRow));
    std::FILE* file = std::fopen(names.back().c_str(), "wb");
    std::fwrite(header.data(), 1, header.size(), file);
    std::fwrite(rows.back().data(), 1, kRow - (i == 70), file);
    if (i == 80) std::fputc(0, file);
    std::fclose(file);
  }
  std::vector<const char*> paths;
  for (const std::string& name : names) paths.push_back(name.c_str());
  std::vector<char> target(kRow * paths.size());
  Outcome outcome;
  const auto read = [&](size_t from) {
    const std::vector<const char*> rest(paths.begin() + static_cast<ptrdiff_t>(from), paths.end());
    return read_equal_files(rest, header.data(), header.size(), target.data() + from * kRow, kRow,
                            3, {}, outcome);
  };
  require(read(0) == 70 && read(71) == 9 && read(81) == 19, "the first odd file is found");
  for (size_t i = 0; i < rows.size(); ++i) {
    const auto row = target.begin() + static_cast<ptrdiff_t>(i * kRow);
    require(i == 70 || i == 80 || std::equal(rows[i].begin(), rows[i].end(), row),
            "every file is in its row");
    unlink(paths[i]);
  }
  require(read(0) == 0, "a file that is not there is odd");
  rmdir(folder);
}

void test_file_rows(Random& random) {
  std::FILE* stream = std::tmpfile();
  require(stream != nullptr, "there is a file");
  const int file = fileno(stream);
  constexpr size_t kRow = 96, kRows = 50, kStep = 100, kLead = 7;
  const std::vector<char> bytes = random_bytes(random, kLead + kRows * kStep);
  std::fwrite(bytes.data(), 1, bytes.size(), stream);
  std::fflush(stream);
  for (const size_t step : {kRow, kStep}) {
    std::vector<int64_t> indices = {3, 4, 5, 5, 49, 0, 1, 2, 30};
    const auto count = static_cast<int64_t>(indices.size());
    const FileRows rows{indices.data(), count, kLead, step, kRow};
    std::vector<char> target(indices.size() * kRow);
    FileFailure failure;
    int64_t place = -1;
    require(read_rows(file, rows, target.data(), {}, failure, place) == Outcome::kDone && place < 0,
            "the rows are read");
    for (size_t i = 0; i < indices.size(); ++i) {
      const auto from =
          bytes.begin() + static_cast<ptrdiff_t>(kLead + static_cast<size_t>(indices[i]) * step);
      require(std::equal(from, from + kRow, target.begin() + static_cast<ptrdiff_t>(i * kRow)),
              "every row is in its place");
    }
    announce_rows(file, rows);
    for (const int64_t bad : {int64_t{60}, int64_t{-5}, INT64_MAX}) {
      indices[5] = bad;
      require(read_rows(file, rows, target.data(), {}, failure, place) == Outcome::kStopped &&
                  place == 5,
              "a row that is not there is found");
      announce_rows(file, rows);
      indices[5] = 0;
    }
    indices = {47, 48, 49, 50, 51, 52, 53, 54, 55};  // one read that ends early
    require(read_rows(file, rows, target.data(), {}, failure, place) == Outcome::kStopped &&
                place == (step == kStep ? 3 : 5),
            "the first row that is not whole is found");
  }
  std::fclose(stream);
}

void test_memory() {
  for (size_t nbytes : {size_t{0}, size_t{1}, size_t{1} << 23, (size_t{1} << 25) + 5}) {
    const Block block = allocate(nbytes);
    require(reinterpret_cast<uintptr_t>(block.data) % 64 == 0, "memory is aligned");
    std::memset(block.data, 1, nbytes);
    release(block);
  }
  require(allocate(PTRDIFF_MAX).data == nullptr, "there is not so much memory");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 2000;
  const bool may_fork = argc < 3 || std::strcmp(argv[2], "no-fork") != 0;
  Random random{std::mt19937_64(1)};
  for (int i = 0; i < rounds; ++i) test_random_copy(random);
  for (int i = 0; i < 3; ++i) test_large_copy_on_threads(random);
  for (int i = 0; i < rounds / 20; ++i) test_pictures(random);
  test_file_rows(random);
  test_work_that_stops();
  test_threads_at_once();
  if (may_fork) {
    test_forked_child();
    test_fork_within_work();
  }
  test_memory();
  for (size_t nbytes : {size_t{1}, size_t{5000}, size_t{9} << 20})
    test_reading_and_copying(random, nbytes);
  for (int i = 0; i < rounds / 100; ++i) test_columns_and_runs(random);
  test_equal_files(random);
  std::printf("%d copies, level %s: ok\n", rounds, kernels().level);
}
