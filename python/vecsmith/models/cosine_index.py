"""CosineIndex: vectors that are searched for, exactly; speaks like faiss's flat indexes."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vecsmith import ops
from vecsmith.models import _index_files
from vecsmith.models._index_files import DTYPES, METRICS, NAMES

_LONGEST = 1e18
_CHECKED = 1 << 20  # numbers that are looked at together

Vectors = Tensor | np.ndarray
Ids = Tensor | np.ndarray | Sequence[int] | int


class CosineIndex:
    """Vectors, and an exact search for the nearest of them.

        index = CosineIndex(vectors)
        values, ids = index.search(queries, k=10)

    What is computed, by which metric, and that it is exact: :func:`vecsmith.ops.cosine_topk`. On
    the CPU a packed copy of the vectors (:class:`vecsmith.ops.PackedRows`) is made with the first
    search and kept, so that later ones need not pack.

    As in faiss, vectors get the ids 0, 1, 2, ... in the order of :meth:`add`. Other than in faiss,
    ids never change: a removed vector's id is not given again, and ids behind it stay.
    ``len(index)`` and ``ntotal`` count the vectors that can be found; ``num_ids`` counts the ids
    ever given, and is what memory and files are as large as.

    Vectors and queries are torch tensors or NumPy arrays (float16, float32, float64), and the
    answer is of the kind of the question.

    Args:
        vectors: [V, D], the first vectors, or None.
        metric: "cosine" (greatest first), "dot" (greatest first) or "l2" (squared distance, least
            first).
        dim: D, where there are no vectors yet; else that of the first ones.
        dtype: of the vectors as they are kept: float32, float64, bfloat16, float16; default: that
            of the first ones.
        share: keep the given tensor itself, an ``nn.Embedding.weight`` for one, in place of a copy.
            Whoever changes its rows tells :meth:`update` which; in-place operations that torch
            counts and that nobody told of are noticed, and all rows are packed anew. Nothing can be
            added to it.
        num_threads: default ``torch.get_num_threads()``.

    Raises:
        TypeError, ValueError: wrong types, shapes, options; a vector that is not finite, by its
            row; with dot and l2 one longer than 1e18.
    """

    def __init__(
        self,
        vectors: Vectors | None = None,
        *,
        metric: str = "cosine",
        dim: int | None = None,
        dtype: torch.dtype | None = None,
        share: bool = False,
        num_threads: int | None = None,
    ) -> None:
        if metric not in METRICS:
            names = ", ".join(repr(m) for m in METRICS)
            raise ValueError(f"CosineIndex: expected metric to be one of {names}; got {metric!r}")
        if dtype is not None and dtype not in NAMES:
            raise TypeError(f"CosineIndex: expected dtype among {list(NAMES)}; got {dtype}")
        if dim is not None and (type(dim) is not int or dim < 1):
            raise ValueError(f"CosineIndex: expected dim to be an int >= 1; got {dim!r}")
        self.metric, self.num_threads = metric, num_threads
        self._dim, self._dtype = dim, dtype
        self._table: Tensor | None = None  # [capacity, D]
        self._removed: Tensor | None = None  # bool [capacity]; None: none is removed
        self._packed: ops.PackedRows | None = None  # of the first num_ids rows
        self._lock = threading.RLock()  # of what is packed
        self._count = self._removed_count = 0
        self._shared = share
        if share:
            self._keep(vectors)
        elif vectors is not None:
            self.add(vectors)

    def _keep(self, table: Any) -> None:
        if not isinstance(table, Tensor):
            raise TypeError(
                f"CosineIndex: expected a torch.Tensor to share; got {type(table).__name__}"
            )
        if self._dtype not in (None, table.dtype) or self._dim not in (None, table.shape[-1]):
            raise ValueError(
                f"CosineIndex: expected a shared table of {self._dtype or 'any dtype'}, "
                f"D={self._dim or 'any'}; got {list(table.shape)}, {table.dtype}"
            )
        table = table.detach()
        self._packed = self._pack_of(table)
        _refuse(table, self.metric, None, "CosineIndex")
        self._table, self._count = table, len(table)
        self._dim, self._dtype = table.shape[1], table.dtype

    def _pack_of(self, table: Tensor) -> ops.PackedRows:
        removed = None if self._removed is None else self._removed[: len(table)]
        return ops.PackedRows(
            table, metric=self.metric, banned=removed, num_threads=self.num_threads
        )

    # --- what is there ------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count - self._removed_count

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()

    @property
    def ntotal(self) -> int:
        """The number of vectors that can be found, ``len(index)``."""
        return len(self)

    @property
    def num_ids(self) -> int:
        """The number of ids ever given: they are 0 .. num_ids - 1."""
        return self._count

    @property
    def dim(self) -> int | None:
        """D; None before the first vectors, where it was not given."""
        return self._dim

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the vectors as they are kept."""
        return self._dtype

    @property
    def is_packed(self) -> bool:
        """Whether the next search need not pack."""
        return self._is_fresh() and len(self._packed.table) == self._count  # type: ignore[union-attr]

    def _is_fresh(self) -> bool:
        """Whether what is packed is right, as far as it goes."""
        return self._packed is not None and self._packed.is_packed

    @property
    def nbytes(self) -> int:
        """Of the vectors and the packed rows."""
        vectors = 0 if self._table is None else self._table.numel() * self._table.element_size()
        return vectors + (0 if self._packed is None else self._packed.nbytes)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}<{len(self)} vectors, dim={self._dim}, metric={self.metric!r}>"
        )

    # --- change -------------------------------------------------------------------------------

    def add(self, vectors: Vectors) -> Any:
        """Add vectors [n, D]; they are copied. Memory grows by half where it has to, so that many
        small additions copy each vector a few times only; packing waits for the next search.

        Returns:
            their ids, int64 [n].

        Raises:
            TypeError, ValueError: as the constructor; nothing is added then. Also for a table that
                is shared.
        """
        if self._shared:
            raise ValueError("CosineIndex.add: expected vectors of its own; the table is shared")
        given = self._taken(vectors, "add")
        _refuse(given, self.metric, None, "CosineIndex.add")
        first, count = self._count, self._count + len(given)
        if count >= 2**31:
            raise ValueError(f"CosineIndex.add: expected fewer than 2^31 vectors; got {count}")
        self._reserve(count, given)
        assert self._table is not None
        fresh = self._is_fresh()
        with torch.no_grad():
            self._table[first:count] = given
        if fresh:
            self._repack(torch.empty(0, dtype=torch.int64))  # not one of those that are packed
        self._count = count
        self._dim, self._dtype = given.shape[1], given.dtype
        ids = torch.arange(first, count)
        return ids.numpy() if isinstance(vectors, np.ndarray) else ids

    def _reserve(self, count: int, like: Tensor) -> None:
        """Room for so many rows."""
        room = 0 if self._table is None else len(self._table)
        if self._table is not None and count <= room:
            return
        # Inference tensors could not be changed later.
        with torch.no_grad(), torch.inference_mode(False):
            room = max(count, room + room // 2)
            table = like.new_empty(room, like.shape[1])
            if self._table is not None:
                table[: self._count] = self._table[: self._count]
            self._table = table
            if self._removed is not None:
                removed = torch.zeros(room, dtype=torch.bool, device=table.device)
                removed[: self._count] = self._removed[: self._count]
                self._removed = removed
        if self._packed is not None:
            self._extend(len(self._packed.table))

    def _extend(self, count: int) -> None:
        """The packed rows are of the first so many vectors of the table."""
        assert self._table is not None
        assert self._packed is not None
        removed = None if self._removed is None else self._removed[:count]
        self._packed.extend(self._table[:count], removed)

    def remove(self, ids: Ids) -> int:
        """Remove vectors: they are never found again. Their memory is not given back, and their ids
        are not given again.

        Args:
            ids: an id, or a sequence, array or tensor of them; removed ones count for nothing.

        Returns:
            how many were removed.

        Raises:
            IndexError: an id that was never given; nothing is removed then.
        """
        rows = self._rows_of(ids, "remove")
        if not len(rows):
            return 0
        assert self._table is not None
        if self._removed is None:
            self._removed = torch.zeros(
                len(self._table), dtype=torch.bool, device=self._table.device
            )
            if self._packed is not None:
                self._packed.banned = self._removed[: len(self._packed.table)]
        if not self._is_fresh():
            self._packed = None  # others may have changed rows that nobody told of
        before = self._removed_count
        rows = rows.to(self._removed.device)
        gone = rows.unique()
        gone = gone[~self._removed[gone]]
        self._removed[gone] = True
        self._removed_count += len(gone)
        self._repack(gone)
        return self._removed_count - before

    def update(self, ids: Ids, vectors: Vectors | None = None) -> None:
        """Put other vectors in the place of some. Only those rows are packed again.

        Args:
            ids: as in :meth:`remove`; with vectors each once.
            vectors: [n, D], one for each id (of one id: [D] will do). None: the rows of the shared
                table have been changed by its owner and are read again; ids may come twice.

        Raises:
            IndexError: an id that was never given. ValueError: a removed one, one that comes twice,
                a vector that is not finite. Nothing is changed then.
        """
        rows = self._rows_of(ids, "update")
        if self._removed is not None and len(rows):
            gone = rows[self._removed[rows.to(self._removed.device)].to(rows.device)]
            if len(gone):
                raise ValueError(f"CosineIndex.update: expected no removed id; got {int(gone[0])}")
        if vectors is None:
            if self._table is not None:
                for part in rows.split(max(1, _CHECKED // self._table.shape[1])):
                    read = self._table[part.to(self._table.device)]
                    _refuse(read, self.metric, part, "CosineIndex.update")
            self._repack(rows)
            return
        if np.ndim(ids) == 0 and isinstance(vectors, (Tensor, np.ndarray)):  # type: ignore[arg-type]
            vectors = vectors[None] if vectors.ndim == 1 else vectors
        given = self._taken(vectors, "update")
        if len(given) != len(rows):
            raise ValueError(
                f"CosineIndex.update: expected {len(rows)} vectors, one for each id; "
                f"got {len(given)}"
            )
        _refuse(given, self.metric, rows, "CosineIndex.update")
        ordered = rows.sort().values
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise ValueError(
                f"CosineIndex.update: expected each id once; got {int(twice[0])} twice"
            )
        if not len(rows):
            return
        assert self._table is not None
        if not self._is_fresh():
            self._packed = None  # others may have changed rows that nobody told of
        with torch.no_grad():
            self._table.index_copy_(0, rows.to(self._table.device), given)
        self._repack(rows)

    def _repack(self, rows: Tensor) -> None:
        """These rows of the table have changed."""
        if self._packed is not None:
            known = rows[rows < len(self._packed.table)].cpu()
            self._packed.repack(known.contiguous())

    # --- search -------------------------------------------------------------------------------

    def search(
        self,
        queries: Vectors,
        k: int = 1,
        *,
        banned: Vectors | None = None,
        exclude: Vectors | Sequence[Sequence[int]] | None = None,
    ) -> Any:
        """The k nearest vectors of each query, best first; of equal ones the lower id first.

        Args:
            queries: [..., D], of any of the dtypes.
            k: 1 .. len(index).
            banned: bool [num_ids], vectors that are left out of this search.
            exclude: ids that single queries may not have: int64 [..., E] with -1 for none, or a
                sequence of sequences of ids, one for each of the queries.

        Returns:
            (values, ids), each [..., k], by name too. Values are float32, or float64 where queries
            or vectors are. Where fewer than k vectors are left, the last ids are -1, with the value
            -inf (l2: inf).

        Raises:
            TypeError, ValueError: wrong types and shapes; k > len(index); a query that is not
                finite, by its row.
            IndexError: an excluded id out of -1 .. num_ids - 1.
        """
        if not isinstance(queries, (Tensor, np.ndarray)):
            raise TypeError(
                "CosineIndex.search: expected queries to be a torch.Tensor or an array; "
                f"got {type(queries).__name__}"
            )
        if isinstance(k, np.integer):
            k = int(k)
        if type(k) is not int:
            raise TypeError(f"CosineIndex.search: expected k to be an int; got {type(k).__name__}")
        if not 1 <= k <= len(self):
            raise ValueError(
                f"CosineIndex.search: expected k in 1..{len(self)}, the number of vectors; got {k}"
            )
        packed = self._packed_rows()
        asked = _tensor(queries, "queries", "search")
        if isinstance(queries, np.ndarray):
            asked = asked.to(packed.table.device)
        if isinstance(banned, np.ndarray):
            banned = torch.from_numpy(np.ascontiguousarray(banned)).to(asked.device)
        if isinstance(exclude, np.ndarray):
            exclude = torch.from_numpy(np.ascontiguousarray(exclude)).to(asked.device)
        values, ids = packed.search(asked, k, banned=banned, exclude=exclude)
        if isinstance(queries, np.ndarray):
            return ops.TopK(values.cpu().numpy(), ids.cpu().numpy())  # type: ignore[arg-type]
        return ops.TopK(values, ids)

    def _packed_rows(self) -> ops.PackedRows:
        """Of all vectors that are there now; what is missing is packed by the search."""
        assert self._table is not None
        with self._lock:
            if self._packed is None:
                self._packed = self._pack_of(self._table[: self._count])
            elif len(self._packed.table) < self._count:
                self._extend(self._count)
            return self._packed

    def reconstruct(self, id: int) -> Tensor:
        """A copy of the vector of an id, [D], as it is kept.

        Raises:
            IndexError: an id that was never given. ValueError: a removed one.
        """
        (row,) = self._rows_of(int(id), "reconstruct").tolist()
        if self._removed is not None and self._removed[row]:
            raise ValueError(f"CosineIndex.reconstruct: expected no removed id; got {row}")
        assert self._table is not None
        return self._table[row].clone()

    # --- arguments ----------------------------------------------------------------------------

    def _taken(self, vectors: Any, what: str) -> Tensor:
        """Vectors [n, D] as they will be kept."""
        given = _tensor(vectors, "vectors", what)
        if given.dim() != 2 or given.shape[1] < 1 or self._dim not in (None, given.shape[1]):
            raise ValueError(
                f"CosineIndex.{what}: expected vectors of shape [n, D={self._dim or '>= 1'}]; "
                f"got {list(given.shape)}"
            )
        if isinstance(vectors, Tensor) and self._table is not None:
            if given.device != self._table.device:
                raise ValueError(
                    f"CosineIndex.{what}: expected vectors on {self._table.device}; "
                    f"got them on {given.device}"
                )
        elif self._table is not None:
            given = given.to(self._table.device)
        return given if self._dtype is None else given.to(self._dtype)

    def _rows_of(self, ids: Any, what: str) -> Tensor:
        """Ids as int64 [n] on the CPU."""
        name = f"CosineIndex.{what}"
        if isinstance(ids, Tensor):
            rows = ids.detach().cpu()
        else:
            array = np.asarray(ids)
            if array.size == 0:
                array = array.astype(np.int64)
            if array.dtype.kind not in "iu":
                raise TypeError(f"{name}: expected ids to be integers; got {array.dtype}")
            rows = torch.from_numpy(array.astype(np.int64))
        if rows.dtype not in (torch.int64, torch.int32) or rows.dim() > 1:
            raise TypeError(
                f"{name}: expected ids to be int64 [n]; got {rows.dtype} {list(rows.shape)}"
            )
        rows = rows.reshape(-1).long()
        if len(rows) and (int(rows.min()) < 0 or int(rows.max()) >= self._count):
            wrong = rows[(rows < 0) | (rows >= self._count)]
            raise IndexError(
                f"{name}: expected ids in 0..{self._count - 1}; got {int(wrong[0])}"
                if self._count
                else f"{name}: expected no ids, there are no vectors; got {int(wrong[0])}"
            )
        return rows

    # --- files --------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save to a folder: config.json, vectors.safetensors, and packed.safetensors where there
        are packed rows. All files are replaced together or none; others are left alone.

        Raises:
            ValueError: an index that never had vectors.
            OSError: if the disk is full, or the folder cannot be written.
        """
        _index_files.save(self, folder)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        mmap: bool = True,
        num_threads: int | None = None,
    ) -> CosineIndex:
        """Load an index that :meth:`save` has written.

        Args:
            folder: the folder.
            mmap: map the files: a search reads what it needs, and processes share the memory. What
                is changed afterwards is copied, page by page; the files stay as they are. False
                reads them now.
            num_threads: as in the constructor.

        The packed rows are used where they were packed at the ISA level of this process, and else
        packed anew with the first search.

        Raises:
            FileNotFoundError: if the folder or one of its files is missing.
            ValueError: if a file is damaged or truncated, of another kind or a later version, or
                the files do not belong together.
        """
        return _index_files.load(cls, folder, mmap, num_threads)


def _tensor(vectors: Any, name: str, what: str) -> Tensor:
    """A tensor or array of floating point as a tensor without gradients."""
    if isinstance(vectors, np.ndarray):
        if vectors.dtype.kind != "f" or vectors.dtype.itemsize > 8:
            raise TypeError(
                f"CosineIndex.{what}: expected {name} of float16, float32 or float64; "
                f"got {vectors.dtype}"
            )
        array = np.ascontiguousarray(vectors, dtype=vectors.dtype.newbyteorder("="))
        return torch.from_numpy(array if array.flags.writeable else array.copy())
    if not isinstance(vectors, Tensor):
        raise TypeError(
            f"CosineIndex.{what}: expected {name} to be a torch.Tensor or an array; "
            f"got {type(vectors).__name__}"
        )
    if vectors.layout != torch.strided:
        raise TypeError(f"CosineIndex.{what}: expected {name} to be dense; got {vectors.layout}")
    if vectors.dtype not in NAMES:
        raise TypeError(
            f"CosineIndex.{what}: expected {name} of {', '.join(DTYPES)}; got {vectors.dtype}"
        )
    return vectors.detach()


def _refuse(vectors: Tensor, metric: str, ids: Tensor | None, what: str) -> None:
    """Raises ValueError for the first vector that no search could take, by its row, or its id."""
    if not vectors.numel():
        return
    first = 0
    for part in vectors.split(max(1, _CHECKED // vectors.shape[1])):
        squares = part.double().square().sum(1)
        bad = ~squares.isfinite() if metric == "cosine" else ~(squares <= _LONGEST**2)
        if bad.any():
            row = first + int(bad.nonzero()[0])
            name = f"row {row}" if ids is None else f"the one of id {int(ids[row])}"
            also = "" if metric == "cosine" else f" and of a length of at most {_LONGEST:g}"
            raise ValueError(f"{what}: expected vectors to be finite{also}; {name} is not")
        first += len(part)
