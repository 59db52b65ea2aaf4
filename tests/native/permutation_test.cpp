// Permutations without Python, for sanitizers: each number once, any stretch as the whole has it.
#include "permutation.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

namespace {

using ndtorch::Permutation;

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::abort();
}

std::vector<int64_t> stretch(const Permutation& order, int64_t begin, int64_t end) {
  std::vector<int64_t> numbers(static_cast<size_t>(end - begin));
  order.fill(begin, end, numbers.data());
  return numbers;
}

void test_each_number_once(int64_t count, uint64_t key) {
  const Permutation order(count, key);
  const std::vector<int64_t> numbers = stretch(order, 0, count);
  std::vector<bool> seen(static_cast<size_t>(count));
  for (const int64_t number : numbers) {
    require(0 <= number && number < count, "a number is one of the numbers");
    require(!seen[static_cast<size_t>(number)], "no number comes twice");
    seen[static_cast<size_t>(number)] = true;
  }
  const int64_t third = count / 3;
  const auto* begin = numbers.data() + third;
  require(std::ranges::equal(stretch(order, third, 2 * third), std::vector(begin, begin + third)),
          "a stretch is as the whole has it");
}

void test_many_numbers(int64_t count, uint64_t key) {
  const Permutation order(count, key);
  std::vector<int64_t> numbers;
  for (const int64_t begin : {int64_t{0}, count / 2, count - 1000}) {
    const std::vector<int64_t> some = stretch(order, begin, begin + 1000);
    numbers.insert(numbers.end(), some.begin(), some.end());
  }
  std::sort(numbers.begin(), numbers.end());
  require(numbers.front() >= 0 && numbers.back() < count, "many numbers are within the count");
  require(std::adjacent_find(numbers.begin(), numbers.end()) == numbers.end(), "none comes twice");
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 500;
  std::mt19937_64 engine(1);
  for (const int64_t count : {0, 1, 2, 3, 65535, 65536, 65537, 131071, 131072, 131073}) {
    test_each_number_once(count, engine());
  }
  for (int round = 0; round < rounds / 50; ++round) {
    test_each_number_once(static_cast<int64_t>(engine() % 300'000), engine());
    test_many_numbers((int64_t{1} << (20 + engine() % 43)) + static_cast<int64_t>(engine() % 1000),
                      engine());
  }
  test_many_numbers(INT64_MAX, 1);
  std::puts("permutations: all hold");
}
