"""A few ratings in files, and what must come out of them."""

from __future__ import annotations

import numpy as np

# Keys beyond 2^31, neither in order; a rating of 0.
ROWS = [
    (7_000_000_000, 12, 5.0, 978300760),
    (3, 40, 3.5, 978302109),
    (7_000_000_000, 40, 0.0, 978301968),
    (25, 12, -1.0, 978300275),
]
DENSE = np.array([[0, 3.5], [-1, 0], [5, 0]], np.float32)


def write(folder, data, name="ratings.csv"):
    path = folder / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def joined(separator, rows=ROWS, columns=4):
    return "".join(separator.join(map(str, row[:columns])) + "\n" for row in rows)


def check(interactions, timestamps=True):
    assert interactions.users.tolist() == [3, 25, 7_000_000_000]
    assert interactions.items.tolist() == [12, 40]
    assert interactions.users.dtype == interactions.items.dtype == np.int64
    matrix = interactions.matrix
    assert matrix.nnz == len(interactions) == 4
    assert matrix.dtype == np.float32
    assert matrix.indices.dtype == np.int32
    np.testing.assert_array_equal(matrix.toarray(), DENSE)
    if timestamps:
        order = [978302109, 978300275, 978300760, 978301968]
        assert interactions.timestamps.tolist() == order
        assert interactions.timestamps.dtype == np.int64
    else:
        assert interactions.timestamps is None
