"""``cosine_topk`` on a GPU: the Triton kernels for the operator that
:mod:`vecsmith.ops._cosine_topk` registers. The arguments have been checked by
:mod:`vecsmith.ops.cosine_topk`. Importing this does not import Triton."""

from __future__ import annotations

import torch
from torch import Tensor


def search(
    queries: Tensor,
    vocabulary: Tensor,
    metric: str,
    banned: Tensor | None,
    exclude_offsets: Tensor | None,
    excluded: Tensor | None,
    values: Tensor,
    indices: Tensor,
) -> None:
    """As :func:`vecsmith.reference.cosine_topk.cosine_topk`, on a GPU or, in Triton's interpreter,
    on the CPU; writes values [Q, k] (float32 or float64) and int64 indices [Q, k]. queries and
    vocabulary have unit stride along D."""
    from vecsmith.kernels import cosine_topk as kernels

    with torch.autocast(queries.device.type, enabled=False):
        kernels.cosine_topk(
            kernels.Problem(
                *(queries, vocabulary, metric, banned),
                *(exclude_offsets, excluded, values, indices),
            )
        )
