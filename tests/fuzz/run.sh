#!/usr/bin/env bash
# Fuzz the native readers under AddressSanitizer and UBSan: plain executables, no Python.
#
#   tests/fuzz/run.sh [iterations]             that many mutations of the seeds (4000; ten times as
#                                              many for the parsers), the same ones every time
#   tests/fuzz/run.sh --libfuzzer [seconds]    guided by coverage, for that long (needs clang++)
#   CXX=clang++ tests/fuzz/run.sh              another compiler
set -euo pipefail
cd "$(dirname "$0")/../.."

sanitize=address,undefined
guided=no
budget=${1:-4000}
if [ "$budget" = --libfuzzer ]; then
  guided=yes
  budget=${2:-60}
  CXX=${CXX:-clang++}
fi
if ! [[ $budget =~ ^[0-9]+$ ]]; then
  echo "expected a number, got '$budget'" >&2
  exit 2
fi
CXX=${CXX:-c++}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-std=c++17 -O1 -g1 -fno-omit-frame-pointer -Wall -Wextra -Wno-unknown-pragmas -Icsrc
  -fno-sanitize-recover=all -pthread)
if [ $guided = yes ]; then
  sanitize=$sanitize,fuzzer
  driver=()
else
  flags+=(-D_GLIBCXX_ASSERTIONS)
  driver=(tests/fuzz/driver.cpp)
  if echo 'int main() {}' | "$CXX" -x c++ -fopenmp -o "$build/probe" - 2>/dev/null; then
    flags+=(-fopenmp)
  fi
fi
flags+=("-fsanitize=$sanitize")

corpus_sources=(csrc/io/{corpus,remap,word_table,utf8,file,sampling_tables}.cpp)
word2vec_format_sources=(csrc/io/word2vec_format.cpp)
targets=(corpus word2vec_format)

# Both targets at a time: compiling takes longer than running.
pids=()
for target in "${targets[@]}"; do
  sources="${target}_sources[@]"
  "$CXX" "${flags[@]}" "tests/fuzz/fuzz_$target.cpp" "${driver[@]}" "${!sources}" \
    -o "$build/fuzz_$target" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
# Threads that wait must not spin: there are more of them than cores.
export OMP_WAIT_POLICY=passive
for target in "${targets[@]}"; do
  echo "fuzz_$target"
  if [ $guided = yes ]; then
    "$build/fuzz_$target" "-max_total_time=$budget" -max_len=4096 "-artifact_prefix=$PWD/fuzz-$target-" 2>&1 |
      grep -vE '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse|RELOAD)|# Uses:'
  else
    # Parsing needs no threads and no files: ten inputs in the time of one.
    factor=1
    if [ $target = word2vec_format ]; then factor=10; fi
    "$build/fuzz_$target" $((budget * factor))
  fi
done
