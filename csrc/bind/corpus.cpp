// The corpus reader and the sampling tables, for vecsmith.data.
#include "io/corpus.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <system_error>

#include "bind/module.h"
#include "io/sampling_tables.h"

namespace py = pybind11;

namespace vecsmith {
namespace {

using io::CorpusReader;

// A vector handed over to NumPy without a copy.
template <class T>
py::array_t<T> to_array(std::vector<T> values) {
  auto* kept = new std::vector<T>(std::move(values));
  py::capsule owner(kept, [](void* p) { delete static_cast<std::vector<T>*>(p); });
  return py::array_t<T>(static_cast<py::ssize_t>(kept->size()), kept->data(), owner);
}

void feed(CorpusReader& reader, const py::buffer& block) {
  const py::buffer_info info = block.request();
  if (info.itemsize != 1 || info.ndim != 1 || (info.size > 1 && info.strides[0] != 1))
    throw py::type_error("expected contiguous bytes");
  py::gil_scoped_release release;
  reader.feed(static_cast<const char*>(info.ptr), static_cast<size_t>(info.size));
}

// What a message shows of an object: its type, and its beginning.
std::string describe(PyObject* object) {
  std::string text = py::repr(object);
  // The error message is UTF-8 again: do not cut inside a character.
  size_t most = 60;
  if (text.size() > most) {
    while (most > 0 && (text[most] & 0xC0) == 0x80) --most;
    text = text.substr(0, most) + "...";
  }
  return std::string(Py_TYPE(object)->tp_name) + " " + text;
}

// The UTF-8 of a str, for as long as `held` and the str live. Lone surrogates (what os.fsdecode
// makes of bad bytes, say) are encoded like other characters: any str is a word.
std::string_view utf8_of(PyObject* text, py::object& held) {
  Py_ssize_t size = 0;
  const char* bytes = PyUnicode_AsUTF8AndSize(text, &size);
  if (!bytes) {
    PyErr_Clear();
    held = py::reinterpret_steal<py::object>(
        PyUnicode_AsEncodedString(text, "utf-8", "surrogatepass"));
    if (!held) throw py::error_already_set();
    bytes = PyBytes_AS_STRING(held.ptr());
    size = PyBytes_GET_SIZE(held.ptr());
  }
  return {bytes, static_cast<size_t>(size)};
}

void add_token(CorpusReader& reader, PyObject* token, int64_t sentence) {
  if (!PyUnicode_Check(token))
    throw py::type_error("expected tokens that are str, got " + describe(token) + " in sentence " +
                         std::to_string(sentence));
  py::object held;
  const std::string_view text = utf8_of(token, held);
  reader.add_token(text.data(), text.size());
}

// Up to `limit` sentences of an iterator, each a list of str or any other iterable of them. One is
// done with before the next is asked for: it may be the same list, filled anew.
// first: the number of the first of them in the whole corpus, for messages. Returns how many.
int64_t add_sentences(CorpusReader& reader, const py::object& sentences, int64_t first,
                      int64_t limit) {
  if (!PyIter_Check(sentences.ptr())) throw py::type_error("expected an iterator of sentences");
  int64_t done = 0;
  for (; done < limit; ++done) {
    const auto sentence = py::reinterpret_steal<py::object>(PyIter_Next(sentences.ptr()));
    if (!sentence) {
      if (PyErr_Occurred()) throw py::error_already_set();
      break;
    }
    PyObject* const object = sentence.ptr();
    const auto refuse = [&](const char* advice) {
      throw py::type_error("expected each sentence to be a list of tokens, got " +
                           describe(object) + " as sentence " + std::to_string(first + done) +
                           advice);
    };
    if (PyUnicode_Check(object) || PyBytes_Check(object)) refuse(": split it into words first");
    if (PyList_CheckExact(object) || PyTuple_CheckExact(object)) {
      for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(object); ++i)
        add_token(reader, PySequence_Fast_GET_ITEM(object, i), first + done);
    } else {
      const auto tokens = py::reinterpret_steal<py::object>(PyObject_GetIter(object));
      if (!tokens) {
        PyErr_Clear();
        refuse("");
      }
      while (const auto token = py::reinterpret_steal<py::object>(PyIter_Next(tokens.ptr())))
        add_token(reader, token.ptr(), first + done);
      if (PyErr_Occurred()) throw py::error_already_set();
    }
    reader.end_sentence();
  }
  return done;
}

void freeze(CorpusReader& reader, const py::list& words) {
  for (const py::handle word : words) {
    if (!PyUnicode_Check(word.ptr()))
      throw py::type_error("expected words that are str, got " + describe(word.ptr()));
    py::object held;
    reader.freeze(utf8_of(word.ptr(), held));
  }
}

py::list words(const CorpusReader& reader, const py::array_t<int32_t>& ids) {
  py::list out(ids.size());
  for (py::ssize_t i = 0; i < ids.size(); ++i) {
    const int32_t id = ids.at(i);
    if (id < 0 || id >= reader.size()) throw py::index_error("word id out of range");
    const std::string_view word = reader.word(id);
    PyObject* text =
        PyUnicode_DecodeUTF8(word.data(), static_cast<Py_ssize_t>(word.size()), "surrogatepass");
    if (!text) throw py::error_already_set();
    PyList_SET_ITEM(out.ptr(), i, text);
  }
  return out;
}

py::tuple rewrite(CorpusReader& reader, const py::array_t<int32_t, py::array::c_style>& ids) {
  if (ids.ndim() != 1) throw py::value_error("expected final ids of shape [words]");
  const std::vector<int32_t> final_ids(ids.data(), ids.data() + ids.size());
  io::CorpusSize size;
  {
    py::gil_scoped_release release;
    size = reader.rewrite(final_ids);
  }
  return py::make_tuple(size.tokens, size.sentences, size.checksum);
}

using Counts = py::array_t<int64_t, py::array::c_style>;

py::array_t<int32_t> alias_table(const Counts& counts, double exponent) {
  if (counts.ndim() != 1) throw py::value_error("expected counts of shape [words]");
  py::array_t<int32_t> table({counts.size(), py::ssize_t{2}});
  const int64_t* in = counts.data();
  int32_t* out = table.mutable_data();
  const int64_t size = counts.size();
  py::gil_scoped_release release;
  io::alias_table(in, size, exponent, out);
  return table;
}

py::tuple huffman_tree(const Counts& counts) {
  if (counts.ndim() != 1) throw py::value_error("expected counts of shape [words]");
  io::HuffmanTree tree;
  {
    py::gil_scoped_release release;
    tree = io::huffman_tree(counts.data(), counts.size());
  }
  return py::make_tuple(to_array(std::move(tree.offsets)), to_array(std::move(tree.nodes)),
                        to_array(std::move(tree.codes)));
}

}  // namespace

void bind_corpus(py::module_& m) {
  // A full disk comes out as the OSError that Python itself would raise.
  py::register_local_exception_translator([](std::exception_ptr error) {
    try {
      if (error) std::rethrow_exception(error);
    } catch (const std::system_error& e) {
      if (e.code().category() != std::generic_category()) throw;
      errno = e.code().value();
      PyErr_SetFromErrno(PyExc_OSError);
    }
  });
  py::class_<CorpusReader>(m, "CorpusReader")
      .def(py::init([](int tokens_file, int offsets_file, int spill_file,
                       int64_t max_sentence_length, int64_t max_vocab_size, int threads,
                       size_t part_bytes) {
             io::CorpusOptions options;
             options.max_sentence_length = max_sentence_length;
             options.max_vocab_size = max_vocab_size;
             options.threads = threads;
             options.part_bytes = part_bytes;
             return new CorpusReader({tokens_file, offsets_file, spill_file}, options);
           }),
           py::kw_only(), py::arg("tokens_file"), py::arg("offsets_file"),
           py::arg("spill_file") = -1, py::arg("max_sentence_length"),
           py::arg("max_vocab_size") = 0, py::arg("threads") = 1,
           py::arg("part_bytes") = io::CorpusOptions{}.part_bytes)
      .def("freeze", &freeze)
      .def("feed", &feed)
      .def("end_file", &CorpusReader::end_file, py::call_guard<py::gil_scoped_release>())
      .def("add_sentences", &add_sentences)
      .def("finish", &CorpusReader::finish, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("raw_words", &CorpusReader::raw_words)
      .def_property_readonly("bad_bytes", &CorpusReader::bad_bytes)
      .def("__len__", &CorpusReader::size)
      .def("counts", [](const CorpusReader& reader) { return to_array(reader.counts()); })
      .def("orders", [](const CorpusReader& reader) { return to_array(reader.orders()); })
      .def("words", &words)
      .def("rewrite", &rewrite);
  m.def("alias_table", &alias_table);
  m.def("huffman_tree", &huffman_tree);
}

}  // namespace vecsmith
