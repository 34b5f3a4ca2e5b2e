// The driver of the skip-gram operator: finds how large steps can be, and hands the call to
// lock-free workers or, where the same bits are wanted for any number of them, to shards.
#include <algorithm>
#include <array>

#include "cpu/skipgram_worker.h"

namespace vecsmith {

uint64_t skipgram_key(uint64_t seed, uint64_t epoch, uint64_t stream) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15u;
  const auto mix = [](uint64_t z) {
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  };
  return mix(mix(mix(seed + kGolden) + epoch + kGolden) + stream + kGolden);
}

void skipgram_run(const SkipgramJob& given, int threads, int64_t sync, double* result) {
  SkipgramJob job = given;
  // A window may be said to be far larger than any sentence.
  int64_t longest = 0;
  for (int64_t s = 0; s < job.sentences; ++s)
    longest = std::max(longest, job.offsets[s + 1] - job.offsets[s]);
  job.max_inputs =
      std::max<int64_t>(1, std::min<int64_t>(2 * static_cast<int64_t>(job.window), longest - 1));
  job.max_outputs = static_cast<int64_t>(job.negative) + 1;
  for (int64_t v = 0; job.path_offsets && v < job.vocabulary; ++v)
    job.max_outputs = std::max(job.max_outputs, job.path_offsets[v + 1] - job.path_offsets[v]);
  if (sync == 0) return skipgram_hogwild(job, threads, result);
  // Shards of whole sentences, of about as many tokens each.
  std::array<int64_t, kSkipgramShards + 1> bounds{};
  for (int s = 1; s <= kSkipgramShards; ++s) {
    const int64_t start =
        job.offsets[0] + (job.offsets[job.sentences] - job.offsets[0]) * s / kSkipgramShards;
    bounds[s] =
        s == kSkipgramShards
            ? job.sentences
            : std::lower_bound(job.offsets, job.offsets + job.sentences, start) - job.offsets;
  }
  skipgram_sharded(job, bounds, longest, threads, sync,
                   {job.vocabulary, job.table[kOutput] ? job.vocabulary : 0,
                    job.table[kTree] ? job.vocabulary - 1 : 0},
                   result);
}

void skipgram_pairs_run(const SkipgramJob& given, int64_t pairs, int threads, int64_t sync,
                        double* result) {
  SkipgramJob job = given;
  job.max_inputs = 1;
  job.max_outputs = static_cast<int64_t>(job.negative) + 1;
  if (sync > 0) {
    std::array<int64_t, kSkipgramShards + 1> bounds{};
    for (int s = 1; s <= kSkipgramShards; ++s) bounds[s] = pairs * s / kSkipgramShards;
    return skipgram_sharded(job, bounds, 0, threads, sync, {job.vocabulary, job.vocabulary, 0},
                            result);
  }
  skipgram_hogwild_pairs(job, pairs, threads, result);
}

}  // namespace vecsmith
