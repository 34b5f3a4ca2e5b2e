// A table in a file behind a cache of few slots: whatever batches come, how they overlap and how
// the process ends, rows are what a table in memory has, and after an end without close() what the
// last flush() left. Files that somebody has changed are refused, or read within their bounds.
#include <fcntl.h>
#include <unistd.h>

#include <cstring>

#include "fuzz.h"
#include "io/file.h"
#include "io/row_cache.h"

namespace {

using vecsmith::io::CacheFullError;
using vecsmith::io::Fill;
using vecsmith::io::RowCache;
using vecsmith::io::RowFile;
using vecsmith::io::RowFileError;
using vecsmith::io::RowLayout;
using vecsmith::io::RowPart;
using Use = RowCache::Use;
using Rows = std::vector<std::vector<char>>;  // by row: all parts of it

// A file of this process, and its name, which goes with it.
class Name {
 public:
  Name() {
    const char* folder = std::getenv("TMPDIR");
    text_ = std::string(folder ? folder : "/tmp") + "/fuzz_row_cache." + std::to_string(getpid());
    remove();
  }
  ~Name() { remove(); }
  const std::string& text() const { return text_; }
  std::string read() const {
    const int file = open(text_.c_str(), O_RDONLY);
    FUZZ_CHECK(file >= 0);
    std::string bytes(static_cast<size_t>(lseek(file, 0, SEEK_END)), 0);
    vecsmith::io::read_at(file, &bytes[0], bytes.size(), 0);
    close(file);
    return bytes;
  }
  void write(const std::string& bytes) const {
    const int file = open(text_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    FUZZ_CHECK(file >= 0);
    vecsmith::io::write_at(file, bytes.data(), bytes.size(), 0);
    close(file);
  }

 private:
  void remove() const { unlink(text_.c_str()); }
  std::string text_;
};

struct Flight {
  uint64_t ticket;
  Use use;
  std::vector<int64_t> ids;
  std::vector<int32_t> slots;
};

// The slots' side of the parts.
struct Slots {
  Slots(const RowFile& file, int64_t count) {
    for (const int64_t bytes : file.parts()) {
      tables.emplace_back(new char[static_cast<size_t>(bytes * count)]);
      parts.push_back({tables.back().get(), bytes});
    }
  }
  std::vector<std::unique_ptr<char[]>> tables;
  std::vector<RowPart> parts;
};

std::vector<char> row_in(const std::vector<RowPart>& parts, int64_t at) {
  std::vector<char> row;
  for (const RowPart& part : parts)
    row.insert(row.end(), part.data + at * part.bytes, part.data + (at + 1) * part.bytes);
  return row;
}

Rows all_rows(const RowFile& file) {
  std::vector<int64_t> ids(static_cast<size_t>(file.rows()));
  for (int64_t i = 0; i < file.rows(); ++i) ids[i] = i;
  const Slots out(file, file.rows());
  file.read(ids.data(), file.rows(), out.parts, 2);
  Rows rows;
  for (const int64_t id : ids) rows.push_back(row_in(out.parts, id));
  return rows;
}

void run(Input& input) {
  const auto number = [&](int64_t low, int64_t high) {
    return static_cast<int64_t>(
        input.number(static_cast<uint64_t>(low), static_cast<uint64_t>(high)));
  };
  RowLayout layout;
  layout.dim = number(0, 3) ? number(1, 9) : number(0, 255) + 1;
  layout.element = static_cast<vecsmith::io::Element>(number(0, 2));
  layout.fill = static_cast<Fill>(number(0, 2));
  layout.b = 1;
  layout.zero_row = number(0, 4) - 1;
  for (int64_t more = number(0, 3); more > 0; --more)
    layout.states.push_back({number(0, 1) ? layout.dim : 1, 0.5f});
  const int64_t rows = number(1, 90), slots = number(1, 40);
  const int threads = static_cast<int>(number(1, 3));
  const bool in_file = number(0, 3) > 0;
  const Name name;
  auto file = in_file ? RowFile::create(name.text(), layout, rows, "label")
                      : RowFile::in_memory(layout, rows);
  Rows now = all_rows(*file), flushed = now;
  auto cache = std::make_unique<RowCache>(rows, slots);
  if (number(0, 7) == 0) cache->start_at(RowCache::kMostBatches - 3);
  auto table = std::make_unique<Slots>(*file, slots);
  std::vector<Flight> flights;
  int64_t changes = 0;

  const auto finish = [&](size_t k) {
    const Flight flight = std::move(flights[k]);
    flights.erase(flights.begin() + static_cast<std::ptrdiff_t>(k));
    for (size_t i = 0; i < flight.ids.size(); ++i) {
      const std::vector<char> row = row_in(table->parts, flight.slots[i]);
      FUZZ_CHECK(row == now[flight.ids[i]]);
      if (flight.use != Use::update) continue;
      ++changes;
      for (const RowPart& part : table->parts)
        std::memset(part.data + flight.slots[i] * part.bytes, static_cast<int>(changes & 127),
                    static_cast<size_t>(part.bytes));
      now[flight.ids[i]] = row_in(table->parts, flight.slots[i]);
    }
    cache->release(flight.ticket);
  };
  const auto begin = [&](Use use) {
    Flight flight{0, use, {}, {}};
    const int64_t size = number(0, 1) ? number(0, 12) : number(0, 60);
    const int64_t first = number(0, 89), step = number(0, 6);
    for (int64_t i = 0; i < size; ++i) flight.ids.push_back((first + i * step) % rows);
    const bool bad = number(0, 31) == 0 && size > 0;
    if (bad) flight.ids[static_cast<size_t>(size / 2)] = number(0, 1) ? rows : -1 - number(0, 9);
    flight.slots.assign(flight.ids.size(), -7);
    try {
      flight.ticket = cache->begin(flight.ids.data(), size, flight.slots.data(), use, *file,
                                   table->parts, threads);
      FUZZ_CHECK(!bad);
    } catch (const std::out_of_range&) {
      FUZZ_CHECK(bad);
      return;
    } catch (const CacheFullError&) {
      // Only where it is full of the distinct rows of all that is under way.
      std::vector<int64_t> used = flight.ids;
      for (const Flight& other : flights)
        used.insert(used.end(), other.ids.begin(), other.ids.end());
      std::sort(used.begin(), used.end());
      const auto distinct = std::unique(used.begin(), used.end()) - used.begin();
      FUZZ_CHECK(distinct > slots || use == Use::prefetch);
      return;
    }
    if (use != Use::prefetch) flights.push_back(std::move(flight));
  };
  const auto reopen = [&](bool clean) {
    if (!in_file) return;
    flights.clear();
    if (clean) {
      cache->write_changed(*file, table->parts, threads);
      file->flush("m");
      flushed = now;
      file->close();
    }
    file.reset();
    file = RowFile::open(name.text(), false);
    now = flushed;
    FUZZ_CHECK(all_rows(*file) == now);
    cache = std::make_unique<RowCache>(rows, slots);
    table = std::make_unique<Slots>(*file, slots);
  };

  for (int64_t steps = number(0, 60); steps > 0; --steps) {
    switch (number(0, 15)) {
      case 0:
        cache->write_changed(*file, table->parts, threads);
        file->flush("m");
        flushed = now;
        FUZZ_CHECK(all_rows(*file) == now);
        break;
      case 1:
        reopen(false);
        break;
      case 2:
        reopen(true);
        break;
      case 3:
        begin(Use::prefetch);
        break;
      case 4:
      case 5:
        begin(Use::read);
        break;
      case 6: {
        // In two steps, as for slots in another memory; sometimes it comes to nothing.
        std::vector<int32_t> ids;
        for (int64_t i = number(0, 20); i > 0; --i)
          ids.push_back(static_cast<int32_t>(number(0, 255) % rows));
        const auto size = static_cast<int64_t>(ids.size());
        const uint64_t ticket = cache->plan(ids.data(), size, Use::read, threads);
        const auto moves = cache->moves();
        for (const auto& move : moves) {
          if (!move.changed) continue;
          file->will_write();
          file->write_row(move.evicted, table->parts.data(), table->parts.size(), move.slot);
        }
        if (number(0, 3) == 0) {
          cache->cancel(ticket);
          break;
        }
        for (const auto& move : moves)
          file->read_row(move.loaded, table->parts.data(), table->parts.size(), move.slot);
        std::vector<int32_t> out(ids.size());
        try {
          cache->finish(ticket, ids.data(), size, out.data());
        } catch (const CacheFullError&) {
          break;
        }
        for (size_t i = 0; i < ids.size(); ++i)
          FUZZ_CHECK(row_in(table->parts, out[i]) == now[ids[i]]);
        cache->release(ticket);
        break;
      }
      case 7:
      case 8:
      case 9:
        if (!flights.empty()) finish(static_cast<size_t>(number(0, 255)) % flights.size());
        break;
      default:
        begin(Use::update);
        // As a rule one batch after the other.
        if (!flights.empty() && number(0, 3)) finish(flights.size() - 1);
    }
  }
  while (!flights.empty()) finish(flights.size() - 1);
  cache->write_changed(*file, table->parts, threads);
  FUZZ_CHECK(all_rows(*file) == now);
  if (!in_file) return;

  // More state behind the rows, then the bytes of the file at somebody's mercy.
  file->flush("end");
  const auto wider = file->with_states({{3, 2.0f}}, "wider");
  file.reset();
  FUZZ_CHECK(wider->metadata() == "end");
  wider->close();
  std::string bytes = name.read();
  for (int64_t k = number(0, 6); k > 0; --k) {
    const auto at = static_cast<size_t>(number(0, 255) * 256 + number(0, 255));
    if (number(0, 9) == 0)
      bytes.resize(at);
    else if (at < bytes.size())
      bytes[at] = static_cast<char>(bytes[at] ^ number(1, 255));
  }
  name.write(bytes);
  for (const bool read_only : {true, false}) {
    try {
      const auto changed = RowFile::open(name.text(), read_only);
      FUZZ_CHECK(all_rows(*changed).size() == static_cast<size_t>(rows));
    } catch (const RowFileError&) {
    }
  }
}

}  // namespace

// Settings and steps at random.
std::vector<std::string> fuzz_seeds() {
  std::vector<std::string> seeds(64);
  uint64_t state = 1;
  for (std::string& seed : seeds)
    for (int i = 0; i < 500; ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      seed.push_back(static_cast<char>(state >> 56));
    }
  return seeds;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  run(input);
  return 0;
}
