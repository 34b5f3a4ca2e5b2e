"""The losses of the sentence autoencoder: values by hand, gradients, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from vecsmith.models._sentence_losses import (
    consistency_loss,
    cross_entropy,
    distillation_loss,
    match_loss,
    teacher_vectors,
)


def normal(*shape: int, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


# --- the match loss ---------------------------------------------------------------------------


def test_the_match_loss_by_hand():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -1.0]])
    # Nearest by cosine, not by product or distance: 0 (right), 1 (wrong), 1 (wrong), 2 (right).
    outputs = torch.tensor([[9.0, 1.0], [0.1, 0.2], [0.0, 1.0], [-5.0, -4.0]])
    targets = torch.tensor([0, 0, 2, 2])
    wrong = [(0.1 - 1) ** 2 + 0.2**2, 1**2 + 2**2]
    expected = torch.tensor(sum(wrong) / 2)
    torch.testing.assert_close(match_loss(outputs, embeddings, targets), expected)
    mask = torch.tensor([True, True, False, True])
    torch.testing.assert_close(
        match_loss(outputs, embeddings, targets, mask), torch.tensor(wrong[0])
    )


def test_the_match_loss_leaves_what_is_right_alone():
    embeddings, targets = normal(7, 4), torch.tensor([[0, 3, 5], [6, 2, 2]])
    outputs = (3 * embeddings[targets]).clone()
    outputs[0, 1] = embeddings[4]
    outputs[1, 2] = embeddings[1]
    outputs.requires_grad_()
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    loss = match_loss(outputs, embeddings, targets, mask)
    loss.backward()
    expected = torch.zeros_like(outputs)
    expected[0, 1] = 2 * (embeddings[4] - embeddings[3])
    torch.testing.assert_close(outputs.grad, expected)


def test_the_match_loss_of_nothing_wrong_is_zero_with_a_gradient():
    embeddings = normal(5, 3)
    outputs = embeddings.clone().requires_grad_()
    for mask in (None, torch.zeros(5, dtype=torch.bool)):
        loss = match_loss(outputs, embeddings, torch.arange(5), mask)
        assert loss == 0
        (gradient,) = torch.autograd.grad(loss, outputs)
        assert not gradient.any()
    empty = match_loss(outputs[:0], embeddings, torch.zeros(0, dtype=torch.int64))
    assert empty == 0


def test_a_row_that_equals_the_targets_is_right():
    embeddings = normal(4, 3)
    embeddings[3] = embeddings[1]
    outputs = 2 * embeddings[1:2]
    for target in (1, 3):
        assert match_loss(outputs, embeddings, torch.tensor([target])) == 0
    wrong = match_loss(outputs, embeddings, torch.tensor([0]))
    torch.testing.assert_close(wrong, (outputs - embeddings[0]).square().sum())


def test_gradients_of_the_match_loss():
    outputs = normal(2, 3, 4).requires_grad_()
    embeddings = normal(6, 4, seed=1).requires_grad_()
    targets = torch.tensor([[0, 5, 3], [3, 3, 1]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert match_loss(outputs, embeddings, targets, mask) > 0
    assert torch.autograd.gradcheck(
        lambda y, e: match_loss(y, e, targets, mask), (outputs, embeddings)
    )


# --- cross-entropy ----------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    logits, targets = normal(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    shares = logits.exp() / logits.exp().sum(2, keepdim=True)
    expected = -(shares[0, 0, 0].log() + shares[0, 1, 4].log() + shares[1, 0, 1].log()) / 3
    torch.testing.assert_close(cross_entropy(logits, targets, mask), expected)
    whole = functional.cross_entropy(logits.view(6, 5), targets.view(6))
    torch.testing.assert_close(cross_entropy(logits, targets), whole)
    assert cross_entropy(logits, targets, torch.zeros_like(mask)) == 0


def test_gradients_of_cross_entropy():
    targets, mask = torch.tensor([[0, 4, 2]]), torch.tensor([[True, False, True]])
    logits = normal(1, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets, mask), (logits,))


# --- consistency ------------------------------------------------------------------------------


def encode(soft: torch.Tensor) -> torch.Tensor:
    """An order-dependent encoder: the cumulative sum, bent, at its last step."""
    return torch.tanh(soft.cumsum(1) * 0.5).sum(1)


def test_consistency_with_sure_logits_is_one_minus_the_cosine():
    embeddings, ids = normal(6, 4), torch.tensor([[1, 5, 0], [2, 2, 3]])
    logits = 1e4 * functional.one_hot(ids, 6).double()
    vectors = encode(embeddings[ids])
    generator = torch.Generator().manual_seed(0)
    same = consistency_loss(vectors, logits, embeddings, encode, generator=generator)
    torch.testing.assert_close(same, torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-12)
    other = normal(2, 4, seed=5)
    cosines = (vectors * other).sum(1) / (vectors.norm(dim=1) * other.norm(dim=1))
    found = consistency_loss(other, logits, embeddings, encode)
    torch.testing.assert_close(found, (1 - cosines).mean())


def test_soft_tokens_are_drawn_from_the_softmax():
    logits = torch.tensor([[[0.0, 1.0, 2.0]]], dtype=torch.float64).expand(1, 40_000, 3)
    drawn = []

    def keep(soft):
        drawn.append(soft)
        return soft.sum(1)

    eye, generator = torch.eye(3, dtype=torch.float64), torch.Generator().manual_seed(3)
    vectors = torch.ones(1, 3, dtype=torch.float64)
    consistency_loss(vectors, logits, eye, keep, 0.5, hard=True, generator=generator)
    single = drawn[0][0]
    torch.testing.assert_close(single.sum(1), torch.ones(40_000, dtype=torch.float64))
    assert set(single.unique().round(decimals=6).tolist()) == {0.0, 1.0}
    torch.testing.assert_close(single.mean(0), logits[0, 0].softmax(0), rtol=0, atol=0.01)
    # A low temperature makes them nearly single, a high one nearly even.
    for temperature, low, high in ((0.01, 0.98, 1.0), (100.0, 0.33, 0.36)):
        consistency_loss(vectors, logits, eye, keep, temperature, generator=generator)
        assert low < drawn[-1][0].amax(1).mean() <= high


@pytest.mark.parametrize("hard", [False, True])
def test_gradients_of_consistency(hard):
    vectors, logits = normal(2, 4).requires_grad_(), normal(2, 3, 5, seed=1).requires_grad_()
    embeddings = normal(5, 4, seed=2).requires_grad_()

    def loss(v, x, e, single=hard):
        generator = torch.Generator().manual_seed(1)
        return consistency_loss(v, x, e, encode, 0.7, hard=single, generator=generator)

    if not hard:
        assert torch.autograd.gradcheck(loss, (vectors, logits, embeddings))
        return
    # Straight-through: the gradient in the logits is not that of a constant.
    (gradient,) = torch.autograd.grad(loss(vectors, logits, embeddings), logits)
    assert gradient.abs().max() > 1e-4
    assert loss(vectors, logits, embeddings) != loss(vectors, logits, embeddings, False)


def test_consistency_falls_when_it_is_followed():
    embeddings, ids = normal(8, 6), torch.tensor([[1, 5, 0, 7], [2, 2, 3, 4]])
    vectors = encode(embeddings[ids])
    logits = torch.zeros(2, 4, 8, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(150):
        loss = consistency_loss(vectors, logits, embeddings, encode, 0.5, generator=generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-20:]) < 0.3 * sum(losses[:20])


# --- distillation -----------------------------------------------------------------------------


def test_distillation_by_hand_and_its_gradients():
    linear = torch.nn.Linear(4, 3).double()
    vectors, teachers = normal(5, 4).requires_grad_(), normal(5, 3, seed=1)
    mapped = vectors @ linear.weight.T + linear.bias
    cosines = (mapped * teachers).sum(1) / (mapped.norm(dim=1) * teachers.norm(dim=1))
    torch.testing.assert_close(distillation_loss(vectors, teachers, linear), (1 - cosines).mean())
    weight, bias = linear.weight.detach().requires_grad_(), linear.bias.detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v, w, b: distillation_loss(v, teachers, lambda x: x @ w.T + b),
        (vectors, weight, bias),
    )
    asked = teachers.clone().requires_grad_()
    distillation_loss(vectors, asked, linear).backward()
    assert asked.grad is None


@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_a_teacher_may_be_any_callable(kind):
    found = teacher_vectors(lambda texts: kind([[len(t), 1.0] for t in texts]), ["a", "bcd"])
    assert torch.equal(found, torch.tensor([[1.0, 1.0], [3.0, 1.0]]))


@pytest.mark.parametrize(
    ("teacher", "error", "said"),
    [
        (3, TypeError, "callable; got int"),
        (lambda texts: "text", TypeError, "a tensor or an array; got str"),
        (lambda texts: torch.zeros(3, 4), ValueError, r"\[2, D'\]; got \[3, 4\]"),
        (lambda texts: torch.zeros(2), ValueError, r"\[2, D'\]; got \[2\]"),
        (lambda texts: torch.tensor([[1.0], [math.nan]]), ValueError, "NaN or Inf in row 1"),
    ],
)
def test_a_teacher_says_what_it_should_give(teacher, error, said):
    with pytest.raises(error, match=said):
        teacher_vectors(teacher, ["a", "b"])


# --- bad input --------------------------------------------------------------------------------

Y, E, W = normal(2, 3, 4), normal(6, 4), torch.zeros(2, 3, dtype=torch.int64)
M = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: match_loss(None, E, W), TypeError, "outputs to be a floating-point tensor"),
        (lambda: match_loss(Y.long(), E, W), TypeError, "outputs to be a floating-point tensor"),
        (lambda: match_loss(Y, E.long(), W), TypeError, "embeddings to be a floating-point"),
        (lambda: match_loss(Y, E, W.double()), TypeError, "targets to be an int32 or int64"),
        (lambda: match_loss(Y, E, W[0]), ValueError, r"targets \[2, 3\]"),
        (lambda: match_loss(Y, E[:, :3], W), ValueError, r"embeddings \[V >= 1, 4\]"),
        (lambda: match_loss(Y, E[:0], W), ValueError, r"embeddings \[V >= 1, 4\]"),
        (lambda: match_loss(Y, E, W + 6), IndexError, "targets in 0..5; got 6"),
        (lambda: match_loss(Y, E, W - 1), IndexError, "targets in 0..5; got -1"),
        (lambda: match_loss(Y, E, W, M.long()), TypeError, "mask to be a bool tensor"),
        (lambda: match_loss(Y, E, W, M[0]), ValueError, r"mask \[2, 3\]"),
        (lambda: cross_entropy(Y, W + 4), IndexError, "targets in 0..3; got 4"),
        (lambda: cross_entropy(Y, W[:1]), ValueError, r"targets \[2, 3\]"),
        (lambda: consistency_loss(Y[:, 0], Y, E, encode), ValueError, r"embeddings \[4, E\]"),
        (lambda: consistency_loss(Y[:1, 0], Y, E[:4], encode), ValueError, r"vectors \[B, D\]"),
        (lambda: consistency_loss(Y[:, 0], Y, E[:4], encode, 0.0), ValueError, "temperature > 0"),
        (lambda: consistency_loss(Y[:, 0], Y, E[:4], encode, "1"), TypeError, "temperature"),
        (lambda: consistency_loss(Y[:, 0, :3], Y, E[:4], encode), ValueError, "expected encode"),
        (
            lambda: distillation_loss(E, normal(6, 2), torch.nn.Linear(4, 3).double()),
            ValueError,
            r"teachers \[6, 3\]",
        ),
        (lambda: distillation_loss(None, E, torch.nn.Identity()), TypeError, "vectors"),
    ],
)
def test_losses_say_what_they_expect(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_what_is_masked_may_be_anything():
    targets = torch.tensor([[0, -100], [99, 2]])
    mask = torch.tensor([[True, False], [False, True]])
    assert match_loss(normal(2, 2, 4), E, targets, mask).isfinite()
    assert cross_entropy(normal(2, 2, 4), targets, mask).isfinite()
