#!/usr/bin/env bash
# Fuzz the native readers and the skip-gram kernels under AddressSanitizer and UBSan: plain
# executables, no Python.
#
#   tests/fuzz/run.sh [iterations]             that many mutations of the seeds (4000; ten times as
#                                              many for the parsers, a tenth for the kernels), the
#                                              same ones every time
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
row_cache_sources=(csrc/io/{row_cache,row_file,row_layout,file}.cpp)
skipgram_sources=(csrc/cpu/{skipgram,skipgram_hogwild,skipgram_shards,isa}.cpp)
targets=(corpus word2vec_format row_cache skipgram)

# The kernels, once per ISA level, as CMakeLists.txt has them. (Which levels run is decided there and
# then: the others are only compiled.)
levels=(base)
isa_flags_base=()
case $(uname -m) in
  x86_64 | amd64)
    levels+=(avx2 avx512 avx512_bf16 amx)
    isa_flags_avx2=(-mavx2 -mfma -mf16c -mbmi2 -mprfchw)
    isa_flags_avx512=("${isa_flags_avx2[@]}" -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
      -mprefer-vector-width=512)
    isa_flags_avx512_bf16=("${isa_flags_avx512[@]}" -mavx512bf16 -mavx512vnni)
    isa_flags_amx=("${isa_flags_avx512_bf16[@]}" -mamx-tile -mamx-int8 -mamx-bf16)
    ;;
esac
for level in "${levels[@]}"; do
  flags+=("-DVECSMITH_HAS_$level=1")
  skipgram_sources+=("$build/skipgram_$level.o")
done

# Several at a time: compiling takes longer than running.
pids=()
for level in "${levels[@]}"; do
  isa_flags="isa_flags_$level[@]"
  "$CXX" "${flags[@]}" -ffp-contract=fast -fno-exceptions -fno-rtti -fno-math-errno \
    -fno-trapping-math -Wno-maybe-uninitialized "-DVECSMITH_LEVEL=$level" \
    ${!isa_flags+"${!isa_flags}"} -c csrc/cpu/skipgram.kernel.cpp -o "$build/skipgram_$level.o" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done
pids=()
for target in "${targets[@]}"; do
  sources="${target}_sources[@]"
  "$CXX" "${flags[@]}" "tests/fuzz/fuzz_$target.cpp" "${driver[@]}" "${!sources}" \
    -o "$build/fuzz_$target" &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid"; done

# Fresh memory is full of NaN, so that a result which depends on it shows.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:allocator_may_return_null=0:max_malloc_fill_size=16777216:malloc_fill_byte=255}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
# Threads that wait must not spin: there are more of them than cores.
export OMP_WAIT_POLICY=passive
for target in "${targets[@]}"; do
  echo "fuzz_$target"
  if [ $guided = yes ]; then
    "$build/fuzz_$target" "-max_total_time=$budget" -max_len=4096 "-artifact_prefix=$PWD/fuzz-$target-" 2>&1 |
      grep -vE '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse|RELOAD)|# Uses:'
  else
    # Parsing needs no threads and no files: ten inputs in the time of one. Training takes longer.
    count=$budget
    if [ $target = word2vec_format ]; then count=$((budget * 10)); fi
    if [ $target = skipgram ]; then count=$((budget / 10)); fi
    "$build/fuzz_$target" "$count"
  fi
done
