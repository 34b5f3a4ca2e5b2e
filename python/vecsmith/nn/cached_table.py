"""A table whose rows are in memory or in a file, with the hot ones in a cache on the device."""

from __future__ import annotations

import concurrent.futures
import json
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith.io import RowFile
from vecsmith.nn._attached import Attached, Names, refuse_state, state_names
from vecsmith.nn._slots import PREFETCH, READ, UPDATE, Slots, Ticket
from vecsmith.nn.table import Table
from vecsmith.ops import _checks as check
from vecsmith.ops._pages import empty_pages
from vecsmith.optim import in_backward
from vecsmith.optim.sparse import RowOptimizer

_STORAGES = ("host", "mmap")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CACHE_ROWS = 1 << 18
_CHUNK_BYTES = 64 << 20
_FILE_MODES = ("r", "r+", "x", "a")


class _NoOptimizer(torch.autograd.Function):
    """The identity, whose backward pass says what is missing."""

    @staticmethod
    def forward(ctx, out, cache):
        return out.view_as(out)

    @staticmethod
    def backward(ctx, *grads):
        raise RuntimeError(
            "expected an optimizer in backward for a CachedTable, whose rows do not stay in their "
            "slots until a step(): vecsmith.optim.apply_optimizer_in_backward(SparseAdam, "
            "table.parameters(), {'lr': 1e-3}), or table.requires_grad_(False); got none"
        )


class CachedTable(Table):
    """A table [num_embeddings, embedding_dim] that need not fit on the device, or into memory.

    All rows are in ordinary memory (``storage="host"``) or in a memory-mapped file ("mmap"). Those
    that are used most are in a cache: the Parameter ``cache`` [cache_rows, embedding_dim] on
    ``device``, which may be a CPU, too. A forward pass finds the slots of its rows, loads what is
    missing, and runs :func:`vecsmith.ops.embedding_bag` on the cache; rows that leave are written
    back if they have changed. The results are those of a table that is in memory as a whole, to
    the bit.

    Rows leave by how often they were used of late: counts are halved every so many batches (of
    which the table sees to it that the rows at the edge of the cache are told apart), and rows that
    are new pass through a small part of the cache, where they do not push out others that are used
    more. This is the cache of HET (Miao et al. 2021: least frequently used, with counts that do not
    grow stale) with the admission of W-TinyLFU (Einziger, Friedman and Manes 2017). ``hit_rate``
    says how well it does, and :meth:`prefetch` loads the rows of the next batch meanwhile.

    Training takes an optimizer of :mod:`vecsmith.optim` in backward, whose state has a row for each
    row of the table and moves along with it:

        table = CachedTable(10**8, 64, storage="mmap", path="items.rows")
        apply_optimizer_in_backward(SparseAdam, table.parameters(), {"lr": 1e-3})
        layer = EmbeddingBag(10**8, 64, table=table, mode="sum")
        layer(indices, offsets).square().sum().backward()
        table.flush()

    **The file is the state.** It always is what the last :meth:`flush` (or :meth:`close`) left,
    whenever the process or the machine dies: embeddings, optimizer state and the optimizer's count
    of steps. The next ``CachedTable`` with this path goes on from there. See
    :class:`vecsmith.io.RowFile`: it takes twice the space of its rows, all of it when it is made,
    so that training never runs into a full disk. ``state_dict()`` holds no rows of it;
    ``load_state_dict`` takes a "weight" [num_embeddings, embedding_dim], and :meth:`export` gives
    one. With storage "host" ``state_dict()`` has the "weight", but no optimizer state. The
    optimizer's own ``state_dict()`` has its settings alone, and one with state is refused: what is
    in the slots now is of other rows than what was in them then.

    Rows that were never written are drawn when they are first read, from (``seed``, row, column):
    a table of any size is there at once, whatever the order of its use.

    Limits: eager execution (``torch.compile`` breaks its graph there, and refuses with
    ``fullgraph=True``); a batch may use at most ``cache_rows`` distinct rows, together with those
    of batches whose backward pass is still to come, and has one backward pass, with the optimizer
    and the state that it needed in the forward pass; no other dtype later; no copies and no
    pickling. Threads may share a table, processes may not: in a fork (a worker of a DataLoader, as
    a rule) every use raises RuntimeError, and closing it, or the end of the process, leaves the
    file alone.

    Args:
        num_embeddings: V, up to 2^31.
        embedding_dim: D.
        storage: "host" or "mmap".
        path: the file of "mmap": opened if it exists, else made.
        cache_rows: slots of the cache; min(V, 262144) if None. 8 bytes a row of the *table* are
            taken besides, to know where it is.
        device: where the cache is; the current default device if None.
        dtype: float32, float16 or bfloat16; optimizer state is float32.
        padding_idx: a row that is zero at first.
        init: of rows never written: ("normal", mean, deviation), ("uniform", low, high) or
            ("constant", value, 0).
        seed: of these rows; drawn from torch's generator if None.
        file_mode: "a" opens the file or makes it; "r+" opens it, "x" makes it; "r" opens it to read
            alone (many processes may at a time). ``init``, ``seed`` and ``padding_idx`` are the
            file's where it exists.

    Attributes:
        cache: the Parameter.
        path: of the file, or None.

    Raises:
        ValueError: for arguments out of range, and a file of another shape, dtype or version, or
            that is damaged.
        BlockingIOError: if another process has the file.
        OSError: if the disk is too full for the file, before anything is made.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        storage: str = "host",
        path: str | os.PathLike[str] | None = None,
        cache_rows: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
        init: tuple[str, float, float] = ("normal", 0.0, 1.0),
        seed: int | None = None,
        file_mode: str = "a",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check.integer(name, "num_embeddings", num_embeddings, low=1, high=2**31)
        check.integer(name, "embedding_dim", embedding_dim, low=1, high=2**24)
        if storage not in _STORAGES:
            raise ValueError(f"{name}: expected storage to be 'host' or 'mmap'; got {storage!r}")
        if (path is not None) != (storage == "mmap"):
            raise ValueError(
                f"{name}: expected a path with storage 'mmap' and none with 'host'; got {path!r}"
            )
        if file_mode not in _FILE_MODES:
            raise ValueError(f"{name}: expected file_mode of {_FILE_MODES}; got {file_mode!r}")
        if dtype not in _DTYPES:
            raise TypeError(f"{name}: expected dtype float32, float16 or bfloat16; got {dtype}")
        if cache_rows is None:
            cache_rows = min(num_embeddings, _CACHE_ROWS)
        check.integer(name, "cache_rows", cache_rows, low=1, high=2**31 - 1)
        cache_rows = min(cache_rows, num_embeddings)
        if padding_idx is not None:
            check.integer(
                name, "padding_idx", padding_idx, low=-num_embeddings, high=num_embeddings - 1
            )
            padding_idx %= num_embeddings
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.storage = storage
        self.dtype = dtype
        self.path = None if path is None else Path(path)
        self._init = init
        self._zero_row = padding_idx
        self._process = os.getpid()
        self._lock = threading.RLock()  # of which row is where
        self._stepping = threading.RLock()  # of rows in slots; the second of the two to be taken
        self._attached: Attached | None = None
        self._loader: concurrent.futures.ThreadPoolExecutor | None = None
        self._loading: concurrent.futures.Future[None] | None = None
        self._stream: Any = None  # the one it is loaded on
        self._known: tuple[Tensor, ...] = ()  # what _parts gave last
        self._file = self._open(seed, file_mode)
        self._closer = weakref.finalize(self, _give_up, self._file)
        self._steps: int = json.loads(self._file.metadata or b"{}").get("step", 0)
        where = None if device is None else torch.device(device)
        slots = empty_pages(cache_rows, embedding_dim, dtype=dtype, device=where)
        self.cache = nn.Parameter(slots.zero_(), requires_grad=not self._file.read_only)
        self._slots = Slots(num_embeddings, cache_rows, self._file)

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, *, freeze: bool = False, **arguments: Any
    ) -> CachedTable:
        """A table of given rows, flushed.

        Args:
            embeddings: [V, D]; its dtype is the table's.
            freeze: whether ``cache`` does not require a gradient.
            arguments: as the class takes them.

        Raises: as the class; FileExistsError if there is a file already.
        """
        if not isinstance(embeddings, Tensor) or embeddings.dim() != 2:
            raise ValueError(f"{cls.__name__}: expected embeddings of shape [V, D]")
        arguments = {"dtype": embeddings.dtype, "file_mode": "x", **arguments}
        table = cls(*embeddings.shape, init=("constant", 0.0, 0.0), seed=0, **arguments)
        table.load_rows(None, embeddings)
        table.flush()
        table.requires_grad_(not freeze)
        return table

    @classmethod
    def open(cls, path: str | os.PathLike[str], **arguments: Any) -> CachedTable:
        """The table in a file, whatever its shape. Raises: as the class; FileNotFoundError."""
        with RowFile.open(path, read_only=True) as file:
            rows, dim, dtype = file.rows, file.dim, file.dtype
        arguments = {"dtype": dtype, "file_mode": "r+", **arguments}
        return cls(rows, dim, storage="mmap", path=path, **arguments)

    # --- the file -----------------------------------------------------------------------------

    def _open(self, seed: int | None, mode: str) -> RowFile:
        if self.path is not None and (mode in ("r", "r+") or (mode == "a" and self.path.exists())):
            # To write it changes it: only when it is what is expected.
            with RowFile.open(self.path, read_only=True) as found:
                have = (found.rows, found.dim, found.dtype)
            want = (self.num_embeddings, self.embedding_dim, self.dtype)
            if want != have:
                raise ValueError(
                    f"{self.path}: expected a table [{want[0]}, {want[1]}] of {want[2]}; "
                    f"got [{have[0]}, {have[1]}] of {have[2]}"
                )
            return RowFile.open(self.path, read_only=mode == "r")
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        arguments = {
            "dtype": self.dtype,
            "init": self._init,
            "seed": seed,
            "zero_row": self._zero_row,
        }
        if self.path is None:
            return RowFile.in_memory(self.num_embeddings, self.embedding_dim, **arguments)
        return RowFile.create(self.path, self.num_embeddings, self.embedding_dim, **arguments)

    def _use(self, file: RowFile) -> None:
        """Takes another file in the place of the one there was, which is closed."""
        self._file.close()
        self._closer.detach()
        self._file = self._slots.file = file
        self._closer = weakref.finalize(self, _give_up, file)

    def _locked(self) -> threading.RLock:
        """The lock, where it is not the copy in a fork, which may never be free."""
        self._check_process()
        return self._lock

    def _check_process(self) -> None:
        if self._forked:
            raise RuntimeError(
                f"{type(self).__name__}: expected the process that made the table; got a fork of "
                "it (a fork may make or open a table of its own)"
            )

    @property
    def _forked(self) -> bool:
        return os.getpid() != self._process

    def _alive(self) -> None:
        if self._file.closed:
            raise ValueError(f"{type(self).__name__}: expected an open table, got a closed one")
        if self.cache.dtype != self.dtype:
            raise self._other_dtype(self.cache.dtype)

    def flush(self) -> None:
        """When it returns, all rows as they are now, their optimizer state and its count of steps
        are in the file, and stay there whatever happens. (Nothing to do for storage "host".)

        Other threads may train meanwhile: a row is in the file as it was between two steps.

        Raises:
            OSError: the system could not write.
            ValueError: the table is closed or read-only.
        """
        with self._locked():
            self._alive()
            if self._file.read_only:
                raise ValueError(f"{type(self).__name__}: expected a table open for writing")
            with self._stepping:
                self._slots.write_changed(self._parts())
                steps = self.steps
            self._file.flush(json.dumps({"step": steps}).encode())

    def close(self) -> None:
        """Flushes (unless read-only, or in a fork) and gives the file up; the table cannot be used
        any more. May be called twice. Raises: as :meth:`flush`; the file is given up then, too, as
        the last flush left it."""
        if self._forked:
            self._closer()
            return
        self._wait()
        with self._lock:
            if self._file.closed:
                return
            try:
                if not self._file.read_only:
                    self.flush()
            finally:
                self._give_up()

    def _give_up(self) -> None:
        if self._loader is not None:
            self._loader.shutdown()
        self._closer()

    def __enter__(self) -> CachedTable:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Closes the table. After an error nothing is flushed."""
        if kind is None or self._forked:
            self.close()
        else:
            self._wait()
            with self._lock:
                self._give_up()

    # --- the optimizer ------------------------------------------------------------------------

    def _parts(self) -> tuple[Tensor, ...]:
        """What is in the slots: rows, and the optimizer's state."""
        known, attached = self._known, self._attached
        # states() moves and makes what has to be; as a rule nothing has.
        here = bool(known) and known[0].data_ptr() == self.cache.data_ptr()
        if here and (attached is None or attached.holds(known[1:])):
            return known
        states = () if attached is None else attached.states()
        self._known = (self.cache.detach(), *states)
        return self._known

    def _attach(self) -> bool:
        """Makes room in the file for the state of the optimizer there is now. Returns whether a
        gradient would be applied."""
        if self._is_attached():
            return self._attached is not None
        name = type(self).__name__
        found = in_backward.optimizers_of(self.cache)
        if not found:
            self._empty()
            self._detach()
            return False
        optimizer = found[0]
        if not (len(found) == 1 and isinstance(optimizer, RowOptimizer)):
            raise TypeError(
                f"{name}: expected one optimizer of vecsmith.optim in backward; got "
                f"{', '.join(type(other).__name__ for other in found)}"
            )
        if self._file.read_only:
            raise ValueError(f"{name}: expected a table open for writing to train it")
        names = state_names(optimizer, self.cache)
        known = self._state_in_file()
        if names and known and names != known:
            raise ValueError(
                f"{name}: expected an optimizer with the state that the rows have, "
                f"{[key for key, _ in known]}; got {[key for key, _ in names]} of "
                f"{type(optimizer).__name__} (drop_optimizer_state() forgets it)"
            )
        if self._attached is None or self._attached.optimizer is not optimizer:
            refuse_state(optimizer.state.get(self.cache, {}))
        self._empty()
        if names and not known:
            value = optimizer._initial_value(optimizer._group_of(self.cache))
            states = [(1 if per_row else self.embedding_dim, value) for _, per_row in names]
            self._use(self._file.with_states(states, json.dumps({"states": names}).encode()))
        self._detach()
        self._attached = Attached(optimizer, self.cache, names, self._stepping)
        if names and self._steps:
            optimizer.state[self.cache]["step"] = optimizer._counter(self._steps)
        self._parts()
        return True

    def _is_attached(self) -> bool:
        """Whether the optimizer there is now, as it is now, is the one that is attached."""
        found, attached = in_backward.optimizers_of(self.cache), self._attached
        if attached is None:
            return not found
        return bool(found) and found[0] is attached.optimizer and attached.fits

    def _check_step(self) -> None:
        """Raises where the step of a batch would not be one of the state that its rows have."""
        if in_backward.optimizers_of(self.cache) and not self._is_attached():
            raise RuntimeError(
                f"{type(self).__name__}: expected the optimizer of a batch, and whether it has a "
                "momentum, to stay between its forward and backward pass; got another"
            )

    def _empty(self) -> None:
        """All rows go from their slots, for other state to come with them."""
        with self._stepping:
            self._slots.write_changed(self._parts())
            if not self._slots.native.clear():
                raise RuntimeError(
                    f"{type(self).__name__}: expected no batch between its forward and backward "
                    "pass where the optimizer, or the rows as a whole, change"
                )

    def _detach(self) -> None:
        if self._attached is not None:
            self._steps = self.steps
            self._attached.detach()
        self._attached, self._known = None, ()

    def _state_in_file(self) -> Names:
        """The state that the rows have in the file."""
        found = json.loads(self._file.label or b"{}").get("states", [])
        return tuple((key, per_row) for key, per_row in found)

    @property
    def steps(self) -> int:
        """How many steps the rows have been through, of an optimizer that counts them (all with
        state do): its own count, or, without an optimizer, that of the last there was."""
        steps = None if self._attached is None else self._attached.steps
        return self._steps if steps is None else steps

    def drop_optimizer_state(self) -> None:
        """Forgets the optimizer state that is kept with the rows, so that another kind of optimizer
        can train them. Take the old one away before (remove_optimizer_in_backward). The file is
        written anew, and flushed.

        Raises: RuntimeError where an optimizer is there; OSError if the disk is too full.
        """
        self._wait()
        with self._lock:
            self._alive()
            if self._file.read_only:
                raise ValueError(f"{type(self).__name__}: expected a table open for writing")
            if in_backward.optimizers_of(self.cache):
                raise RuntimeError(
                    f"{type(self).__name__}: expected no optimizer in backward; "
                    "remove_optimizer_in_backward(table.parameters()) takes it away"
                )
            self._empty()
            self._detach()
            self._use(self._file.with_states([]))
            self._file.flush()
            self._steps = 0

    # --- looking up ---------------------------------------------------------------------------

    def prefetch(self, indices: Tensor) -> None:
        """Loads the rows of a batch to come, in the background; returns at once.

        Call it after the forward pass of the batch before. The rows stay at least until the next
        forward pass. It is advice: indices out of range and rows that have no room are left to the
        forward pass that uses them.

        Args:
            indices: of any shape, int32 or int64.

        Raises: TypeError for indices of another kind; ValueError if the table is closed.
        """
        self._check_process()
        self._alive()
        self._refuse_capture()
        self._check_type(indices)
        ids = indices.detach().reshape(-1).clone()
        if self._loader is None:
            self._loader = concurrent.futures.ThreadPoolExecutor(1, "vecsmith-prefetch")
        stream = None  # the one that the steps are on
        if self.cache.device.type == "cuda":
            stream = torch.cuda.current_stream(self.cache.device)
        self._stream = stream
        self._loading = self._loader.submit(_prefetch, weakref.ref(self), ids, stream)

    def _wait(self) -> None:
        """Until what is loaded in the background is there. Not with the lock, which that takes."""
        self._check_process()  # there is no background in a fork
        loading, self._loading = self._loading, None
        if loading is None:
            return
        loading.result()
        if self._stream is not None:  # the rows are on their way there
            here = torch.cuda.current_stream(self.cache.device)
            if here != self._stream:
                here.wait_stream(self._stream)

    def _refuse_capture(self) -> None:
        check.refuse_capture(
            type(self).__name__, self.cache, "a table all of whose rows are on the device (those "
            "of this one come from the host)"
        )  # fmt: skip

    def embedding(
        self, indices: Tensor, *, padding_idx: int | None = None, sparse: bool = False
    ) -> Tensor:
        """The rows of ``indices``: [*] -> [*, D], as :func:`vecsmith.ops.embedding`. ``sparse`` has
        no meaning here.

        Raises:
            IndexError, TypeError: as ops.embedding.
            ValueError: more distinct rows than slots.
            RuntimeError: from backward(), where there is no optimizer in backward.
        """
        return self._look_up(
            indices,
            padding_idx,
            lambda slots, cache, padding: in_backward.embedding(
                slots, cache, padding_idx=padding, hooks=False
            ),
        )

    def embedding_bag(
        self,
        indices: Tensor,
        offsets: Tensor | None = None,
        *,
        mode: str = "mean",
        per_sample_weights: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        sparse: bool = False,
    ) -> Tensor:
        """The rows of every bag, pooled: [B, D], as :func:`vecsmith.ops.embedding_bag`. ``sparse``
        has no meaning here.

        Raises: as :meth:`embedding` and ops.embedding_bag.
        """
        self._check(indices)
        if isinstance(offsets, Tensor):
            if offsets.dtype != indices.dtype:
                raise TypeError(
                    f"{type(self).__name__}: expected offsets to be {indices.dtype} as the "
                    f"indices; got {offsets.dtype}"
                )
            offsets = offsets.clamp(-1, 2**31 - 1).int()
        return self._look_up(
            indices,
            padding_idx,
            lambda slots, cache, padding: in_backward.embedding_bag(
                slots,
                cache,
                offsets,
                mode=mode,
                per_sample_weights=per_sample_weights,
                include_last_offset=include_last_offset,
                padding_idx=padding,
                hooks=False,
            ),
        )

    def _check(self, indices: Tensor) -> None:
        name = type(self).__name__
        if torch.compiler.is_compiling():
            torch._dynamo.graph_break(
                msg=f"expected eager execution of a {name}, whose rows come and go: compile the "
                "rest of the model"
            )
        self._check_type(indices)
        if indices.numel() >= 2**31:
            raise ValueError(f"{name}: expected fewer than 2^31 indices; got {indices.numel()}")

    def _check_type(self, indices: Any) -> None:
        name = type(self).__name__
        if not isinstance(indices, Tensor):
            raise TypeError(
                f"{name}: expected indices to be a torch.Tensor; got {type(indices).__name__}"
            )
        if indices.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name}: expected indices of int32 or int64; got {indices.dtype}")

    def _look_up(self, indices: Tensor, padding_idx: int | None, look_up: Any) -> Tensor:
        name = type(self).__name__
        self._check(indices)
        self._refuse_capture()
        if padding_idx is not None:
            rows = self.num_embeddings
            check.integer(name, "padding_idx", padding_idx, low=-rows, high=rows - 1)
            padding_idx %= rows
        self._wait()
        with self._lock:
            self._alive()
            fused = self._attach()
            training = self.cache.requires_grad and torch.is_grad_enabled()
            update = training and fused
            slots, ticket = self._batch(indices, UPDATE if update else READ)
            padding = None
            if padding_idx is not None:
                found = int(self._slots.find(np.array([padding_idx]))[0])
                padding = found if found >= 0 else None
        try:
            out = look_up(slots, self.cache if update else self.cache.detach(), padding)
        except BaseException:
            ticket.discard()
            raise
        if not update:
            ticket.release()
            return _NoOptimizer.apply(out, self.cache) if training else out
        node = out.grad_fn
        while node is not None and type(node).__name__ != "_LookupBackward":
            node = node.next_functions[0][0]
        assert node is not None
        table: weakref.ref[CachedTable] = weakref.ref(self)
        node.register_hook(lambda *_: _after_backward(table, ticket))
        return out

    def _batch(self, indices: Tensor, use: int) -> tuple[Tensor, Ticket]:
        try:
            return self._slots.look_up(indices, use, self._parts())
        except (IndexError, ValueError) as error:
            raise type(error)(f"{type(self).__name__}: {error}") from None

    # --- rows from outside --------------------------------------------------------------------

    def rows(self, indices: Tensor) -> Tensor:
        """A copy of rows, [*] -> [*, D], on the device of ``indices``. The cache stays as it is.

        Raises: IndexError, TypeError as :meth:`embedding`.
        """
        return self._read(indices, 1)[0]

    def optimizer_state(self, indices: Tensor) -> dict[str, Tensor]:
        """A copy of the optimizer's state of rows, under its names: [*, D], or [*] where there is
        one number for a row. Empty where there is none. Raises: as :meth:`rows`."""
        with self._locked():
            self._alive()
            names = self._state_in_file()
            tensors = self._read(indices, 1 + len(names))[1:]
        shape = indices.shape
        return {
            key: tensor.reshape(shape) if per_row else tensor
            for (key, per_row), tensor in zip(names, tensors, strict=True)
        }

    def _read(self, indices: Tensor, count: int) -> list[Tensor]:
        self._check_type(indices)
        ids = indices.detach().reshape(-1).cpu().numpy().astype(np.int64)
        with self._locked(), self._stepping:
            self._alive()
            slots = self._slots.find(ids)
            out = self._file.read(ids, count)
            here = np.flatnonzero(slots >= 0)
            if len(here):
                parts = self._slots.gather(self._parts()[:count], slots[here])
                for whole, part in zip(out, parts, strict=False):
                    whole[torch.from_numpy(here)] = part.view(len(here), -1)
        return [
            tensor.reshape(*indices.shape, tensor.shape[1]).to(indices.device) for tensor in out
        ]

    def load_rows(self, indices: Tensor | None, values: Tensor) -> None:
        """Sets rows; their optimizer state stays. It counts for the file from the next flush on.

        Args:
            indices: [N], distinct, int32 or int64; None: all rows, in order.
            values: [N, D] of the table's dtype.

        Raises:
            IndexError: an index that is no row. Nothing is changed then, nor with these:
            ValueError: another shape, indices that come twice, a table that is closed or read-only.
            TypeError: another dtype.
        """
        name = type(self).__name__
        if indices is not None:
            self._check_type(indices)
            if indices.dim() != 1:
                raise ValueError(
                    f"{name}: expected indices of shape [N]; got {list(indices.shape)}"
                )
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{name}: expected values to be a torch.Tensor; got {type(values).__name__}"
            )
        count = self.num_embeddings if indices is None else indices.numel()
        shape = (count, self.embedding_dim)
        if tuple(values.shape) != shape:
            raise ValueError(
                f"{name}: expected values of shape {list(shape)}; got {list(values.shape)}"
            )
        if values.dtype != self.dtype:
            raise TypeError(f"{name}: expected values of {self.dtype}; got {values.dtype}")
        self._wait()
        with self._lock, self._stepping, torch.no_grad():
            self._alive()
            if self._file.read_only:
                raise ValueError(f"{name}: expected a table open for writing")
            if indices is not None and indices.unique().numel() != count:
                raise ValueError(f"{name}: expected distinct indices")
            ids = np.arange(count) if indices is None else indices.cpu().numpy()
            ids = ids.astype(np.int64)
            self._slots.find(ids)  # raises where they are out of range
            step = self._chunk()
            for start in range(0, count, step):
                end = min(start + step, count)
                part = values[start:end].detach().contiguous()
                self._file.write(ids[start:end], [part.cpu()])
                self._slots.set_rows(ids[start:end], self.cache, part)

    def _chunk(self) -> int:
        return max(1, _CHUNK_BYTES // (4 * self.embedding_dim))

    def export(self) -> Tensor:
        """All rows: a new tensor [V, D] on the CPU. (A table that does not fit into memory is read
        in pieces by :meth:`rows`.)"""
        out = torch.empty(self.num_embeddings, self.embedding_dim, dtype=self.dtype)
        step = self._chunk()
        for start in range(0, len(out), step):
            end = min(start + step, len(out))
            out[start:end] = self.rows(torch.arange(start, end))
        return out

    def reset_parameters(self) -> None:
        """New random rows from ``init``, without optimizer state, for storage "host".

        Raises: NotImplementedError for a file: make a new one.
        """
        if self.storage != "host":
            raise NotImplementedError(
                f"{type(self).__name__}: expected storage 'host' to draw rows anew; "
                f"got the file {self.path}: make a new one"
            )
        self._wait()
        with self._lock:
            self._alive()
            self._empty()
            self._use(self._open(None, "a"))
            attached = self._attached
            self._detach()
            if attached is not None:
                attached.optimizer.state.pop(self.cache, None)
            self._steps = 0

    def _apply(self, fn: Any, recurse: bool = True) -> CachedTable:
        """Moves the cache. Raises: TypeError where it would be of another dtype than the rows."""
        self._wait()
        with self._lock, self._stepping:
            with torch.no_grad():
                dtype = fn(self.cache.detach()[:0]).dtype
            if dtype != self.dtype:
                raise self._other_dtype(dtype)
            return super()._apply(fn, recurse)

    def _other_dtype(self, dtype: torch.dtype) -> TypeError:
        return TypeError(
            f"{type(self).__name__}: expected the cache to stay {self.dtype}; got {dtype} (choose "
            "the dtype when the table is made)"
        )

    # --- state_dict ---------------------------------------------------------------------------

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self.storage == "host":
            destination[prefix + "weight"] = self.export()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        key = prefix + "weight"
        if strict:
            for other in state_dict:
                if other.startswith(prefix) and other != key:
                    unexpected_keys.append(other)
        if key not in state_dict:
            if self.storage == "host":
                missing_keys.append(key)
            return
        try:
            self.load_rows(None, state_dict[key].to(self.dtype))
        except (ValueError, TypeError) as error:
            error_msgs.append(str(error))

    def __deepcopy__(self, memo: dict[int, Any]) -> CachedTable:
        raise TypeError(f"{type(self).__name__}: expected no copy: its rows are kept in one place")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"{type(self).__name__}: expected no pickling: the file is the state (flush(), and "
            "open it again), or export() the rows"
        )

    # --- how well it does ---------------------------------------------------------------------

    @property
    def hit_rate(self) -> float:
        """The share of indices whose rows were in the cache when a forward pass asked for them,
        since the table was made or :meth:`reset_statistics`; nan before the first."""
        self._check_process()
        found = self._slots.native.statistics()
        return found["hits"] / found["lookups"] if found["lookups"] else float("nan")

    def statistics(self) -> dict[str, float]:
        """Since the table was made, or since :meth:`reset_statistics`: "batches", "lookups" and
        "hits" (indices), "loads", "evictions", "write_backs" and "prefetched" (rows), "hit_rate";
        and "slots_used" now."""
        self._check_process()
        found: dict[str, float] = dict(self._slots.native.statistics())
        return {**found, "hit_rate": self.hit_rate, "slots_used": self._slots.native.used}

    def reset_statistics(self) -> None:
        """Counts from zero again."""
        self._check_process()
        self._slots.native.reset_statistics()

    def extra_repr(self) -> str:
        """Shape, storage and slots."""
        where = "" if self.path is None else f", path={str(self.path)!r}"
        return (
            f"{super().extra_repr()}, storage={self.storage!r}{where}, "
            f"cache_rows={self._slots.native.slots}"
        )


def _give_up(file: RowFile) -> None:
    file.close()


def _after_backward(reference: weakref.ref[CachedTable], ticket: Ticket) -> None:
    """In a backward pass, when it has been through the look-up of a batch."""
    if ticket.released:  # the rows are changed at the end of the pass: not by this one
        raise RuntimeError(
            "expected one backward pass for a batch of a CachedTable: after it the rows may leave "
            "their slots; got another (retain_graph=True)"
        )
    table = reference()
    if table is not None:
        table._check_step()
    # Callbacks run in the order in which they come; this one comes after the look-up's own.
    torch.autograd.Variable._execution_engine.queue_callback(ticket.release)


def _prefetch(reference: weakref.ref[CachedTable], ids: Tensor, stream: Any) -> None:
    table = reference()
    if table is None or table._file.closed:
        return
    with table._lock, torch.cuda.stream(stream):
        try:
            # Released by the next forward pass, not with this object.
            _, ticket = table._batch(ids, PREFETCH)
        except (IndexError, ValueError):
            return
        ticket.keep()
