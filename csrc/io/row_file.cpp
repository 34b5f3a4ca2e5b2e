#include "io/row_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "io/file.h"
#include "io/team.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace vecsmith::io {
namespace {

constexpr uint32_t kVersion = 1;
constexpr uint32_t kByteOrder = 0x01020304;
constexpr int64_t kCommitAt = 4096, kRowsAt = 16384, kBlock = 4096;
constexpr size_t kMostStates = 8;
constexpr int64_t kAhead = 8;  // rows fetched ahead

struct Header {
  char magic[8];
  uint32_t version, byte_order;
  int64_t rows, dim;
  uint32_t element, fill;
  double a, b;
  uint64_t seed;
  int64_t zero_row;
  uint32_t states, label_bytes;
  int64_t state_floats[kMostStates];
  float state_values[kMostStates];
  char label[RowFile::kMostLabel];
  uint32_t crc;
};

struct Commit {
  char magic[8];
  uint64_t sequence, committed, running, flushes;
  uint32_t clean, void_count, metadata_bytes, unused;
  uint64_t void_generations[RowFile::kMostVoid];
  char metadata[RowFile::kMostMetadata];
  uint32_t crc;
};

static_assert(sizeof(Header) <= kBlock && sizeof(Commit) <= kBlock, "one block each");

constexpr char kHeaderMagic[8] = {'V', 'S', 'R', 'O', 'W', 'S', '\r', '\n'};
constexpr char kCommitMagic[8] = {'V', 'S', 'C', 'O', 'M', 'M', 'I', 'T'};

// CRC-32 (IEEE 802.3).
uint32_t crc32(const void* data, size_t size) {
  uint32_t crc = ~0u;
  for (const auto* p = static_cast<const unsigned char*>(data); size > 0; --size) {
    crc ^= *p++;
    for (int k = 0; k < 8; ++k) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
  }
  return ~crc;
}

template <class Block>
void seal(Block& block) {
  block.crc = crc32(&block, offsetof(Block, crc));
}

template <class Block>
bool whole(const Block& block) {
  return block.crc == crc32(&block, offsetof(Block, crc));
}

[[noreturn]] void fail(int code) { throw std::system_error(code, std::generic_category()); }
void check(int result) {
  if (result != 0) fail(errno);
}

void sync_file(int file) {
#if defined(__APPLE__)
  if (fcntl(file, F_FULLFSYNC) == 0) return;
#endif
  check(fsync(file));
}

// The entry of a new file in its folder. Some file systems cannot sync a folder.
void sync_folder(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int descriptor = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return;
  fsync(descriptor);
  ::close(descriptor);
}

// All of the file has space on the disk: a store into the map can then not fail for want of it.
void allocate(int file, int64_t size) {
#if defined(__APPLE__)
  fstore_t request{F_ALLOCATEALL, F_PEOFPOSMODE, 0, size, 0};
  if (fcntl(file, F_PREALLOCATE, &request) == -1) fail(errno);
  truncate_file(file, size);
#else
  int error;
  do error = posix_fallocate(file, 0, size);
  while (error == EINTR);
  if (error) fail(error);
#endif
}

// One writer or many readers. A file system without locks is served unlocked.
void lock(int file, bool read_only) {
  if (flock(file, (read_only ? LOCK_SH : LOCK_EX) | LOCK_NB) == 0) return;
  if (errno == EWOULDBLOCK) fail(EWOULDBLOCK);
}

int open_file(const std::string& path, int flags) {
  int file;
  do file = open(path.c_str(), flags | O_CLOEXEC, 0666);
  while (file < 0 && errno == EINTR);
  if (file < 0) fail(errno);
  return file;
}

// Closes a descriptor and removes a file unless told otherwise.
class Draft {
 public:
  explicit Draft(const std::string& path) : path_(path) {
    file_ = open_file(path, O_RDWR | O_CREAT);
    try {
      lock(file_, false);
    } catch (...) {
      ::close(file_);
      throw;
    }
    owned_ = true;
  }
  ~Draft() {
    if (owned_) unlink(path_.c_str());
    if (file_ >= 0) ::close(file_);
  }
  int file() const { return file_; }
  int release() {
    owned_ = false;
    return std::exchange(file_, -1);
  }

 private:
  std::string path_;
  int file_ = -1;
  bool owned_ = false;
};

// Past the caches; `to` and `bytes` are multiples of 16.
inline void stream(char* to, const char* from, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

inline void prefetch(const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
}

}  // namespace

// --- Making and opening. ----------------------------------------------------------------------

RowFile::RowFile() : process_(getpid()) {}

bool RowFile::forked() const { return process_ != getpid(); }

void RowFile::check_process() const {
  if (in_file() && !read_only_ && forked())
    throw std::runtime_error("expected the process that opened the file; got a fork of it");
}

void RowFile::describe(const RowLayout& layout, int64_t rows, const std::string& label) {
  if (rows < 1 || rows > (int64_t{1} << 31))
    throw std::invalid_argument("expected 1..2^31 rows, got " + std::to_string(rows));
  if (layout.dim < 1 || layout.dim > (1 << 24))
    throw std::invalid_argument("expected rows of 1..2^24 values, got " +
                                std::to_string(layout.dim));
  if (layout.states.size() > kMostStates) throw std::invalid_argument("expected at most 8 states");
  for (const RowState& state : layout.states)
    if (state.floats < 1 || state.floats > (1 << 24))
      throw std::invalid_argument("expected states of 1..2^24 values, got " +
                                  std::to_string(state.floats));
  if (label.size() > kMostLabel) throw std::invalid_argument("expected a label of 1024 bytes");
  layout_ = layout;
  label_ = label;
  rows_ = rows;
  part_bytes_ = io::part_bytes(layout);
  record_ = 0;
  for (const int64_t bytes : part_bytes_) record_ += bytes;
  // Large records begin with a cache line, and are written past the caches: they are not read again
  // soon, and need not be fetched to be overwritten.
  const int64_t line = record_ >= 512 ? 64 : 16;
  first_ = line;
  place_ = (record_ + line - 1) / line * line;
  streams_ = line == 64;
  for (const int64_t bytes : part_bytes_) streams_ = streams_ && bytes % 16 == 0;
}

void RowFile::map(int64_t size, bool write) {
  const bool anonymous = file_ < 0;
  // The table of an anonymous map grows as it is touched; no swap is set aside for it.
  const int flags = anonymous ? MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE : MAP_SHARED;
  void* at = mmap(nullptr, static_cast<size_t>(size), write ? PROT_READ | PROT_WRITE : PROT_READ,
                  flags, file_, 0);
  if (at == MAP_FAILED) fail(errno);
  map_ = static_cast<char*>(at);
  size_ = size;
  base_ = map_ + (anonymous ? 0 : kRowsAt);
#ifdef MADV_HUGEPAGE
  if (anonymous) madvise(at, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
  // A row is read for itself: its neighbors need not come from the disk with it.
  if (!anonymous) madvise(at, static_cast<size_t>(size), MADV_RANDOM);
}

std::unique_ptr<RowFile> RowFile::in_memory(const RowLayout& layout, int64_t rows) {
  std::unique_ptr<RowFile> out(new RowFile);
  out->describe(layout, rows, "");
  out->places_ = 1;
  out->stride_ = out->first_ + out->place_;
  out->running_ = 1;
  out->map(rows * out->stride_, true);
  return out;
}

std::unique_ptr<RowFile> RowFile::build(const std::string& path, const RowLayout& layout,
                                        int64_t rows, const std::string& label,
                                        const RowFile* from) {
  std::unique_ptr<RowFile> out(new RowFile);
  out->describe(layout, rows, label);
  out->path_ = path;
  out->places_ = 2;
  out->stride_ = out->first_ + 2 * out->place_;
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  // One name for all attempts: what a killed one leaves is used by the next.
  const std::string draft_path = path.substr(0, name) + "." + path.substr(name) + ".making";
  Draft draft(draft_path);
  truncate_file(draft.file(), 0);
  const int64_t size = kRowsAt + rows * out->stride_;
  allocate(draft.file(), size);
  out->file_ = draft.file();
  try {
    struct stat info;
    if (from && fstat(from->file_, &info) == 0) check(fchmod(out->file_, info.st_mode & 07777));
    out->map(size, true);
    out->write_header();
    out->running_ = 1;
    if (from) out->copy_from(*from);
    out->write_commit(out->committed_, out->running_, false, out->flushes_, out->metadata_);
    if (from) check(msync(out->map_, static_cast<size_t>(size), MS_SYNC));
    sync_file(out->file_);
    if (from) {
      check(rename(draft_path.c_str(), path.c_str()));
    } else if (link(draft_path.c_str(), path.c_str()) == 0) {
      unlink(draft_path.c_str());
    } else if (errno == EEXIST || access(path.c_str(), F_OK) == 0) {
      fail(EEXIST);
    } else {
      check(rename(draft_path.c_str(), path.c_str()));  // a file system without links
    }
  } catch (...) {
    out->file_ = -1;
    throw;
  }
  draft.release();
  sync_folder(path);
  return out;
}

std::unique_ptr<RowFile> RowFile::create(const std::string& path, const RowLayout& layout,
                                         int64_t rows, const std::string& label) {
  if (access(path.c_str(), F_OK) == 0) fail(EEXIST);
  return build(path, layout, rows, label, nullptr);
}

std::unique_ptr<RowFile> RowFile::with_states(const std::vector<RowState>& states,
                                              const std::string& label) const {
  if (read_only_ || closed()) fail(EBADF);
  check_process();
  RowLayout layout = layout_;
  layout.states = states;
  if (in_file()) return build(path_, layout, rows_, label, this);
  std::unique_ptr<RowFile> out = in_memory(layout, rows_);
  out->label_ = label;
  out->copy_from(*this);
  return out;
}

// Rows as they are, with their generations; what `from` lacks is as in a row never written.
void RowFile::copy_from(const RowFile& from) {
  committed_ = from.committed_;
  running_ = from.running_;
  flushes_ = from.flushes_;
  metadata_ = from.metadata_;
  void_ = from.void_;
  dirty_ = from.dirty_;
  if (committed_ == 0 && !dirty_) return;  // nothing was ever written
  size_t shared = 0;
  int64_t bytes = 0;
  while (shared < std::min(part_bytes_.size(), from.part_bytes_.size()) &&
         part_bytes_[shared] == from.part_bytes_[shared])
    bytes += part_bytes_[shared++];
  for (int64_t id = 0; id < rows_; ++id) {
    const auto* generation = reinterpret_cast<const uint64_t*>(from.header(id));
    for (int k = 0; k < places_; ++k) {
      if (!from.counts(generation[k])) continue;
      char* to = base_ + id * stride_ + first_ + k * place_;
      std::memcpy(to, from.header(id) + from.first_ + k * from.place_, static_cast<size_t>(bytes));
      to += bytes;
      for (size_t p = shared; p < part_bytes_.size(); to += part_bytes_[p++])
        fill_part(layout_, id, p, to);
      reinterpret_cast<uint64_t*>(base_ + id * stride_)[k] = generation[k];
    }
  }
}

std::unique_ptr<RowFile> RowFile::open(const std::string& path, bool read_only) {
  std::unique_ptr<RowFile> out(new RowFile);
  out->path_ = path;
  out->read_only_ = read_only;
  out->places_ = 2;
  out->file_ = open_file(path, read_only ? O_RDONLY : O_RDWR);
  struct stat info, named;
  check(fstat(out->file_, &info));
  if (!S_ISREG(info.st_mode)) fail(S_ISDIR(info.st_mode) ? EISDIR : EINVAL);
  lock(out->file_, read_only);
  // Its name may have gone to another file before it was locked.
  check(stat(path.c_str(), &named));
  if (named.st_ino != info.st_ino || named.st_dev != info.st_dev) fail(EWOULDBLOCK);
  if (info.st_size < kRowsAt)
    out->damaged("expected a table of rows, got a file of " + std::to_string(info.st_size) +
                 " bytes");
  out->read_header();
  const int64_t size = kRowsAt + out->rows_ * out->stride_;
  if (info.st_size != size)
    out->damaged("expected " + std::to_string(size) + " bytes, got " +
                 std::to_string(info.st_size) + (info.st_size < size ? ": it was cut short" : ""));
  out->read_commit();
  // A copy may have holes where the file had zeros.
  if (!read_only && static_cast<int64_t>(info.st_blocks) * 512 < size) allocate(out->file_, size);
  out->map(size, !read_only);
  if (!read_only) {
    if (out->void_.size() > kMostVoid) out->forget_void();
    // From here on rows of the running generation may be in the file.
    out->write_commit(out->committed_, out->running_, false, out->flushes_, out->metadata_);
  }
  return out;
}

RowFile::~RowFile() { let_go(); }

void RowFile::let_go() {
  if (map_) munmap(map_, static_cast<size_t>(size_));
  map_ = base_ = nullptr;
  if (file_ >= 0) {
    // Forks share the lock, and would keep it for as long as they live. (Those that read a file may
    // go on with it.)
    if (!read_only_ && !forked()) flock(file_, LOCK_UN);
    ::close(file_);
  }
  file_ = -1;
}

void RowFile::close() {
  if (in_file() && !read_only_ && !dirty_ && !failed_ && !forked()) {
    try {
      write_commit(committed_, running_, true, flushes_, metadata_);
    } catch (const std::system_error&) {
      // Nothing was left unflushed; the next to open it only takes it for less clean than it is.
    }
  }
  let_go();
}

// --- Header and commit record. ----------------------------------------------------------------

void RowFile::damaged(const std::string& what) const { throw RowFileError(what); }

void RowFile::write_header() {
  Header header{};
  std::memcpy(header.magic, kHeaderMagic, 8);
  header.version = kVersion;
  header.byte_order = kByteOrder;
  header.rows = rows_;
  header.dim = layout_.dim;
  header.element = static_cast<uint32_t>(layout_.element);
  header.fill = static_cast<uint32_t>(layout_.fill);
  header.a = layout_.a;
  header.b = layout_.b;
  header.seed = layout_.seed;
  header.zero_row = layout_.zero_row;
  header.states = static_cast<uint32_t>(layout_.states.size());
  header.label_bytes = static_cast<uint32_t>(label_.size());
  for (size_t i = 0; i < layout_.states.size(); ++i) {
    header.state_floats[i] = layout_.states[i].floats;
    header.state_values[i] = layout_.states[i].value;
  }
  std::copy(label_.begin(), label_.end(), header.label);
  seal(header);
  write_at(file_, &header, sizeof header, 0);
}

void RowFile::read_header() {
  Header header;
  read_at(file_, &header, sizeof header, 0);
  if (std::memcmp(header.magic, kHeaderMagic, 8) != 0)
    damaged("expected a table of rows, got another kind of file");
  if (header.byte_order != kByteOrder)
    damaged("expected a file of this machine's byte order, got another");
  if (header.version != kVersion)
    damaged("expected version " + std::to_string(kVersion) + ", got " +
            std::to_string(header.version));
  if (!whole(header)) damaged("damaged: its header does not fit its checksum");
  if (header.states > kMostStates || header.label_bytes > kMostLabel || header.element > 2 ||
      header.fill > 2)
    damaged("damaged: its header makes no sense");
  RowLayout layout;
  layout.dim = header.dim;
  layout.element = static_cast<Element>(header.element);
  layout.fill = static_cast<Fill>(header.fill);
  layout.a = header.a;
  layout.b = header.b;
  layout.seed = header.seed;
  layout.zero_row = header.zero_row;
  for (uint32_t i = 0; i < header.states; ++i)
    layout.states.push_back({header.state_floats[i], header.state_values[i]});
  try {
    describe(layout, header.rows, std::string(header.label, header.label_bytes));
  } catch (const std::invalid_argument& error) {
    damaged(std::string("damaged: ") + error.what());
  }
  stride_ = first_ + 2 * place_;
}

void RowFile::read_commit() {
  Commit records[2];
  const Commit* last = nullptr;
  for (int k = 0; k < 2; ++k) {
    Commit& record = records[k];
    read_at(file_, &record, sizeof record, kCommitAt * (1 + k));
    if (std::memcmp(record.magic, kCommitMagic, 8) != 0 || !whole(record)) continue;
    if (record.void_count > kMostVoid || record.metadata_bytes > kMostMetadata ||
        record.sequence % 2 != static_cast<uint64_t>(k) || record.running <= record.committed)
      continue;
    if (!last || record.sequence > last->sequence) last = &record;
  }
  if (!last) damaged("damaged: it has no whole commit record");
  sequence_ = last->sequence;
  committed_ = last->committed;
  flushes_ = last->flushes;
  metadata_.assign(last->metadata, last->metadata_bytes);
  void_.assign(last->void_generations, last->void_generations + last->void_count);
  running_ = last->running;
  if (!last->clean) {
    // Whoever wrote last may have left rows that were never flushed.
    void_.push_back(running_);
    ++running_;
  }
}

void RowFile::write_commit(uint64_t committed, uint64_t running, bool clean, uint64_t flushes,
                           const std::string& metadata) {
  Commit record{};
  std::memcpy(record.magic, kCommitMagic, 8);
  record.sequence = sequence_ + 1;
  record.committed = committed;
  record.running = running;
  record.flushes = flushes;
  record.clean = clean;
  record.void_count = static_cast<uint32_t>(void_.size());
  record.metadata_bytes = static_cast<uint32_t>(metadata.size());
  std::copy(void_.begin(), void_.end(), record.void_generations);
  std::copy(metadata.begin(), metadata.end(), record.metadata);
  seal(record);
  // The other record stays as it is until this one is on the disk.
  write_at(file_, &record, sizeof record,
           kCommitAt * (1 + static_cast<int64_t>(record.sequence % 2)));
  sync_file(file_);
  sequence_ = record.sequence;
}

bool RowFile::is_void(uint64_t generation) const {
  return std::binary_search(void_.begin(), void_.end(), generation);
}

// The list of void generations is full: their rows are cleared, and the list begins anew.
void RowFile::forget_void() {
  for (int64_t id = 0; id < rows_; ++id) {
    auto* generation = reinterpret_cast<uint64_t*>(base_ + id * stride_);
    for (int k = 0; k < 2; ++k)
      if (generation[k] && is_void(generation[k])) generation[k] = 0;
  }
  check(msync(map_, static_cast<size_t>(size_), MS_SYNC));
  void_.clear();
}

void RowFile::flush(const std::string& metadata) {
  if (metadata.size() > kMostMetadata)
    throw std::invalid_argument("expected metadata of at most 1024 bytes, got " +
                                std::to_string(metadata.size()));
  if (closed()) fail(EBADF);
  check_process();
  if (!in_file()) {
    metadata_ = metadata;
    ++flushes_;
    return;
  }
  if (read_only_) fail(EBADF);
  // The system reports an error once, and may then take the rows for written.
  if (failed_) fail(EIO);
  try {
    check(msync(map_, static_cast<size_t>(size_), MS_SYNC));
    write_commit(running_, running_ + 1, false, flushes_ + 1, metadata);
  } catch (...) {
    failed_ = true;
    throw;
  }
  committed_ = running_++;
  ++flushes_;
  metadata_ = metadata;
  dirty_ = false;
}

// --- Rows. -------------------------------------------------------------------------------------

void RowFile::read_row(int64_t id, const RowPart* parts, size_t count, int64_t at) const {
  const char* from = find(id);
  if (!from) {
    for (size_t p = 0; p < count; ++p)
      fill_part(layout_, id, p, parts[p].data + at * parts[p].bytes);
    return;
  }
  for (size_t p = 0; p < count; ++p) {
    std::memcpy(parts[p].data + at * parts[p].bytes, from, static_cast<size_t>(parts[p].bytes));
    from += parts[p].bytes;
  }
}

void RowFile::write_row(int64_t id, const RowPart* parts, size_t count, int64_t at) {
  char* row = base_ + id * stride_;
  auto* generation = reinterpret_cast<uint64_t*>(row);
  int place = 0;
  const char* now = count < part_bytes_.size() ? find(id) : nullptr;
  if (places_ > 1 && generation[0] != running_) {
    if (generation[1] == running_)
      place = 1;
    else if (counts(generation[0]))
      place = !counts(generation[1]) || generation[0] > generation[1];
  }
  char* to = row + first_ + place * place_;
  int64_t offset = 0;
  for (size_t p = 0; p < count; ++p) {
    const char* from = parts[p].data + at * parts[p].bytes;
    if (streams_)
      stream(to + offset, from, parts[p].bytes);
    else
      std::memcpy(to + offset, from, static_cast<size_t>(parts[p].bytes));
    offset += parts[p].bytes;
  }
  if (count < part_bytes_.size() && now != to) {
    if (now)
      std::memcpy(to + offset, now + offset, static_cast<size_t>(record_ - offset));
    else
      for (size_t p = count; p < part_bytes_.size(); offset += part_bytes_[p++])
        fill_part(layout_, id, p, to + offset);
  }
  // Not before the row is whole: the process may be killed here.
  std::atomic_signal_fence(std::memory_order_release);
  generation[place] = running_;
}

void RowFile::written() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

void RowFile::read(const int64_t* ids, int64_t count, const std::vector<RowPart>& parts,
                   int threads) const {
  int64_t bytes = 0;
  for (const RowPart& part : parts) bytes += part.bytes;
  run_team(threads, [&](int t) {
    const int64_t end = part_begin(count, t + 1, threads);
    for (int64_t i = part_begin(count, t, threads); i < end; ++i) {
      if (i + 2 * kAhead < count) __builtin_prefetch(header(ids[i + 2 * kAhead]));
      if (i + kAhead < count) {
        const char* next = find(ids[i + kAhead]);
        if (next) prefetch(next, bytes);
      }
      read_row(ids[i], parts.data(), parts.size(), i);
    }
  });
}

void RowFile::write(const int64_t* ids, int64_t count, const std::vector<RowPart>& parts,
                    int threads) {
  dirty_ = dirty_ || count > 0;
  run_team(threads, [&](int t) {
    const int64_t end = part_begin(count, t + 1, threads);
    for (int64_t i = part_begin(count, t, threads); i < end; ++i) {
      if (i + kAhead < count) __builtin_prefetch(header(ids[i + kAhead]), 1);
      write_row(ids[i], parts.data(), parts.size(), i);
    }
    written();
  });
}

void RowFile::will_need(const int64_t* ids, int64_t count) const {
  if (!in_file()) return;
  const auto page = static_cast<int64_t>(sysconf(_SC_PAGESIZE));
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = (header(ids[i]) - map_) / page * page;
    const int64_t last = header(ids[i]) - map_ + stride_;
    madvise(map_ + first, static_cast<size_t>(last - first), MADV_WILLNEED);
  }
}

}  // namespace vecsmith::io
