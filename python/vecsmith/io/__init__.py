"""File formats, and writing that a crash cannot tear.

* :func:`atomic_file`, :func:`atomic_folder`, :func:`read_folder`: nothing half-written is seen.
* :func:`save_safetensors`, :func:`load_safetensors`: tensors, strided ones too, by memory map.
* :func:`load_word2vec_format`, :func:`save_word2vec_format`: word2vec's text and binary files.
* :func:`save_words`, :func:`load_words`: one word and count a line, any word.
* :func:`open_binary`: a file, decompressed if its name says so.
* :class:`RowFile`: a table of fixed-size rows, changed in place and flushed as a whole.
"""

from __future__ import annotations

from vecsmith.io._atomic import atomic_file, atomic_folder, read_folder
from vecsmith.io._open import is_compressed, open_binary
from vecsmith.io._safetensors import load_safetensors, save_safetensors
from vecsmith.io._words import escape_word, load_words, save_words, unescape_word
from vecsmith.io.row_file import RowFile
from vecsmith.io.word2vec_format import load_word2vec_format, save_word2vec_format

__all__ = [
    "RowFile",
    "atomic_file",
    "atomic_folder",
    "escape_word",
    "is_compressed",
    "load_safetensors",
    "load_word2vec_format",
    "load_words",
    "open_binary",
    "read_folder",
    "save_safetensors",
    "save_word2vec_format",
    "save_words",
    "unescape_word",
]
