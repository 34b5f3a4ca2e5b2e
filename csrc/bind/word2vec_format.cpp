// Bindings of the word2vec formats: check, release the GIL, call. Files are opened in
// vecsmith/io/word2vec_format.py.
#include "io/word2vec_format.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "bind/module.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

using Array64 = py::array_t<int64_t, py::array::c_style>;

struct Bytes {
  py::buffer_info info;  // holds the buffer: it cannot be closed or resized meanwhile
  const char* data;
  size_t size;
};

Bytes bytes_from(const py::buffer& buffer, int64_t offset) {
  py::buffer_info info = buffer.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1))
    throw py::type_error("expected contiguous bytes");
  if (offset < 0 || offset > info.size) throw py::index_error("expected 0 <= offset <= size");
  const char* data = static_cast<const char*>(info.ptr) + offset;
  const size_t size = static_cast<size_t>(info.size - offset);
  return {std::move(info), data, size};
}

io::VectorRows rows_from(const py::array& table, bool write) {
  if (!py::isinstance<py::array_t<float>>(table) || table.ndim() != 2)
    throw py::type_error("expected a float32 table [rows, dim]");
  if (write && !table.writeable()) throw py::value_error("expected a table that can be written");
  const int64_t rows = table.shape(0), dim = table.shape(1);
  if (dim < 1 || (dim > 1 && table.strides(1) != 4) || table.strides(0) < 0 || table.strides(0) % 4)
    throw py::value_error("expected rows of adjacent values");
  return {static_cast<float*>(const_cast<void*>(table.data())), rows, dim, table.strides(0) / 4};
}

int checked_threads(int threads) {
  if (threads < 1) throw py::value_error("expected num_threads >= 1");
  return threads;
}

Array64 to_array(const std::vector<int64_t>& values) {
  return Array64(static_cast<py::ssize_t>(values.size()), values.data());
}

const char* name_of(io::FormatError error) {
  switch (error) {
    case io::FormatError::no_space:
      return "no_space";
    case io::FormatError::bad_number:
      return "bad_number";
    case io::FormatError::too_few:
      return "too_few";
    default:
      return "";
  }
}

py::dict to_dict(const io::ParsedVectors& parsed) {
  py::dict out;
  out["consumed"] = parsed.consumed;
  out["rows"] = parsed.rows;
  out["starts"] = to_array(parsed.starts);
  out["lengths"] = to_array(parsed.lengths);
  out["nonfinite_row"] = parsed.nonfinite_row;
  out["error"] = name_of(parsed.error);
  out["error_row"] = parsed.error_row;
  out["error_at"] = parsed.error_at;
  return out;
}

py::dict parse(const py::buffer& buffer, int64_t offset, const py::array& table, bool binary,
               bool last, int threads) {
  const Bytes bytes = bytes_from(buffer, offset);
  const io::VectorRows rows = rows_from(table, true);
  checked_threads(threads);
  io::ParsedVectors parsed;
  {
    py::gil_scoped_release release;
    parsed = binary ? io::parse_binary_vectors(bytes.data, bytes.size, rows, threads)
                    : io::parse_text_vectors(bytes.data, bytes.size, last, rows, threads);
  }
  return to_dict(parsed);
}

int64_t count_text(const py::buffer& buffer, int64_t offset, int threads) {
  const Bytes bytes = bytes_from(buffer, offset);
  checked_threads(threads);
  py::gil_scoped_release release;
  return io::count_text_vectors(bytes.data, bytes.size, threads);
}

// The words as a list of str. A word that does not decode raises UnicodeDecodeError; `row` is then
// the length of the list so far, which the caller passes in and sees.
void decode_words(const py::buffer& buffer, int64_t offset, const Array64& starts,
                  const Array64& lengths, const std::string& encoding, const std::string& errors,
                  py::list& words) {
  const Bytes bytes = bytes_from(buffer, offset);
  if (starts.ndim() != 1 || lengths.ndim() != 1 || starts.size() != lengths.size())
    throw py::value_error("expected as many starts as lengths");
  const int64_t size = static_cast<int64_t>(bytes.size);
  for (py::ssize_t i = 0; i < starts.size(); ++i) {
    const int64_t start = starts.data()[i], length = lengths.data()[i];
    if (start < 0 || length < 0 || start > size || length > size - start)
      throw py::index_error("expected words inside the bytes");
    PyObject* word = PyUnicode_Decode(bytes.data + start, length, encoding.c_str(), errors.c_str());
    if (!word) throw py::error_already_set();
    words.append(py::reinterpret_steal<py::str>(word));
  }
}

py::list format(const py::array& table, const py::bytes& words, const Array64& offsets,
                const Array64& order, bool binary, int threads) {
  const io::VectorRows rows = rows_from(table, false);
  checked_threads(threads);
  char* text = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(words.ptr(), &text, &size)) throw py::error_already_set();
  if (offsets.ndim() != 1 || offsets.size() != rows.rows + 1 || order.ndim() != 1)
    throw py::value_error("expected one offset more than rows, and rows in order");
  for (int64_t i = 0; i <= rows.rows; ++i) {
    const int64_t before = i ? offsets.data()[i - 1] : 0;
    if (offsets.data()[i] < before || offsets.data()[i] > size)
      throw py::value_error("expected ascending offsets inside the words");
  }
  for (py::ssize_t i = 0; i < order.size(); ++i)
    if (order.data()[i] < 0 || order.data()[i] >= rows.rows)
      throw py::index_error("expected rows of the table");
  const io::WordBlock block{text, offsets.data()};
  std::vector<std::string> pieces;
  {
    py::gil_scoped_release release;
    pieces = binary ? io::format_binary_vectors(rows, block, order.data(), order.size(), threads)
                    : io::format_text_vectors(rows, block, order.data(), order.size(), threads);
  }
  py::list out;
  for (const std::string& piece : pieces) out.append(py::bytes(piece));
  return out;
}

}  // namespace

void bind_word2vec_format(py::module_& m) {
  m.def("word2vec_parse", &parse, py::arg("buffer"), py::arg("offset"), py::arg("table"),
        py::arg("binary"), py::arg("last"), py::arg("num_threads"));
  m.def("word2vec_count_text", &count_text, py::arg("buffer"), py::arg("offset"),
        py::arg("num_threads"));
  m.def("word2vec_decode", &decode_words, py::arg("buffer"), py::arg("offset"), py::arg("starts"),
        py::arg("lengths"), py::arg("encoding"), py::arg("errors"), py::arg("words"));
  m.def("word2vec_format", &format, py::arg("table"), py::arg("words"), py::arg("offsets"),
        py::arg("order"), py::arg("binary"), py::arg("num_threads"));
}

}  // namespace vecsmith
