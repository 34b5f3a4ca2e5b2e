"""Words and their vectors: the table, look-up, attributes, files. Speaks like gensim's.

The neighbor queries are in ``_neighbors.py``, the measures in ``_evaluation.py``.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith import io
from vecsmith.io._checks import refuse_nonfinite
from vecsmith.io.word2vec_format import load_counts
from vecsmith.models._evaluation import Evaluation
from vecsmith.models._neighbors import Neighbors

_FORMAT = "vecsmith.KeyedVectors"
_VERSION = 1
_VECTORS = "vectors"


class KeyedVectors(Neighbors, Evaluation):
    """V words and their vectors, one row of a table [V, D] each.

    The names, argument conventions and answers are those of gensim's ``KeyedVectors``. A *key* is a
    word, or an int that is no word and is taken as a row.

    ``weight`` is the table as an :class:`torch.nn.Parameter` (without gradient), ``vectors`` is the
    same memory as a NumPy array, and :meth:`to_embedding` gives an :class:`torch.nn.Embedding` on
    it: nothing is copied, and a change to one is a change to all.

    Norms of the rows are cached, and computed anew whenever the table may have changed: by an
    in-place operation of torch on the table or anything that shares its version counter
    (``weight``, an embedding that an optimizer trains), by NumPy through ``vectors`` (while such an
    array is alive, nothing is cached), and always where the table was given as a NumPy array, which
    its owner may write into. What torch cannot see either (``weight.data``, raw pointers, a NumPy
    array made from the original tensor) needs ``fill_norms(force=True)`` afterwards.

    Args:
        vocabulary_words: the V words, all different, usually most frequent first. An int D gives an
            empty table of that vector size, as in gensim.
        vectors: [V, D], a CPU tensor or array. float32 is kept by reference, with any row stride
            (the values of a row must be adjacent); other floating types are copied to float32.
        counts: V occurrence counts, or None; :meth:`get_vecattr` finds them as "count".

    Attributes:
        index_to_key: the words by row.
        key_to_index: the rows by word.
        weight: the table, an ``nn.Parameter`` [V, D].

    Raises:
        TypeError: if words are not strings, or vectors not floating-point.
        ValueError: if a word is there twice, or shapes do not fit.
    """

    def __init__(
        self,
        vocabulary_words: Sequence[str] | int,
        vectors: Tensor | np.ndarray | None = None,
        counts: Any = None,
    ) -> None:
        words = vocabulary_words
        if isinstance(words, (int, np.integer)):
            if vectors is not None or int(words) < 1:
                raise ValueError(
                    f"expected words and vectors, or one vector size >= 1; got {words}"
                )
            vectors = torch.empty(0, int(words))
            words = []
        if isinstance(words, str):
            raise TypeError("expected a list of words, got one string")
        if vectors is None:
            raise TypeError("expected vectors [V, D] for the words")
        self._set_words(list(words))
        self._set_table(vectors)
        self.expandos: dict[str, np.ndarray] = {}
        if counts is not None:
            counts = np.asarray(counts)
            if counts.shape != (len(self),) or counts.dtype.kind not in "iu":
                raise ValueError(
                    f"expected {len(self)} integer counts, "
                    f"got shape {counts.shape} of {counts.dtype}"
                )
            self.expandos["count"] = counts.astype(np.int64)

    # --- the table and its words ---------------------------------------------------------------

    def _set_words(self, words: list[str]) -> None:
        self.index_to_key = words
        self.key_to_index = {word: row for row, word in enumerate(words)}
        if not all(isinstance(word, str) for word in words):
            wrong = next(word for word in words if not isinstance(word, str))
            raise TypeError(f"expected words as strings, got {wrong!r}")
        if len(self.key_to_index) != len(words):
            twice = next(word for row, word in enumerate(words) if self.key_to_index[word] != row)
            raise ValueError(f"expected different words, got {twice!r} twice")

    def _set_table(self, vectors: Tensor | np.ndarray) -> None:
        foreign = isinstance(vectors, np.ndarray)
        if isinstance(vectors, np.ndarray):
            if vectors.dtype.kind != "f":
                raise TypeError(f"expected floating-point vectors, got {vectors.dtype}")
            borrowed = (
                vectors.dtype == np.float32
                and vectors.dtype.isnative
                and vectors.flags.writeable
                and all(stride >= 0 and stride % 4 == 0 for stride in vectors.strides)
            )
            if not borrowed:  # also read-only arrays: torch has no read-only tensors
                foreign = False
                vectors = vectors.astype(np.float32)
            table = torch.from_numpy(vectors)
        elif isinstance(vectors, Tensor):
            table = vectors.detach()
            if not table.is_floating_point():
                raise TypeError(f"expected floating-point vectors, got {table.dtype}")
            if table.device.type != "cpu":
                raise ValueError(f"expected vectors on the CPU, got them on {table.device}")
            table = table.to(torch.float32)
        else:
            raise TypeError(f"expected vectors as a tensor or array, got {type(vectors).__name__}")
        if table.dim() != 2 or table.shape[0] != len(self.index_to_key) or table.shape[1] < 1:
            raise ValueError(
                f"expected vectors of shape [{len(self.index_to_key)}, D >= 1] for "
                f"{len(self.index_to_key)} words, got {list(table.shape)}"
            )
        if table.shape[1] > 1 and table.stride(1) != 1:
            table, foreign = table.contiguous(), False
        self.weight = nn.Parameter(table, requires_grad=False)
        self._foreign = foreign  # an array whose owner may write into it
        self._norms: np.ndarray | None = None
        self._norms_version = -1
        self._lent: list[weakref.ref[np.ndarray]] = []

    @property
    def vectors(self) -> np.ndarray:
        """The table [V, D] as a NumPy array on the memory of ``weight``. May be written into."""
        for reference in self._lent:
            array = reference()
            if array is not None and array.ctypes.data == self.weight.data_ptr():
                return array
        array = self._table()
        self._lent.append(weakref.ref(array))
        self._norms = None
        return array

    @vectors.setter
    def vectors(self, vectors: Tensor | np.ndarray) -> None:
        self._set_table(vectors)

    def _table(self) -> np.ndarray:
        """The table for our own reading: does not count as lent."""
        return self.weight.detach().numpy()

    @property
    def vector_size(self) -> int:
        """D, the length of a vector."""
        return self.weight.shape[1]

    @property
    def norms(self) -> np.ndarray:
        """[V]: the Euclidean norms of the rows, as they are now. Set to None to forget them."""
        return self._filled_norms()

    @norms.setter
    def norms(self, norms: None) -> None:
        if norms is not None:
            raise ValueError("expected None: norms are computed, not set")
        self._norms = None

    def fill_norms(self, force: bool = False) -> None:
        """Compute the norms unless the cached ones are known to be right (or ``force``)."""
        self._filled_norms(force)

    def _filled_norms(self, force: bool = False) -> np.ndarray:
        self._lent = [reference for reference in self._lent if reference() is not None]
        norms = self._norms
        stale = self._foreign or bool(self._lent) or self._norms_version != self.weight._version
        if norms is None or stale or force:
            norms = torch.linalg.vector_norm(self.weight.detach(), dim=1).numpy()
            # Not kept while somebody may write into the table unseen, and be gone when we look.
            self._norms = None if self._foreign or self._lent else norms
            self._norms_version = self.weight._version
        return norms

    def __len__(self) -> int:
        return len(self.index_to_key)

    def __contains__(self, key: object) -> bool:
        return self._row(key) >= 0

    def __repr__(self) -> str:
        return f"KeyedVectors<vector_size={self.vector_size}, {len(self)} keys>"

    def _row(self, key: object) -> int:
        row = self.key_to_index.get(key, -1)  # type: ignore[call-overload]
        if row < 0 and isinstance(key, Integral) and 0 <= int(key) < len(self):
            return int(key)
        return row

    def has_index_for(self, key: str | int) -> bool:
        """Is the key known?"""
        return self._row(key) >= 0

    def get_index(self, key: str | int, default: int | None = None) -> int:
        """The row of a key; ``default``, if given, for an unknown one.

        Raises:
            KeyError: if the key is unknown and there is no default.
        """
        row = self._row(key)
        if row >= 0:
            return row
        if default is not None:
            return default
        raise KeyError(f"Key '{key}' not present")

    def get_vector(self, key: str | int, norm: bool = False) -> np.ndarray:
        """The vector [D] of a key, read-only; scaled to unit length if ``norm``.

        Raises:
            KeyError: if the key is unknown.
        """
        row = self.get_index(key)
        vector = self._table()[row]
        if norm:
            with np.errstate(invalid="ignore"):  # a zero vector has no direction: nan
                vector = vector / np.float32(torch.linalg.vector_norm(self.weight[row]).item())
        vector.flags.writeable = False
        return vector

    def __getitem__(self, key_or_keys: Any) -> np.ndarray:
        """The vector [D] of one key (read-only), or the vectors [N, D] of several.

        Raises:
            KeyError: if a key is unknown.
        """
        if isinstance(key_or_keys, (str, Integral)):
            return self.get_vector(key_or_keys)  # type: ignore[arg-type]
        rows = [self.get_index(key) for key in key_or_keys]
        return self._table()[rows]

    def __setitem__(self, keys: Any, weights: Any) -> None:
        """Set the vectors of keys; unknown ones are added (see :meth:`add_vectors`)."""
        if not isinstance(keys, list):
            keys = [keys]
            weights = np.asarray(weights).reshape(1, -1)
        self.add_vectors(keys, weights, replace=True)

    def add_vectors(self, keys: Any, weights: Any, replace: bool = False) -> None:
        """Append words with their vectors. ``weight`` and ``vectors`` become new objects then.

        Args:
            keys: the words (or one). Of a known word the old vector is kept unless ``replace``.
            weights: their vectors, [N, D].
            replace: write the vectors of known words into their rows, in place.

        Raises:
            TypeError: if a new key is not a string.
            ValueError: if the shapes do not fit.
        """
        if isinstance(keys, (str, Integral)):
            keys, weights = [keys], np.asarray(weights).reshape(1, -1)
        keys = list(keys)
        given = np.asarray(weights, dtype=np.float32)
        if given.shape != (len(keys), self.vector_size):
            raise ValueError(
                f"expected vectors of shape [{len(keys)}, {self.vector_size}], "
                f"got {list(given.shape)}"
            )
        added: dict[str, int] = {}
        kept: list[tuple[int, int]] = []
        for at, key in enumerate(keys):
            row = self._row(key)
            if row >= 0:
                kept.append((row, at))
            elif not isinstance(key, str):
                raise TypeError(f"expected a word, got {key!r}")
            elif replace:
                added[key] = at
            else:
                added.setdefault(key, at)
        if replace and kept:
            rows, source = (torch.tensor(list(column)) for column in zip(*kept, strict=True))
            self.weight[rows] = torch.from_numpy(given)[source]
        if added:
            new = torch.from_numpy(given[list(added.values())])
            self.index_to_key.extend(added)
            for key in added:
                self.key_to_index[key] = len(self.key_to_index)
            self._set_table(torch.cat((self.weight.detach(), new)))
            for name, values in self.expandos.items():
                padding = np.zeros(len(added), dtype=values.dtype)
                self.expandos[name] = np.concatenate((values, padding))

    def add_vector(self, key: str, vector: Any) -> int:
        """Append one word (or keep a known one's vector); its row. Copies the whole table."""
        self.add_vectors([key], np.asarray(vector).reshape(1, -1))
        return self.get_index(key)

    def get_vecattr(self, key: str | int, attr: str) -> Any:
        """An attribute of a key: its "count", or what :meth:`set_vecattr` has set.

        Raises:
            KeyError: if the key is unknown, or there is no such attribute.
        """
        row = self.get_index(key)
        if attr not in self.expandos:
            raise KeyError(f"no attribute {attr!r}: expected one of {sorted(self.expandos)}")
        return self.expandos[attr][row]

    def set_vecattr(self, key: str | int, attr: str, val: Any) -> None:
        """Set an attribute of a key; other keys begin with 0 (or None)."""
        row = self.get_index(key)
        if attr not in self.expandos:
            kind = np.asarray(val).dtype
            if kind.kind not in "iufb":
                kind = np.dtype(object)
            self.expandos[attr] = np.zeros(len(self), dtype=kind)
        self.expandos[attr][row] = val

    def to_embedding(self, freeze: bool = True) -> nn.Embedding:
        """An :class:`torch.nn.Embedding` [V, D] whose weight is this table: no copy is made.

        Args:
            freeze: the embedding does not train. False: it does, and its training changes
                these vectors.
        """
        return nn.Embedding.from_pretrained(self.weight.detach(), freeze=freeze)

    def get_normed_vectors(self) -> np.ndarray:
        """[V, D]: the vectors scaled to unit length; a copy. A zero vector gives nan."""
        with np.errstate(invalid="ignore"):
            return self._table() / self.norms[:, None]

    def unit_normalize_all(self) -> None:
        """Scale every vector to unit length, in place. Zero vectors stay."""
        norms = torch.from_numpy(self.norms)
        self.weight.div_(torch.where(norms > 0, norms, 1.0)[:, None])

    def sort_by_descending_frequency(self) -> None:
        """Sort words, vectors (into a new table) and attributes by descending count.

        Raises:
            KeyError: if there are no counts.
        """
        if "count" not in self.expandos:
            raise KeyError("no attribute 'count': these vectors came without counts")
        order = np.argsort(-self.expandos["count"], kind="stable")
        table = self.weight.detach()[torch.from_numpy(order)]
        self._set_words([self.index_to_key[row] for row in order.tolist()])
        self._set_table(table)
        self.expandos = {name: values[order] for name, values in self.expandos.items()}

    def vectors_for_all(self, keys: Iterable[Any]) -> KeyedVectors:
        """The known ones of ``keys``, each once, with copies of their vectors and counts."""
        rows = [self.key_to_index[key] for key in dict.fromkeys(keys) if key in self.key_to_index]
        counts = self.expandos.get("count")
        return KeyedVectors(
            [self.index_to_key[row] for row in rows],
            self.weight.detach()[torch.tensor(rows, dtype=torch.int64)],
            None if counts is None else counts[rows],
        )

    # --- files ---------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, vocab.txt, model.safetensors; all of them or none.

        Other files in the folder are left alone. See :func:`vecsmith.io.atomic_folder`.

        Raises:
            ValueError: if a vector holds nan or infinity.
            OSError: if the disk is full, or the folder cannot be written.
        """
        refuse_nonfinite(self.weight.detach(), self.index_to_key, "these vectors")
        config = {
            "format": _FORMAT,
            "version": _VERSION,
            "words": len(self),
            "vector_size": self.vector_size,
        }
        with io.atomic_folder(folder) as staging:
            io.save_words(staging / "vocab.txt", self.index_to_key, self.expandos.get("count"))
            io.save_safetensors(staging / "model.safetensors", {_VECTORS: self.weight})
            (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | os.PathLike[str], mmap: bool = True) -> KeyedVectors:
        """Load from a folder that :meth:`save` (or another model of vecsmith) has written.

        Args:
            folder: the folder.
            mmap: map the vectors instead of reading them into memory. Writing into them changes
                memory only, never the file.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged, the files do not belong together, or a vector holds
                nan or infinity.
        """
        with io.read_folder(folder) as find:
            path = find("config.json")
            if not path.exists():
                raise FileNotFoundError(f"{folder} is not a model folder: it has no config.json")
            try:
                config = json.loads(path.read_text())
                words_expected, size = int(config["words"]), int(config["vector_size"])
                form, version = str(config["format"]), int(config["version"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}: not a model's config.json ({error!r})") from None
            if not form.startswith("vecsmith.") or version > _VERSION:
                raise ValueError(
                    f"{path}: expected a vecsmith model of version <= {_VERSION}, "
                    f"got {form!r} of version {version}"
                )
            for name in ("vocab.txt", "model.safetensors"):
                if not find(name).exists():
                    raise FileNotFoundError(f"{folder} is not a whole model: it has no {name}")
            words, counts = io.load_words(find("vocab.txt"))
            tensors, _ = io.load_safetensors(find("model.safetensors"), mmap=mmap)
        path = find("model.safetensors")
        vectors = tensors.get(_VECTORS)
        if vectors is None:
            raise ValueError(f"{path}: expected a tensor {_VECTORS!r}, got {sorted(tensors)}")
        if vectors.dtype != torch.float32 or list(vectors.shape) != [words_expected, size]:
            raise ValueError(
                f"{path}: expected {_VECTORS!r} as float32 [{words_expected}, {size}], "
                f"got {vectors.dtype} {list(vectors.shape)}"
            )
        if len(words) != words_expected:
            raise ValueError(f"{folder}: expected {words_expected} words, got {len(words)}")
        refuse_nonfinite(vectors, words, str(path))
        try:
            return cls(words, vectors, counts)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from None

    def save_word2vec_format(
        self,
        fname: str | os.PathLike[str],
        fvocab: str | os.PathLike[str] | None = None,
        binary: bool = False,
        write_header: bool = True,
        prefix: str = "",
        sort_attr: str = "count",
    ) -> None:
        """Write word2vec's text or binary format, atomically; .gz and the like are compressed.

        Args:
            fname: the file.
            fvocab: a file for ``word count`` lines, or None.
            binary: the format; see :func:`vecsmith.io.save_word2vec_format`.
            write_header: begin with the line ``V D``; without it (text only) it is GloVe's format.
            prefix: before every word.
            sort_attr: write in descending order of this attribute where there is one.

        Raises:
            ValueError: before anything is written, if a word is empty or holds white space, a
                vector holds nan or infinity, or ``fvocab`` is wanted and there are no counts.
            OSError: if the disk is full, or a file cannot be written.
        """
        values, order = self.expandos.get(sort_attr), None
        if values is not None:
            order = np.argsort(-values, kind="stable")
        elif fvocab is not None:
            raise ValueError(f"expected an attribute {sort_attr!r} to write to {fvocab}, got none")
        io.save_word2vec_format(
            fname,
            self.index_to_key,
            self.weight,
            binary=binary,
            write_header=write_header,
            prefix=prefix,
            order=order,
        )
        if fvocab is not None and values is not None and order is not None:
            with io.atomic_file(fvocab) as file:
                for row in order.tolist():
                    file.write(f"{prefix}{self.index_to_key[row]} {values[row]}\n".encode())

    @classmethod
    def load_word2vec_format(
        cls,
        fname: str | os.PathLike[str],
        fvocab: str | os.PathLike[str] | None = None,
        binary: bool | None = False,
        encoding: str = "utf8",
        unicode_errors: str = "strict",
        limit: int | None = None,
        no_header: bool = False,
        allow_nonfinite: bool = False,
    ) -> KeyedVectors:
        """Read word2vec's text or binary format (or GloVe's, with ``no_header``).

        Args:
            fname: the file; .gz, .bz2, .xz and .zst are decompressed.
            fvocab: a file of ``word count`` lines. Without it the counts are made up, as gensim
                does: V, V - 1, ...
            binary: the format; None looks at the file.
            encoding: of the words.
            unicode_errors: what to do with words that do not decode.
            limit: read only the first so many words.
            no_header: text without the first line.
            allow_nonfinite: take vectors with nan or infinity as they are.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a whole file in the format; see
                :func:`vecsmith.io.load_word2vec_format`.
        """
        known: dict[str, int] = {}
        if fvocab is not None:
            known = load_counts(fvocab, encoding=encoding, unicode_errors=unicode_errors)
        words, vectors = io.load_word2vec_format(
            fname,
            binary=binary,
            encoding=encoding,
            unicode_errors=unicode_errors,
            limit=limit,
            no_header=no_header,
            allow_nonfinite=allow_nonfinite,
        )
        if fvocab is None:
            counts = np.arange(len(words), 0, -1)
        else:
            missing = [word for word in words if word not in known]
            if missing:
                warnings.warn(
                    f"{fvocab}: no count for {len(missing)} words, taken as 0: {missing[:5]}",
                    stacklevel=2,
                )
            counts = np.array([known.get(word, 0) for word in words], dtype=np.int64)
        return cls(words, vectors, counts)
