"""The losses of a sentence autoencoder, each a scalar that is differentiable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vecsmith.ops import match_mask


def match_loss(
    outputs: Tensor, embeddings: Tensor, targets: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The squared error of the outputs that are not yet nearest to their token.

    With n(y) = argmax_w cos(y, e_w), the nearest row of the vocabulary, and the tokens that count
    C = {i : mask_i and n(y_i) != w_i},

        L = (1 / |C|) sum_{i in C} |y_i - e(w_i)|^2,   and 0 where C is empty

    A token that is right has no gradient, so what is right is left alone. A row that equals the
    target's bit for bit is right as well; of others with equal cosines the lowest index is the
    nearest (:func:`vecsmith.ops.match_mask`). |y - e|^2 is the sum over the entries, and not their
    mean.

    Args:
        outputs: y [..., E].
        embeddings: e [V, E]. They have a gradient where they ask for one, which draws the rows of
            wrong tokens to the outputs.
        targets: w [...] int64, in 0..V-1.
        mask: [...] bool, the tokens that count (no padding); None: all.

    Returns: a scalar of outputs' dtype.

    Raises: TypeError, ValueError for kinds and shapes; IndexError for targets outside the
        vocabulary.
    """
    _check("match_loss", "outputs", outputs, targets, mask, embeddings)
    chosen = outputs[mask] if mask is not None else outputs.reshape(-1, outputs.shape[-1])
    right = targets[mask] if mask is not None else targets.reshape(-1)
    wrong = ~_matches(chosen, embeddings, right)
    errors = chosen[wrong] - embeddings[right[wrong]]
    return errors.square().sum() / max(1, errors.shape[0])


def cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """-mean_i log softmax(logits_i)[w_i] over the tokens that count; 0 where none does.

    Args:
        logits: [..., V], the outputs times the token embeddings.
        targets, mask: as :func:`match_loss`.

    Raises: as :func:`match_loss`.
    """
    _check("cross_entropy", "logits", logits, targets, mask, None)
    chosen = logits[mask] if mask is not None else logits.reshape(-1, logits.shape[-1])
    right = targets[mask] if mask is not None else targets.reshape(-1)
    total = functional.cross_entropy(chosen, right.long(), reduction="sum")
    return total / max(1, right.numel())


def consistency_loss(
    vectors: Tensor,
    logits: Tensor,
    embeddings: Tensor,
    encode: Callable[[Tensor], Tensor],
    temperature: float = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """How far the vector of the decoded sentence is from the vector it was decoded from.

    With a token drawn softly at every place (Jang et al. 2017, arXiv:1611.01144; Maddison et al.
    2017, arXiv:1611.00712),

        p = softmax((logits + g) / temperature), g = -log(-log u), u ~ U(0, 1),   e~ = p e
        L = mean_b (1 - cos(s_b, encode(e~)_b))

    Args:
        vectors: s [B, D]. They have a gradient, too; detach them to move the decoder alone.
        logits: [B, T, V].
        embeddings: e [V, E].
        encode: soft tokens [B, T, E] -> vectors [B, D].
        temperature: > 0; towards 0 the soft tokens become single ones and the gradients noisy.
        hard: single tokens in the forward pass, with the soft ones' gradient (straight-through).
        generator: of u, on logits' device; torch's own by default.

    Returns: a scalar in [0, 2]; a vector of zeros has cosine 0 with everything.

    Raises: TypeError, ValueError for kinds and shapes.
    """
    name = "consistency_loss"
    _floating(name, vectors=vectors, logits=logits, embeddings=embeddings)
    if vectors.dim() != 2 or logits.dim() != 3 or logits.shape[0] != vectors.shape[0]:
        raise ValueError(
            f"{name}: expected vectors [B, D] and logits [B, T, V]; "
            f"got {list(vectors.shape)} and {list(logits.shape)}"
        )
    if embeddings.dim() != 2 or embeddings.shape[0] != logits.shape[2]:
        raise ValueError(
            f"{name}: expected embeddings [{logits.shape[2]}, E]; got {list(embeddings.shape)}"
        )
    if isinstance(temperature, bool) or not isinstance(temperature, int | float):
        raise TypeError(f"{name}: expected temperature to be a number; got {temperature!r}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"{name}: expected temperature > 0 and finite; got {temperature}")
    uniform = torch.rand(
        logits.shape, generator=generator, dtype=logits.dtype, device=logits.device
    )
    tiny = torch.finfo(logits.dtype).tiny
    gumbel = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
    shares = ((logits + gumbel) / temperature).softmax(2)
    if hard:
        single = torch.zeros_like(shares).scatter_(2, shares.argmax(2, keepdim=True), 1.0)
        shares = single + shares - shares.detach()
    again = encode(shares @ embeddings)
    if list(again.shape) != list(vectors.shape):
        raise ValueError(
            f"{name}: expected encode to give vectors {list(vectors.shape)}; "
            f"got {list(again.shape)}"
        )
    return _apart(vectors, again)


def distillation_loss(vectors: Tensor, teachers: Tensor, linear: torch.nn.Module) -> Tensor:
    """mean_b (1 - cos(A s_b + a, t_b)): our vectors, through a linear map, against those of another
    sentence encoder, which stays as it is (Reimers & Gurevych 2020, arXiv:2004.09813, with the
    cosine in the place of the squared error).

    Args:
        vectors: s [B, D].
        teachers: t [B, D'], without gradient; see :func:`teacher_vectors`.
        linear: [B, D] -> [B, D'].

    Returns: a scalar in [0, 2].

    Raises: TypeError, ValueError for kinds and shapes.
    """
    name = "distillation_loss"
    _floating(name, vectors=vectors, teachers=teachers)
    mapped = linear(vectors)
    if mapped.shape != teachers.shape:
        raise ValueError(
            f"{name}: expected teachers {list(mapped.shape)}, as the linear map's; "
            f"got {list(teachers.shape)}"
        )
    return _apart(mapped, teachers.detach())


def teacher_vectors(teacher: Callable[[list[str]], Any], sentences: Sequence[str]) -> Tensor:
    """The vectors [B, D'] float32 on the CPU that a frozen sentence encoder gives.

    teacher: any callable list[str] -> tensor or array [B, D']: the ``encode`` of a
        sentence-transformers model, for one.

    Raises: TypeError if it is not callable or gives no numbers; ValueError for another shape, or
        for NaN or infinity, named by its row.
    """
    if not callable(teacher):
        raise TypeError(f"expected teacher to be callable; got {type(teacher).__name__}")
    with torch.no_grad():
        found = teacher(list(sentences))
        try:
            vectors = torch.as_tensor(found).detach().to("cpu", torch.float32)
        except (TypeError, ValueError, RuntimeError):
            got = type(found).__name__
            raise TypeError(f"expected teacher to give a tensor or an array; got {got}") from None
    if vectors.dim() != 2 or vectors.shape[0] != len(sentences) or not vectors.shape[1]:
        raise ValueError(
            f"expected teacher to give vectors [{len(sentences)}, D']; got {list(vectors.shape)}"
        )
    bad = ~vectors.isfinite().all(1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(f"expected teacher to give finite vectors; got NaN or Inf in row {row}")
    return vectors


def _matches(outputs: Tensor, embeddings: Tensor, targets: Tensor) -> Tensor:
    """Whether the nearest row of embeddings [V, E] by cosine to each of outputs [N, E] is its
    target: [N] bool."""
    # What is not finite matches nothing: the loss says so, and training that it has diverged.
    finite = outputs.detach().isfinite().all(1)
    matched = torch.zeros_like(finite)
    matched[finite] = match_mask(outputs.detach()[finite], embeddings.detach(), targets[finite])
    return matched


def _apart(a: Tensor, b: Tensor) -> Tensor:
    if not a.shape[0]:
        return (a * b).sum()
    return (1 - functional.cosine_similarity(a, b, dim=1)).mean()


def _floating(name: str, **tensors: Any) -> None:
    for what, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name}: expected {what} to be a floating-point tensor; got {got}")


def _check(
    name: str, what: str, rows: Any, targets: Any, mask: Any, embeddings: Tensor | None
) -> None:
    _floating(name, **{what: rows})
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int32, torch.int64):
        got = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"{name}: expected targets to be an int32 or int64 tensor; got {got}")
    if not rows.dim() or rows.shape[:-1] != targets.shape:
        raise ValueError(
            f"{name}: expected targets {list(rows.shape[:-1])}, one for each of {what}; "
            f"got {list(targets.shape)}"
        )
    count = rows.shape[-1]
    if embeddings is not None:
        _floating(name, embeddings=embeddings)
        if embeddings.dim() != 2 or embeddings.shape[1] != count or not embeddings.shape[0]:
            raise ValueError(
                f"{name}: expected embeddings [V >= 1, {count}]; got {list(embeddings.shape)}"
            )
        count = embeddings.shape[0]
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"{name}: expected mask to be a bool tensor; got {got}")
        if mask.shape != targets.shape:
            raise ValueError(f"{name}: expected mask {list(targets.shape)}; got {list(mask.shape)}")
        targets = targets[mask]
    if targets.numel():
        least, most = (int(n) for n in torch.aminmax(targets))
        if least < 0 or most >= count:
            raise IndexError(
                f"{name}: expected targets in 0..{count - 1}; got {least if least < 0 else most}"
            )
