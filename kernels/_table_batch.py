"""Many tables for one launch of the kernels of `embedding_bag`: their addresses and shapes, on the
device.

Feature f looks up rows of table features[f]. Its bags are f B .. f B + B - 1, and its columns of
the output [B, sum of the features' D] begin where those of the feature before it end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def unit(*dims: int) -> int:
    """The largest power of two, at most 16, that divides all of dims. A kernel that reads a
    dimension or an offset from memory multiplies it by a constant unit, and so knows how wide its
    loads may be."""
    size = 16
    while any(dim % size for dim in dims):
        size //= 2
    return size


class TableBatch:
    """The device arrays of several tables.

    tables: T contiguous tensors of one dtype on one device, [V_t, D_t] (float32, float16,
    bfloat16) or [V_t, D_t + 8] (uint8, row-wise quantized); features: the table of each feature,
    None for one feature a table; state: for each state tensor of an optimizer, its T tensors,
    float32 [V_t, D_t] or [V_t]. It holds addresses: make another when a tensor gets other storage.

    num_rows: the sum of the V_t; a row of any table has the number firsts[t] + r among them.

    Raises:
        ValueError: no tables, a feature without a table, tables that are not contiguous, or of
            several dtypes or devices.
    """

    def __init__(
        self,
        tables: Sequence[Tensor],
        features: Sequence[int] | None = None,
        state: Sequence[Sequence[Tensor]] = (),
    ) -> None:
        self.tables = tuple(tables)
        self.state = tuple(tuple(kind) for kind in state)
        self.features = tuple(range(len(self.tables)) if features is None else features)
        if not self.tables or not self.features:
            raise ValueError("expected at least one table and one feature; got none")
        kinds = {(table.dtype, table.device) for table in self.tables}
        if len(kinds) > 1:
            found = sorted(map(str, kinds))
            raise ValueError(f"expected tables of one dtype on one device; got {found}")
        if any(not 0 <= table < len(self.tables) for table in self.features):
            raise ValueError(
                f"expected features in [0, {len(self.tables)}); got {list(self.features)}"
            )
        every = [*self.tables, *(tensor for kind in self.state for tensor in kind)]
        if not all(tensor.is_contiguous() for tensor in every):
            raise ValueError("expected contiguous tables and states; got a strided one")
        self.dtype, self.device = self.tables[0].dtype, self.tables[0].device
        self.packed = self.dtype == torch.uint8
        dims = [table.shape[1] - 8 * self.packed for table in self.tables]
        self.unit = unit(*dims)
        self.widest = max(dims)
        self.width = sum(dims[table] for table in self.features)
        # Bytes that every address is a multiple of.
        aligned = all(tensor.data_ptr() % 16 == 0 for tensor in every)
        self.aligned = 16 if aligned else self.tables[0].element_size()
        self.state_aligned = 16 if aligned else 4

        firsts = [0]
        for table in self.tables:
            firsts.append(firsts[-1] + table.shape[0])
        self.num_rows = firsts.pop()
        columns = [0]
        for table in self.features:
            columns.append(columns[-1] + dims[table] // self.unit)
        columns.pop()
        pointers = [table.data_ptr() for table in self.tables]
        count, wide = len(self.tables), len(self.features)
        kinds_of_state = [[tensor.data_ptr() for tensor in kind] for kind in self.state]
        # One copy to the device for all of it.
        packed = torch.tensor(
            [
                *(pointers[table] for table in self.features),
                *(dims[table] // self.unit for table in self.features),
                *columns,
                *(firsts[table] for table in self.features),
                *pointers,
                *(dim // self.unit for dim in dims),
                *firsts,
                *(pointer for kind in kinds_of_state for pointer in kind),
            ],
            dtype=torch.int64,
        ).to(self.device)
        per_feature = packed[: 4 * wide].view(4, wide)
        per_table = packed[4 * wide :].view(-1, count)
        # Of each feature: address, D and first column in units, number of its first row.
        self.feature_pointers, self.feature_dims, self.columns, self.feature_firsts = per_feature
        # Of each table: address, D in units, number of its first row.
        self.pointers, self.dims, self.firsts = per_table[:3]
        self.state_pointers = tuple(per_table[3:])
