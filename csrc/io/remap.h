// The second pass over a corpus: provisional ids to final ones, in place.
#pragma once

#include <cstdint>
#include <vector>

namespace vecsmith::io {

struct CorpusSize;

struct RawCorpus {
  int tokens_file;   // int32 [tokens]
  int offsets_file;  // int64 [sentences + 1]: 0 and the end of each sentence, rising
  int64_t tokens;
  int64_t sentences;
};

// Token t becomes final_ids[t], or is dropped where t or final_ids[t] is negative; sentences that
// end up empty are dropped. What is written never overtakes what is still to be read.
CorpusSize remap(const RawCorpus& raw, const std::vector<int32_t>& final_ids, int threads);

}  // namespace vecsmith::io
