// A table of fixed-size rows in a file, read and written through a memory map, that a crash cannot
// tear: whenever the process dies, the next one finds what the last flush() left, to the bit.
//
// Every row has two places in the file and, before them, the generations of what the two hold. A
// row is written to the place that does not hold its flushed value, stamped with the running
// generation. flush() syncs the rows and then commits: it writes one record that says that the
// running generation counts from now on. A reader takes the newest place whose generation counts.
// So there is no journal to write first or to replay, a flush writes each row once, opening reads
// two pages whatever the size of the table, and since all space is allocated when the file is made,
// training cannot run into a full disk. The price is twice the space.
//
// A process that dies leaves rows of a generation that never came to count. The commit record
// names the running generation before the first such row can exist; the next process puts it on
// the list of void generations and runs under a new one.
//
//   0      header: layout, shape, label; written once
//   4096   commit record, even sequence numbers; 8192: odd ones. The newer whole one counts.
//   16384  rows: { generation[2]; place[2] } each, large ones on the borders of cache lines
//
// Without a file (in_memory) rows have one place, and there is nothing to flush.
//
// A file that is open for writing belongs to the process that opened it. A fork of that process has
// its map and its lock too, but must not use them: what it wrote would count for what its parent
// flushes, and the other way round. In a fork close() gives up what the fork has of the file and
// leaves the file alone, and all else is refused.
#pragma once

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "io/row_layout.h"

namespace vecsmith::io {

// The file is not what it should be. Errors of the system are std::system_error, with EWOULDBLOCK
// for a file that is open elsewhere.
class RowFileError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class RowFile {
 public:
  static std::unique_ptr<RowFile> in_memory(const RowLayout& layout, int64_t rows);
  // The new file appears under `path` when it is whole, with all of its space allocated; EEXIST if
  // there is one already. `label`: any bytes, up to kMostLabel.
  static std::unique_ptr<RowFile> create(const std::string& path, const RowLayout& layout,
                                         int64_t rows, const std::string& label);
  static std::unique_ptr<RowFile> open(const std::string& path, bool read_only);
  // The same rows with more states behind them, flushed or not as they are. In a file: in a new one
  // that takes the place of the old; `this` is to be closed then.
  std::unique_ptr<RowFile> with_states(const std::vector<RowState>& states,
                                       const std::string& label) const;
  ~RowFile();
  RowFile(const RowFile&) = delete;
  RowFile& operator=(const RowFile&) = delete;

  static constexpr size_t kMostLabel = 1024;
  static constexpr size_t kMostMetadata = 1024;
  static constexpr size_t kMostVoid = 248;

  const RowLayout& layout() const { return layout_; }
  const std::string& label() const { return label_; }
  const std::vector<int64_t>& parts() const { return part_bytes_; }
  int64_t rows() const { return rows_; }
  bool read_only() const { return read_only_; }
  bool in_file() const { return file_ >= 0; }
  bool closed() const { return map_ == nullptr; }
  // Whether this is a fork of the process that opened the file.
  bool forked() const;
  // std::runtime_error in a fork, where the file is open for writing.
  void check_process() const;
  // How often it was flushed, and what the last flush() was given.
  uint64_t flushes() const { return flushes_; }
  const std::string& metadata() const { return metadata_; }
  int64_t size_in_bytes() const { return size_; }

  // Rows between memory and here: row ids[i] and row i of the parts, the first ones or all of them.
  // Reading may be done by many threads, also while other rows are written. Written rows must be
  // distinct; parts that are not given keep their values.
  void read(const int64_t* ids, int64_t count, const std::vector<RowPart>& parts,
            int threads) const;
  void write(const int64_t* ids, int64_t count, const std::vector<RowPart>& parts, int threads);

  // What is written from now on does not count before the next flush(); what was written counts
  // when it returns. When the system could not write, nothing can be flushed any more.
  void flush(const std::string& metadata);
  // Gives the file up, here and for all forks; unflushed rows are lost.
  void close();

  // --- One row at a time, for row_cache.cpp. ---------------------------------------------------

  const char* header(int64_t id) const { return base_ + id * stride_; }
  // The row's record, in its newest place that counts; null if it was never written.
  const char* find(int64_t id) const {
    const char* at = header(id);
    const auto* generation = reinterpret_cast<const uint64_t*>(at);
    const uint64_t a = generation[0], b = places_ > 1 ? generation[1] : 0;
    const bool first = counts(a), second = counts(b);
    if (!first && !second) return nullptr;
    return at + first_ + (second && (!first || b > a) ? place_ : 0);
  }
  void read_row(int64_t id, const RowPart* parts, size_t count, int64_t at) const;
  // For all to see after written(), which each thread calls when it has written its last.
  void write_row(int64_t id, const RowPart* parts, size_t count, int64_t at);
  static void written();
  void will_write() { dirty_ = true; }  // before the first write_row of a batch
  // Asks the system to have these rows in memory soon.
  void will_need(const int64_t* ids, int64_t count) const;
  int64_t record_bytes() const { return record_; }

 private:
  RowFile();
  void let_go();
  void describe(const RowLayout& layout, int64_t rows, const std::string& label);
  static std::unique_ptr<RowFile> build(const std::string& path, const RowLayout& layout,
                                        int64_t rows, const std::string& label,
                                        const RowFile* from);
  void copy_from(const RowFile& from);
  void map(int64_t size, bool write);
  void write_header();
  void read_header();
  void read_commit();
  void write_commit(uint64_t committed, uint64_t running, bool clean, uint64_t flushes,
                    const std::string& metadata);
  void forget_void();
  bool is_void(uint64_t generation) const;
  bool counts(uint64_t generation) const {
    if (generation == 0) return false;
    if (generation == running_) return true;
    return generation <= committed_ && (void_.empty() || !is_void(generation));
  }
  [[noreturn]] void damaged(const std::string& what) const;

  RowLayout layout_;
  std::string label_, path_, metadata_;
  std::vector<int64_t> part_bytes_;
  int64_t rows_ = 0, size_ = 0;
  int64_t record_ = 0, first_ = 0, place_ = 0, stride_ = 0;  // a record; its places in a row
  int places_ = 1;
  bool streams_ = false;
  bool read_only_ = false;
  bool failed_ = false;

  char* map_ = nullptr;
  char* base_ = nullptr;  // row 0
  int file_ = -1;
  int64_t process_;

  // Of rows that count: up to `committed_` and not void, and, for a writer, `running_`.
  uint64_t committed_ = 0, running_ = 0, sequence_ = 0, flushes_ = 0;
  bool dirty_ = false;  // rows may have been written since the last flush
  std::vector<uint64_t> void_;
};

}  // namespace vecsmith::io
