"""accelerate: the layers of an existing model become ours in place, and everything that held on to
them still does."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch

import vecsmith
from vecsmith import nn


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.Embedding(20, 8, padding_idx=0)
        self.bags = torch.nn.EmbeddingBag(30, 8, mode="sum")
        self.head = torch.nn.Linear(8, 20, bias=False)
        self.head.weight = self.words.weight  # tied
        self.deeper = torch.nn.Sequential(torch.nn.Embedding(5, 8), torch.nn.ReLU())

    def forward(self, words, bags):
        return self.head(self.words(words).mean(1) + self.bags(bags) + self.deeper(words[:, 0] % 5))


def losses(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    torch.manual_seed(7)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(torch.randint(20, (6, 4)), torch.randint(30, (6, 3)))
        loss = out.square().mean()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_model_trains_as_before():
    plain = Model()
    fast = copy.deepcopy(plain)
    layers, parameters = dict(fast.named_modules()), dict(fast.named_parameters())
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.1) for m in (plain, fast)]
    before = losses(plain, optimizers[0], 3), losses(fast, optimizers[1], 3)
    assert vecsmith.accelerate(fast) is fast
    assert type(fast.words) is type(fast.deeper[0]) is nn.Embedding
    assert type(fast.bags) is nn.EmbeddingBag
    assert type(fast.head) is torch.nn.Linear
    # The optimizer was made before, and holds the same parameters.
    after = losses(plain, optimizers[0], 5), losses(fast, optimizers[1], 5)
    assert before[0] == pytest.approx(before[1], rel=1e-5)
    assert after[0] == pytest.approx(after[1], rel=1e-4)
    assert all(layer is layers[name] for name, layer in fast.named_modules())
    assert all(param is parameters[name] for name, param in fast.named_parameters())
    assert fast.head.weight is fast.words.weight
    plain.load_state_dict(fast.state_dict())
    fast.load_state_dict(plain.state_dict())


def test_twice_is_once(capsys, caplog):
    model = Model()
    with caplog.at_level(logging.INFO, logger="vecsmith"):
        vecsmith.accelerate(model, verbose=True)
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "vecsmith.accelerate: words: Embedding(20, 8, padding_idx=0)",
        "vecsmith.accelerate: bags: EmbeddingBag(30, 8, mode='sum')",
        "vecsmith.accelerate: deeper.0: Embedding(5, 8)",
        "vecsmith.accelerate: 3 layers swapped",
    ]
    assert [record.getMessage() for record in caplog.records] == [
        line.replace("vecsmith.accelerate", "accelerate") for line in out[:-1]
    ]
    vecsmith.accelerate(model, verbose=True)
    assert capsys.readouterr().out == "vecsmith.accelerate: 0 layers swapped\n"
    vecsmith.accelerate(model)
    assert capsys.readouterr().out == ""


def test_a_layer_itself(capsys):
    layer = torch.nn.Embedding(4, 3)
    assert vecsmith.accelerate(layer, verbose=True) is layer
    assert type(layer) is nn.Embedding
    assert "the model itself: Embedding(4, 3)" in capsys.readouterr().out
    assert layer(torch.tensor([1])).shape == (1, 3)


def test_hooks_stay():
    layer = torch.nn.Embedding(4, 3)
    seen = []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    vecsmith.accelerate(layer)
    layer(torch.tensor([1]))
    assert seen == ["forward"]


class Mine(torch.nn.Embedding):
    def forward(self, input):
        return super().forward(input) * 2


def test_what_may_compute_something_else_is_left_alone():
    patched = torch.nn.Embedding(4, 3)
    patched.forward = lambda input: input.double()
    parametrized = torch.nn.Embedding(4, 3)
    torch.nn.utils.parametrizations.weight_norm(parametrized)
    left = [
        Mine(4, 3),
        patched,
        parametrized,
        torch.nn.Embedding(4, 3, max_norm=1.0),
        torch.nn.Embedding(4, 3, scale_grad_by_freq=True),
        torch.nn.EmbeddingBag(4, 3, max_norm=1.0),
    ]
    kinds = [type(layer) for layer in left]
    vecsmith.accelerate(torch.nn.ModuleList(left))
    assert [type(layer) for layer in left] == kinds


def test_a_layer_that_is_used_in_two_places():
    layer = torch.nn.Embedding(4, 3)
    model = torch.nn.ModuleDict({"a": layer, "b": layer})
    vecsmith.accelerate(model)
    assert model["a"] is model["b"]
    assert type(layer) is nn.Embedding


def test_an_accelerated_model_compiles():
    torch._dynamo.reset()
    model, words, bags = Model(), torch.randint(20, (6, 4)), torch.randint(30, (6, 3))
    expected = model(words, bags)
    compiled = torch.compile(vecsmith.accelerate(model), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(words, bags), expected)


def test_only_modules():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module; got list"):
        vecsmith.accelerate([torch.nn.Embedding(4, 3)])


# --- recurrent layers -----------------------------------------------------------------------------

KINDS = ["GRU", "RNN"]


def results(layer: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """What a recurrent layer says, and the gradients of its parameters."""
    tensors = layer(x)
    loss = sum(tensor.square().sum() for tensor in tensors)
    return [*tensors, *torch.autograd.grad(loss, layer.parameters())]


@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers(kind):
    theirs = getattr(torch.nn, kind)(4, 5)
    ours = copy.deepcopy(theirs)
    parameters = list(ours.parameters())
    assert vecsmith.accelerate(ours) is ours
    assert isinstance(ours, getattr(nn, kind))
    assert isinstance(ours, getattr(torch.nn, kind))  # which the model may ask
    assert type(ours).__name__ == kind
    assert repr(ours) == repr(theirs)
    assert all(a is b for a, b in zip(ours.parameters(), parameters, strict=True))
    x = torch.randn(6, 3, 4)
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        for mine, other in zip(results(twin, x), results(theirs, x), strict=True):
            torch.testing.assert_close(mine, other)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    torch.manual_seed(2)
    theirs.reset_parameters()
    torch.manual_seed(2)
    ours.reset_parameters()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    again = type(ours)(4, 5)
    assert list(again.state_dict()) == list(theirs.state_dict())


def test_an_accelerated_layer_takes_lengths():
    layer = vecsmith.accelerate(torch.nn.GRU(4, 5, 2, bidirectional=True))
    x = torch.randn(6, 2, 4)
    out, _ = layer(x, lengths=[3, 6])
    torch.testing.assert_close(out[:3, :1], layer(x[:3, :1])[0])


def test_recurrent_layers_that_would_not_gain_are_left_to_torch():
    layers = [torch.nn.GRU(4, 5).double(), torch.nn.RNN(4, 5).half()]
    layers += [torch.nn.GRU(4, 5, device="meta"), torch.nn.LSTM(4, 5), torch.nn.GRUCell(4, 5)]
    before = [type(layer) for layer in layers]
    vecsmith.accelerate(torch.nn.ModuleList(layers))
    assert [type(layer) for layer in layers] == before


@pytest.mark.parametrize("fast", [False, True])
def test_layers_in_bfloat16_gain_where_it_is_multiplied(monkeypatch, fast):
    monkeypatch.setattr("vecsmith.nn.accelerate.multiplies_bfloat16", lambda: fast)
    layer = torch.nn.GRU(4, 5).bfloat16()
    x = torch.randn(6, 3, 4).bfloat16()
    expected = layer(x)[0]
    assert isinstance(vecsmith.accelerate(layer), vecsmith.nn.GRU) is fast
    torch.testing.assert_close(layer(x)[0], expected, rtol=0.05, atol=0.05)


def test_an_accelerated_gru_and_the_compiler():
    """torch.compile refuses what is a torch.nn.GRU, as it did before, unless it is told."""
    torch._dynamo.reset()
    layer = vecsmith.accelerate(torch.nn.GRU(4, 5))
    x = torch.randn(6, 3, 4)
    expected = layer(x)[0]
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match="allow_rnn"):
        compiled(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x)[0], expected)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(compiled(x)[0], expected)
