#!/usr/bin/env bash
# Builds the kernels and their test with a sanitizer and runs them: sanitize.sh address,undefined|thread [rounds]
set -euo pipefail
cd "$(dirname "$0")/../../src/native"

sanitizer=$1
rounds=${2:-2000}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
flags=(-std=c++20 -O1 -g -fno-omit-frame-pointer -ffp-contract=off -fno-trapping-math -fno-math-errno
  "-fsanitize=$sanitizer" -fno-sanitize-recover=all -Wall -Wextra -Wno-missing-field-initializers -I.)
levels=(baseline:x86-64)
if [[ $(uname -m) == x86_64 ]]; then
  levels+=(x86_64_v3:x86-64-v3 x86_64_v4:x86-64-v4)
  flags+=(-DNDTORCH_X86_LEVELS)
fi
compile() { "${CXX:-g++}" "${flags[@]}" "$@"; }
for level in "${levels[@]}"; do
  march=("-march=${level#*:}")
  [[ $(uname -m) == x86_64 ]] || march=()
  for kernel in casts moves pixels; do
    compile "-DNDTORCH_LEVEL=${level%%:*}" "${march[@]}" -c $kernel.cpp -o "$out/$kernel-${level%%:*}.o"
  done
done
compile ../../tests/native/kernels_test.cpp copy.cpp file_io.cpp file_rows.cpp kernels.cpp memory.cpp pictures.cpp threads.cpp "$out"/*.o \
  -lpthread -o "$out/kernels_test"
compile ../../tests/native/permutation_test.cpp permutation.cpp -o "$out/permutation_test"
"$out/permutation_test" "$rounds"
compile ../../tests/native/gather_test.cpp copy.cpp gather.cpp kernels.cpp memory.cpp pictures.cpp read_ahead.cpp \
  recycler.cpp threads.cpp "$out"/*.o -lpthread -o "$out/gather_test"
compile ../../tests/native/pieces_test.cpp copy.cpp file_rows.cpp gather.cpp kernels.cpp memory.cpp pictures.cpp \
  pieces.cpp read_ahead.cpp threads.cpp "$out"/*.o -lpthread -o "$out/pieces_test"
"$out/pieces_test" "$rounds"
# The thread sanitizer cannot follow a fork of a process with threads.
[[ $sanitizer == thread ]] && forks=no-fork || forks=forks
for level in "${levels[@]}"; do
  NDTORCH_LEVEL=${level%%:*} "$out/kernels_test" "$rounds" "$forks"
  NDTORCH_LEVEL=${level%%:*} "$out/gather_test" "$rounds" "$forks"
done
