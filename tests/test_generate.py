"""generate: tokens drawn one after the other, from the distribution that is asked for."""

from __future__ import annotations

import math

import pytest
import torch

from vecsmith import nn

VOCABULARY = 6


def fixed(logits):
    """A model that says the same in every step; its state counts the steps."""
    row = torch.tensor(logits)

    def step(tokens, state):
        assert tokens.dtype == torch.int64
        return row.expand(tokens.shape[0], -1), state + 1

    return step


def successor(tokens, state):
    """A model that counts upwards."""
    assert tokens.dim() == 1
    logits = torch.full((tokens.shape[0], VOCABULARY), -5.0)
    logits.scatter_(1, ((tokens + 1) % VOCABULARY)[:, None], 5.0)
    return logits, [*state, tokens.clone()]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.rnn = nn.LSTM(8, 16, 2)
        self.head = torch.nn.Linear(16, VOCABULARY)

    def forward(self, tokens, state):
        out, state = self.rnn(self.embedding(tokens)[None], state)
        return self.head(out[0]), state


def test_greedy():
    tokens, seen = nn.generate(successor, [], torch.tensor([0, 3]), 4, temperature=0)
    assert tokens.tolist() == [[1, 2, 3, 4], [4, 5, 0, 1]]
    assert tokens.dtype == torch.int64
    assert tokens.is_contiguous()
    assert [t.tolist() for t in seen] == [[0, 3], [1, 4], [2, 5], [3, 0]]


def test_a_beginning_is_read_first():
    start = torch.tensor([[0, 3], [2, 1]], dtype=torch.int32)
    tokens, seen = nn.generate(successor, [], start, 2, temperature=0)
    assert tokens.tolist() == [[4, 5], [2, 3]]
    assert [t.tolist() for t in seen] == [[0, 2], [3, 1], [4, 2]]


def test_the_end():
    """Rows end one by one; what follows is eos, and the result ends with the longest."""
    start = torch.tensor([0, 3, 4])
    tokens, _ = nn.generate(successor, [], start, 40, temperature=0, eos=5)
    assert tokens.tolist() == [[1, 2, 3, 4, 5], [4, 5, 5, 5, 5], [5, 5, 5, 5, 5]]
    tokens, seen = nn.generate(successor, [], start, 3, temperature=0, eos=5)
    assert tokens.tolist() == [[1, 2, 3], [4, 5, 5], [5, 5, 5]]
    assert len(seen) == 3


def test_the_loop_stops_when_all_have_ended():
    _, count = nn.generate(fixed([0.0, 9.0]), 0, torch.tensor([0, 0]), 1000, temperature=0, eos=1)
    assert count == 16


def shares(logits, **how) -> torch.Tensor:
    start = torch.zeros(20_000, dtype=torch.int64)
    tokens, _ = nn.generate(fixed(logits), 0, start, 1, **how)
    return torch.bincount(tokens[:, 0], minlength=len(logits)) / len(start)


LOGITS = [0.0, 2.0, 1.0, 1.5, -math.inf]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_temperature(temperature):
    expected = (torch.tensor(LOGITS) / temperature).softmax(0)
    torch.testing.assert_close(
        shares(LOGITS, temperature=temperature), expected, rtol=0, atol=0.015
    )


@pytest.mark.parametrize(
    ("how", "left"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 100}, [0, 1, 2, 3]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 0.4}, [1]),  # shares .46 .28 .17 .06 -> 1 3 2 0
        ({"top_p": 0.5}, [1, 3]),
        ({"top_p": 0.8}, [1, 2, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        # .51 .31 .19 of what top_k leaves
        ({"top_k": 3, "top_p": 0.6}, [1, 3]),
        ({"top_k": 3, "top_p": 0.9}, [1, 2, 3]),
        # .70 .26 .10 of a lower temperature
        ({"top_p": 0.6, "temperature": 0.5}, [1]),
    ],
    ids=str,
)
def test_top_k_and_top_p(how, left):
    expected = torch.zeros(5)
    expected[left] = (torch.tensor(LOGITS)[left] / how.get("temperature", 1.0)).softmax(0)
    torch.testing.assert_close(shares(LOGITS, **how), expected, rtol=0, atol=0.015)


def test_rows_are_drawn_by_themselves():
    start = torch.zeros(64, dtype=torch.int64)
    tokens, _ = nn.generate(fixed([0.0] * VOCABULARY), 0, start, 8)
    assert len({tuple(row) for row in tokens.tolist()}) == 64


def test_a_generator():
    start = torch.zeros(4, dtype=torch.int64)

    def draw(seed):
        how = {"generator": torch.Generator().manual_seed(seed), "top_p": 0.9}
        return nn.generate(fixed([0.0] * VOCABULARY), 0, start, 20, **how)[0]

    before = torch.get_rng_state()
    one = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draw(1), one)
    assert not torch.equal(draw(2), one)


@pytest.mark.parametrize("temperature", [1e-40, 1e-6, 1e30])
def test_extreme_temperatures(temperature):
    tokens, _ = nn.generate(
        fixed([1e30, 3e30, 0.0]), 0, torch.zeros(3, dtype=torch.int64), 5, temperature=temperature
    )
    assert temperature > 1 or (tokens == 1).all()


def test_a_language_model():
    model = Model().eval()
    start = torch.tensor([0, 1, 2])
    tokens, state = nn.generate(model, None, start, 7, temperature=0)
    assert not state[0].requires_grad
    assert torch.is_grad_enabled()
    # The same by hand, without a state: the whole beginning is read again for each token.
    with torch.no_grad():
        for b, first in enumerate(start.tolist()):
            known = [first]
            for _ in range(7):
                logits, _ = model.rnn(model.embedding(torch.tensor(known)))
                known.append(int(model.head(logits[-1]).argmax()))
            assert tokens[b].tolist() == known[1:]
    # In two pieces: the state goes on where it was.
    first, state = nn.generate(model, None, start, 3, temperature=0)
    rest, _ = nn.generate(model, state, first[:, -1], 4, temperature=0)
    assert torch.equal(torch.cat([first, rest], 1), tokens)


def test_half_precision_logits():
    expected = torch.tensor(LOGITS).softmax(0)

    def step(tokens, state):
        return torch.tensor(LOGITS, dtype=torch.bfloat16).expand(len(tokens), -1), state

    tokens, _ = nn.generate(step, None, torch.zeros(20_000, dtype=torch.int64), 1)
    found = torch.bincount(tokens[:, 0], minlength=5) / 20_000
    torch.testing.assert_close(found, expected, rtol=0, atol=0.015)


@pytest.mark.parametrize("eos", [None, 1])
def test_nothing(eos):
    empty = torch.zeros(0, dtype=torch.int64)
    assert nn.generate(fixed([0.0, 1.0]), 0, empty, 5, eos=eos, top_k=1)[0].shape[0] == 0
    tokens, count = nn.generate(fixed([0.0, 1.0]), 0, torch.tensor([0, 1]), 0, eos=eos)
    assert tokens.shape == (2, 0)
    assert count == 0


def test_nan_is_said():
    with pytest.raises(RuntimeError, match="nan"):
        nn.generate(fixed([0.0, math.nan]), 0, torch.tensor([0]), 3)


START = torch.tensor([0])
BAD = [
    ({"start": [0]}, TypeError, r"start to be a torch\.Tensor; got list"),
    ({"start": torch.tensor([0.0])}, TypeError, r"start to be int32 or int64; got torch\.float32"),
    ({"start": torch.tensor(0)}, ValueError, r"start of shape \[B\] or \[B, S >= 1\]; got \[\]"),
    ({"start": torch.zeros(2, 0, dtype=torch.int64)}, ValueError, r"got \[2, 0\]"),
    ({"max_length": -1}, ValueError, "max_length in 0"),
    ({"max_length": 1.5}, TypeError, "max_length to be an int; got float"),
    ({"temperature": -1.0}, ValueError, "temperature to be finite and >= 0; got -1.0"),
    ({"temperature": math.nan}, ValueError, "temperature to be finite"),
    ({"temperature": None}, TypeError, "temperature to be a float"),
    ({"top_k": 0}, ValueError, "top_k in 1"),
    ({"top_k": 1.0}, TypeError, "top_k to be an int"),
    ({"top_p": 0.0}, ValueError, r"top_p in \(0, 1\]; got 0.0"),
    ({"top_p": 1.1}, ValueError, r"top_p in \(0, 1\]; got 1.1"),
    ({"top_p": "all"}, TypeError, "top_p to be a float"),
    ({"eos": -1}, ValueError, "eos in 0"),
    ({"step": lambda tokens, state: (torch.zeros(3), state)}, ValueError, r"\[1, V\]; got \[3\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[str(n) for n in range(len(BAD))])
def test_bad_arguments_are_refused(change, error, message):
    arguments = {"step": fixed([0.0, 1.0]), "state": 0, "start": START, "max_length": 3, **change}
    with pytest.raises(error, match=f"^generate: expected .*{message}"):
        nn.generate(**arguments)
