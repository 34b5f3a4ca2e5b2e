"""Products of the factors of observed cells, which losses are measured by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from vecsmith.models import _cell_scores
from vecsmith.ops._cells import cells_of


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 7, 1 << 20])
@pytest.mark.parametrize("f", [1, 5, 64])
def test_parts_are_all_cells_in_order(monkeypatch, mkl, dtype, at_once, f):
    monkeypatch.setattr(_cell_scores, "_CELLS", at_once)
    monkeypatch.setattr(_cell_scores, "_AT_ONCE", at_once * f)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    matrix = sparse.random(23, 17, 0.2, format="lil", random_state=0)
    matrix[[0, 5, 22]] = 0  # rows without cells, the first and the last among them
    cells = cells_of("", matrix.tocsr())
    generator = torch.Generator().manual_seed(f)
    # As in tables with a bias behind the factors: rows that do not lie side by side.
    x, y = (torch.randn(n, f + 1, generator=generator, dtype=dtype)[:, :f] for n in (23, 17))
    parts = list(_cell_scores.cell_scores(cells, x, y))
    assert [n for part, _, _ in parts for n in range(part.start, part.stop)] == list(
        range(len(cells))
    )
    rows = torch.cat([rows for _, rows, _ in parts])
    where = sparse.csr_matrix(
        (np.ones(len(cells)), cells.indices.numpy(), cells.indptr.numpy()), (23, 17)
    ).nonzero()
    assert rows.tolist() == where[0].tolist()
    wanted = (x.double() @ y.double().T)[rows, cells.indices.long()]
    found = torch.cat([found for _, _, found in parts])
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_no_cells():
    cells = cells_of("", sparse.csr_matrix((4, 3)))
    assert not list(_cell_scores.cell_scores(cells, torch.ones(4, 2), torch.ones(3, 2)))
