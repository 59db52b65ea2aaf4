#!/usr/bin/env bash
# Builds the extension with sanitizers beside the installed one, and runs the tests that drive it in a Python that loads
# that: sanitize_extension.sh address|thread [arguments of pytest]. GCC only: its runtimes are preloaded.
set -euo pipefail
cd "$(dirname "$0")/../.."

kind=$1
shift
python=$PWD/.venv/bin/python
out=$PWD/build/sanitize-$kind
deselected=()
except() { deselected+=("--deselect=tests/$1"); }

case $kind in
address)
  sanitizers=address,undefined,float-cast-overflow
  runtimes=(asan ubsan)
  tests=(bridge casting collate copies dlpack gather hostile images kernels loader_attacked loader_files
    loader_many_shards loader_order loader_pictures loader_ragged loader_shards loader_sources loader_tables
    loader_threads memmap npy owners pictures properties recycling safetensors sharded_read shares_memory stack
    stack_options streaming structures to_numpy to_torch traps trees write)
  # What was freed stays mapped for a while, so reading it does not end the process, as the tests want to see it do.
  except test_owners.py::test_on_plain_torch_the_array_dangles
  # And so the process grows.
  except test_owners.py::test_conversions_leak_nothing
  except test_streaming.py::test_a_file_is_converted_in_less_memory_than_it_has_bytes
  # It shows that safetensors reads beyond an array.
  except test_safetensors.py::test_plain_safetensors_numpy_still_writes_a_reversed_array_wrong_or_refuses_it
  ;;
thread)
  sanitizers=thread
  runtimes=(tsan)
  tests=(loader_many_shards loader_shards loader_threads recycling)
  ;;
*)
  echo "usage: $0 address|thread [arguments of pytest]" >&2
  exit 2
  ;;
esac

.venv/bin/cmake -S . -B "$out" -G Ninja -DCMAKE_MAKE_PROGRAM="$PWD/.venv/bin/ninja" -DCMAKE_BUILD_TYPE=Debug \
  -DSKBUILD_PROJECT_NAME=ndtorch -DPython_EXECUTABLE="$python" -DNDTORCH_SANITIZE="$sanitizers" >"$out.log"
.venv/bin/ninja -C "$out" --quiet
rm -f "$out"/report.*

# pytest holds back what is said on stderr, and loses it where a process is ended: hence files.
options="log_path=$out/report:stack_trace_format='    #%n %S'"
# A signal is for Python's own handler or ends a process as without sanitizers; where there is no memory malloc says so;
# what Python and torch keep until the end is no leak of ours.
export ASAN_OPTIONS="$options:detect_leaks=0:allocator_may_return_null=1:detect_stack_use_after_return=1"
ASAN_OPTIONS+=":handle_segv=0:handle_sigbus=0:handle_abort=0"
export UBSAN_OPTIONS="$options:print_stacktrace=1"
# What Python and torch, which are built without it, do to memory by themselves is not for it to judge. Forked children,
# which some tests start, go on.
export TSAN_OPTIONS="$options:ignore_noninstrumented_modules=1:exitcode=0:die_after_fork=0"
export PYTHONMALLOC=malloc # or else small objects of Python are parts of one block to a sanitizer
export PYTHONPATH=$PWD/tests/native/sanitized
export NDTORCH_SANITIZED
NDTORCH_SANITIZED=$(echo "$out"/_native.*.so)
preload=
for runtime in "${runtimes[@]}" stdc++; do # the last because the first look for what it has, such as throwing
  preload+=" $("${CXX:-g++}" "-print-file-name=lib$runtime.so")"
done

tests=("${tests[@]/%/.py}")
[[ $# -gt 0 ]] || set -- "${tests[@]/#/tests/test_}"
LD_PRELOAD=$preload "$python" -c "import os, ndtorch._native as n; assert n.__file__ == os.environ['NDTORCH_SANITIZED']"
status=0
LD_PRELOAD=$preload "$python" -m pytest -q -n0 -p no:cacheprovider "${deselected[@]}" "$@" || status=$?
for report in "$out"/report.*; do
  [[ -e $report ]] || continue
  cat "$report"
  status=1
done
exit $status
