#include "io/remap.h"

#include <algorithm>

#include "io/corpus.h"
#include "io/file.h"
#include "io/parallel.h"

namespace vecsmith::io {
namespace {

constexpr int64_t kTokensPerThread = 1 << 19;
constexpr int64_t kEndsAtATime = 1 << 16;

// A sum of these is a checksum that depends on places and values, but not on the order of
// summation.
uint64_t mix(uint64_t place, uint64_t value) {
  uint64_t z = (place + 1) * 0x9E3779B97F4A7C15ull ^ (value + 1) * 0xD6E8FEB86659FD93ull;
  z ^= z >> 32;
  z *= 0x9FB21C651E98DF25ull;
  return z ^ (z >> 29);
}

// The part of a chunk that one thread does, with its results.
struct Part {
  int64_t first, last;  // tokens, from the chunk's start
  std::vector<int32_t> kept;
  std::vector<int64_t> ends;  // sentence ends in this part, as sizes of `kept`
  int64_t before = 0;         // tokens kept by the parts before it
  uint64_t checksum = 0;
};

}  // namespace

CorpusSize remap(const RawCorpus& raw, const std::vector<int32_t>& final_ids, int threads) {
  const int64_t chunk = kTokensPerThread * threads;
  std::vector<int32_t> tokens(static_cast<size_t>(std::min(chunk, raw.tokens)));
  std::vector<int64_t> ends, offsets;
  std::vector<Part> parts(threads);
  CorpusSize out{0, 0, 0};
  int64_t sentence = 1;                  // the next entry of the offsets file to read
  int64_t entries = 0, last_offset = 0;  // entries written, after the 0 that stays in its place

  for (int64_t start = 0; start < raw.tokens; start += chunk) {
    const int64_t size = std::min(chunk, raw.tokens - start);
    read_at(raw.tokens_file, tokens.data(), static_cast<size_t>(size) * 4, start * 4);
    // `ends`: all that lie in this chunk, and some behind it.
    ends.erase(ends.begin(), std::upper_bound(ends.begin(), ends.end(), start));
    while (sentence <= raw.sentences && (ends.empty() || ends.back() <= start + size)) {
      const size_t before = ends.size();
      ends.resize(before + std::min(kEndsAtATime, raw.sentences + 1 - sentence));
      read_at(raw.offsets_file, ends.data() + before, (ends.size() - before) * 8, sentence * 8);
      sentence += static_cast<int64_t>(ends.size() - before);
    }

    run_parallel(threads, [&](int i) {
      Part& part = parts[i];
      part.first = size * i / threads;
      part.last = size * (i + 1) / threads;
      part.kept.clear();
      part.ends.clear();
      // A sentence that ends between two parts belongs to the first of them.
      auto end = std::upper_bound(ends.begin(), ends.end(), start + part.first);
      for (int64_t t = part.first; t < part.last; ++t) {
        const int32_t id = tokens[t] < 0 ? -1 : final_ids[tokens[t]];
        if (id >= 0) part.kept.push_back(id);
        if (end != ends.end() && *end == start + t + 1) {
          part.ends.push_back(static_cast<int64_t>(part.kept.size()));
          ++end;
        }
      }
    });

    int64_t kept = out.tokens;
    offsets.clear();
    for (Part& part : parts) {
      part.before = kept;
      kept += static_cast<int64_t>(part.kept.size());
      for (const int64_t end : part.ends) {
        const int64_t offset = part.before + end;
        if (offset == last_offset) continue;
        out.checksum += mix(~static_cast<uint64_t>(entries + static_cast<int64_t>(offsets.size())),
                            static_cast<uint64_t>(offset));
        offsets.push_back(offset);
        last_offset = offset;
      }
    }
    run_parallel(threads, [&](int i) {
      Part& part = parts[i];
      write_at(raw.tokens_file, part.kept.data(), part.kept.size() * 4, part.before * 4);
      part.checksum = 0;
      for (size_t t = 0; t < part.kept.size(); ++t)
        part.checksum +=
            mix(static_cast<uint64_t>(part.before) + t, static_cast<uint64_t>(part.kept[t]));
    });
    for (const Part& part : parts) out.checksum += part.checksum;
    write_at(raw.offsets_file, offsets.data(), offsets.size() * 8, (1 + entries) * 8);
    entries += static_cast<int64_t>(offsets.size());
    out.tokens = kept;
  }
  out.sentences = entries;
  truncate_file(raw.tokens_file, out.tokens * 4);
  truncate_file(raw.offsets_file, (1 + entries) * 8);
  return out;
}

}  // namespace vecsmith::io
