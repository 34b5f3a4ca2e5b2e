"""Recurrent sentence encoders and decoders: what they compute, how they begin, how they train."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from vecsmith.models import _sentence_training as training
from vecsmith.models._checkpoint import CheckpointError, TrainingInterrupted
from vecsmith.models._sentence_training import SentenceCheckpoint, Training, train
from vecsmith.nn._rotation_start import Start, orthogonal, set_linear, usual_decay
from vecsmith.nn.recurrent import GRU, LSTM, RNN, ResidualRNN
from vecsmith.nn.sentence_decoders import RecurrentDecoder
from vecsmith.nn.sentence_encoders import CELLS, RecurrentEncoder

TOKENS, EOS, PAD = 60, 1, 0


def table(tokens: int = TOKENS, size: int = 48, seed: int = 0) -> torch.nn.Embedding:
    generator = torch.Generator().manual_seed(seed)
    rows = functional.normalize(torch.randn(tokens, size, generator=generator), dim=1)
    return torch.nn.Embedding.from_pretrained(rows)


def pair(cell: str = "rnn", size: int = 48, **options) -> tuple[RecurrentEncoder, RecurrentDecoder]:
    torch.manual_seed(3)
    own = {k: v for k, v in options.items() if k in ("decay", "start", "seed")}
    embedding = options.pop("embedding", None) or table()
    encoder = RecurrentEncoder(embedding, size, cell, **own)
    decoder = RecurrentDecoder(
        embedding,
        size,
        cell.removeprefix("bi"),
        eos=EOS,
        excluded=(PAD,),
        rotation_size=encoder.rotation_size,
        **options,
    )
    return encoder, decoder


def sentences(count: int, longest: int = 8, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(2, TOKENS, (count, longest), generator=generator).tolist()
    lengths = torch.randint(0, longest, (count,), generator=generator).tolist()
    return [[*row[:n], EOS] for row, n in zip(draw, lengths, strict=True)]


# --- how they begin ---------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [RNN, LSTM, GRU, ResidualRNN])
def test_a_layer_can_be_set_to_a_linear_map(layer):
    generator = torch.Generator().manual_seed(1)
    map_, projection = 0.9 * orthogonal(16, 16, generator), orthogonal(16, 5, generator)
    cell = layer(5, 16, batch_first=True)
    set_linear(cell, map_, projection)
    x = 1e-3 * torch.randn(3, 6, 5, generator=generator)
    expected = torch.zeros(3, 16)
    for step in range(6):
        expected = expected @ map_.T + x[:, step] @ projection.T
    output, _ = cell(x)
    torch.testing.assert_close(output[:, -1], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_an_encoder_begins_as_the_closed_form(cell):
    encoder, _ = pair(cell)
    rows = sentences(5)
    ids, lengths = training.padded(rows, PAD)
    size = encoder.rotation_size
    begin = Start(48, size, encoder.decay, 1)
    expected = torch.zeros(5, size)
    for number, row in enumerate(rows):
        for t, token in enumerate(row):
            rotated = begin.projection @ encoder.embedding.weight[token]
            for _ in range(t):
                rotated = encoder.decay * begin.rotation @ rotated
            expected[number] += rotated
    found = encoder(ids, lengths)[:, :size]
    # tanh bends entries of about 0.03 by a thousandth.
    assert (found - expected).norm() <= 0.01 * expected.norm()
    assert 0.2 < found.norm(dim=1).mean() / (0.03 * math.sqrt(size)) < 2


@pytest.mark.parametrize("cell", CELLS)
def test_sentences_come_back_before_any_training(cell):
    encoder, decoder = pair(cell, size=256 if cell == "bilstm" else 128)
    exact, tokens = training.free_running(encoder, decoder, sentences(200))
    assert exact >= 0.99
    assert tokens >= 0.99


def test_without_feedback_sentences_come_back_from_a_long_vector():
    encoder, decoder = pair(size=512, decay=1.0, feedback=False)
    assert training.free_running(encoder, decoder, sentences(100)) == (1.0, 1.0)


def test_embeddings_wider_than_the_vector_and_units_beyond_it():
    encoder, decoder = pair("gru", size=96, embedding=table(size=160), hidden_size=120)
    exact, _ = training.free_running(encoder, decoder, sentences(100, longest=4))
    assert exact >= 0.95
    assert list(decoder(torch.zeros(2, 96), 3).shape) == [2, 3, 160]


def test_the_usual_decay_is_that_of_its_formula():
    assert usual_decay(50) == pytest.approx(math.sqrt(0.5))
    # All that comes after a token: g^2 / (1 - g^2).
    for size, after in [(100, 2.0), (720, 6.0)]:
        g = usual_decay(size) ** 2
        assert g / (1 - g) == pytest.approx(after)


# --- what they compute ------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("start", ["rotation", "random"])
def test_neither_padding_nor_neighbors_matter(cell, start):
    encoder, _ = pair(cell, start=start)
    rows = sentences(6)
    ids, lengths = training.padded(rows, PAD)
    together = encoder(ids, lengths)
    for number, row in enumerate(rows):
        alone = encoder(torch.tensor([row]), [len(row)])
        torch.testing.assert_close(together[number : number + 1], alone, rtol=1e-5, atol=1e-6)
    other = torch.where(ids == PAD, torch.tensor(7), ids)
    torch.testing.assert_close(encoder(other, lengths), together, rtol=0, atol=0)
    soft = encoder.encode_embeddings(encoder.embedding(ids), lengths)
    torch.testing.assert_close(soft, together, rtol=0, atol=0)


def test_the_order_of_tokens_matters():
    encoder, _ = pair(start="random")
    a, b = encoder(torch.tensor([[5, 6, 1], [6, 5, 1]]), [3, 3])
    assert (a - b).norm() > 0.01 * a.norm()


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru", "residual_rnn"])
@pytest.mark.parametrize("feedback", [True, False])
def test_teacher_forcing_with_what_is_written_is_free_running(cell, feedback):
    _, decoder = pair(cell, start="random", feedback=feedback, hidden_size=56)
    vectors = torch.randn(4, 48)
    free = decoder(vectors, 7)
    written = decoder.nearest(free)
    forced = decoder(vectors, 7, written)
    torch.testing.assert_close(free, forced, rtol=1e-4, atol=1e-5)
    decoded = decoder.decode(vectors, 7)
    for row, tokens in zip(decoded.tolist(), written.tolist(), strict=True):
        end = tokens.index(EOS) + 1 if EOS in tokens else len(row)
        assert row[:end] == tokens[:end]
        assert set(row[end:]) <= {EOS}
    other = written.roll(1, 0)
    assert feedback != torch.allclose(decoder(vectors, 7, other), forced)


def test_a_cell_step_by_step_by_hand():
    _, decoder = pair(start="random")
    vectors, targets = torch.randn(3, 48), torch.tensor([[4, 9], [8, 1], [1, 1]])
    layer = decoder.recurrence
    h, before = vectors @ decoder.initial.weight.T, torch.zeros(3, 48)
    for step in range(2):
        x = torch.cat([before, vectors], 1)
        gates = x @ layer.weight_ih_l0.T + layer.bias_ih_l0
        h = torch.tanh(gates + h @ layer.weight_hh_l0.T + layer.bias_hh_l0)
        y = h @ decoder.readout.weight.T + decoder.readout.bias
        torch.testing.assert_close(decoder(vectors, 2, targets)[:, step], y, rtol=1e-4, atol=1e-5)
        before = decoder.embedding(targets[:, step])


def test_multinomial_draws_what_the_softmax_says():
    embedding = table(5, 4)
    decoder = RecurrentDecoder(
        embedding, 6, eos=EOS, excluded=(PAD,), start="random", feedback=False
    )
    vectors = torch.randn(1, 6).expand(20_000, -1)
    generator = torch.Generator().manual_seed(4)
    drawn = decoder.decode(vectors, 1, "multinomial", 8.0, generator)[:, 0]
    expected = (decoder.logits(decoder(vectors[:1], 1))[0, 0] / 8.0).softmax(0)
    found = drawn.bincount(minlength=5) / len(drawn)
    assert expected[PAD] == 0
    assert found[PAD] == 0
    assert 0.3 < expected.max() < 0.9
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=0.015)
    cold = decoder.decode(vectors[:50], 3, "multinomial", 1e-30, generator)
    likeliest = decoder.logits(decoder(vectors[:1], 1))[0, 0].argmax()
    assert (cold[:, 0] == likeliest).all()
    again = [
        decoder.decode(vectors[:20], 5, "multinomial", 1.0, torch.Generator().manual_seed(2))
        for _ in range(2)
    ]
    assert torch.equal(*again)


def test_no_sentences_and_no_steps():
    encoder, decoder = pair()
    assert list(encoder(torch.zeros(0, 3, dtype=torch.int64), []).shape) == [0, 48]
    assert list(decoder.decode(torch.zeros(2, 48), 0).shape) == [2, 0]
    assert decoder.decode(torch.zeros(0, 48), 4).shape[0] == 0
    assert list(decoder(torch.zeros(0, 48), 4).shape) == [0, 4, 48]


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_in_double_precision(cell):
    embedding = table(12, 3).double()
    torch.manual_seed(0)
    encoder = RecurrentEncoder(embedding, 4, cell, start="random").double()
    decoder = RecurrentDecoder(embedding, 4, cell.removeprefix("bi"), eos=EOS, start="random")
    decoder = decoder.double()
    soft = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([[3, 5, 1], [4, 1, 0]])

    def both(x, *parameters):
        return decoder(encoder.encode_embeddings(x, [3, 2]), 3, targets)

    parameters = [p for p in (*encoder.parameters(), *decoder.parameters()) if p.requires_grad]
    assert torch.autograd.gradcheck(both, (soft, *parameters[:6]), atol=1e-6)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"cell": "transformer"}, ValueError, "cell among rnn, lstm, bilstm, gru, residual_rnn"),
        ({"vector_size": 0}, ValueError, "vector_size"),
        ({"vector_size": 5, "cell": "bilstm"}, ValueError, "even vector_size"),
        ({"decay": 0}, ValueError, r"decay in \(0, 1\]"),
        ({"decay": 1.5}, ValueError, r"decay in \(0, 1\]"),
        ({"start": "zero"}, ValueError, "start among rotation, random"),
        ({"embedding": torch.zeros(4, 4)}, TypeError, "torch.nn.Embedding; got Tensor"),
    ],
)
def test_an_encoder_says_what_it_expects(change, error, said):
    options = {"embedding": table(), "vector_size": 8, **change}
    with pytest.raises(error, match=said):
        RecurrentEncoder(options.pop("embedding"), options.pop("vector_size"), **options)


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"cell": "bilstm"}, ValueError, "cell among rnn, lstm, gru, residual_rnn"),
        ({"eos": TOKENS}, IndexError, "eos in 0..59; got 60"),
        ({"eos": -1}, ValueError, "eos"),
        ({"excluded": [99]}, IndexError, "excluded in 0..59; got 99"),
        ({"excluded": [EOS]}, ValueError, "leave eos"),
        ({"hidden_size": 4}, ValueError, "hidden_size"),
        ({"rotation_size": 9}, ValueError, "rotation_size"),
    ],
)
def test_a_decoder_says_what_it_expects(change, error, said):
    with pytest.raises(error, match=said):
        RecurrentDecoder(table(), 8, **{"eos": EOS, **change})


def test_calls_say_what_they_expect():
    encoder, decoder = pair()
    vectors = torch.zeros(2, 48)
    ids = torch.tensor([[3, 1]])
    for call, error, said in [
        (lambda: encoder(ids.float(), [2]), TypeError, "int32 or int64"),
        (lambda: encoder(ids[0], [2]), ValueError, r"\[B, T >= 1\]"),
        (lambda: encoder(ids, [3]), ValueError, "lengths in 1..2"),
        (lambda: encoder(ids, [0]), ValueError, "lengths in 1..2"),
        (lambda: encoder(ids, [1, 1]), ValueError, r"lengths of shape \[1\]"),
        (lambda: encoder(ids + TOKENS, [2]), IndexError, "ids in 0..59; got 63"),
        (lambda: encoder(ids - 2, [2]), IndexError, "ids in 0..59; got -1"),
        (lambda: encoder.encode_embeddings(torch.zeros(1, 2, 5), [2]), ValueError, "48"),
        (lambda: encoder.encode_embeddings(None, [2]), TypeError, "torch.Tensor"),
        (lambda: decoder(vectors[:, :3], 2), ValueError, r"\[B, 48\]; got \[2, 3\]"),
        (lambda: decoder(vectors.long(), 2), TypeError, "floating-point"),
        (lambda: decoder(vectors, 0), ValueError, "length"),
        (lambda: decoder(vectors, 2, ids), ValueError, r"targets of shape \[2, 2\]"),
        (lambda: decoder.decode(vectors, 2, "beam"), ValueError, "greedy, multinomial"),
        (lambda: decoder.decode(vectors, 2, temperature=0.0), ValueError, "temperature > 0"),
        (lambda: decoder.decode(vectors, -1), ValueError, "max_length"),
    ]:
        with pytest.raises(error, match=said):
            call()


# --- training ---------------------------------------------------------------------------------

SMALL = {"batch_size": 16, "held_out": 0.1, "alpha": 1e-3, "noise": 0.0}


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("loss", ["match", "cross_entropy"])
def test_training_makes_a_short_vector_better(loss):
    encoder, decoder = pair("gru", size=16, decay=1.0)
    rows, unseen = sentences(600, longest=6), sentences(400, longest=6, seed=9)
    before = training.free_running(encoder, decoder, unseen)[0]
    plan = Training(epochs=4, loss=loss, patience=9, alpha=1e-3, held_out=0.2, batch_size=16)
    history = train(encoder, decoder, rows, plan, progress=False)
    assert [entry["epoch"] for entry in history] == [0, 1, 2, 3, 4]
    assert max(entry["exact_match"] for entry in history) > history[0]["exact_match"]
    assert training.free_running(encoder, decoder, unseen)[0] > before + 0.02


def test_training_ends_with_the_best_and_stops_early():
    encoder, decoder = pair(size=20)
    rows = sentences(200)
    before = {name: p.clone() for name, p in decoder.named_parameters()}
    rough = {"alpha": 1.0, "min_alpha": 1.0, "noise": 0.1}
    plan = Training(epochs=9, patience=2, **{**SMALL, **rough})
    history = train(encoder, decoder, rows, plan, progress=False)
    assert 0.2 < history[0]["exact_match"] < 1
    assert max(entry["exact_match"] for entry in history[1:]) < history[0]["exact_match"]
    assert len(history) == 3
    assert all(torch.equal(before[name], p) for name, p in decoder.named_parameters())


def test_where_all_came_back_training_is_over():
    encoder, decoder = pair(size=128, decay=0.9)
    plan = Training(epochs=9, **SMALL)
    assert len(train(encoder, decoder, sentences(60), plan, progress=False)) == 1
    more = replace(plan, epochs=1, consistency=0.1)
    assert len(train(encoder, decoder, sentences(60), more, progress=False)) == 2


def test_distillation_counts_in_what_is_best():
    encoder, decoder = pair(size=32)
    rows = sentences(200)
    teachers = encoder(*training.padded(rows, PAD)).detach() @ torch.randn(32, 6)
    plan = Training(epochs=3, distillation=5.0, **{**SMALL, "alpha": 3e-3})
    history = train(encoder, decoder, rows, plan, teachers=teachers, progress=False)
    assert history[-1]["distillation"] < history[0]["distillation"] - 0.05
    before = pair(size=32)[0]
    assert not torch.equal(before.recurrence.weight_hh_l0, encoder.recurrence.weight_hh_l0)


def test_where_nothing_is_wrong_nothing_is_moved():
    encoder, decoder = pair(size=128, decay=0.9)
    before = [p.clone() for p in decoder.parameters()]
    plan = Training(epochs=1, **{**SMALL, "held_out": 0.0})
    assert train(encoder, decoder, sentences(60, 4), plan, progress=False)[1]["loss"] == 0
    assert all(torch.equal(a, b) for a, b in zip(before, decoder.parameters(), strict=True))


def test_the_other_losses_take_part():
    encoder, decoder = pair(size=32)
    rows = sentences(80)
    teachers = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    plan = Training(epochs=1, consistency=0.5, distillation=0.5, **{**SMALL, "held_out": 0.0})
    history = train(encoder, decoder, rows, plan, teachers=teachers, progress=False)
    alone = pair(size=32)
    plain = Training(epochs=1, **{**SMALL, "held_out": 0.0})
    assert history[1]["loss"] > train(*alone, rows, plain, progress=False)[1]["loss"]


def test_batches_are_of_about_one_length_and_drawn_anew():
    lengths = [len(row) for row in sentences(100)]
    first, second = (training.batches(lengths, 8, 1, epoch) for epoch in (0, 1))
    assert sorted(n for batch in first for n in batch) == list(range(100))
    assert first != second
    assert first == training.batches(lengths, 8, 1, 0)
    assert max(max(lengths[n] for n in b) - min(lengths[n] for n in b) for b in first) <= 2


def run(folder=None, every=0.0, after_step=None, resume=True):
    encoder, decoder = pair("lstm", size=24)
    keep = None if folder is None else SentenceCheckpoint(folder, every, resume)
    history = train(
        encoder,
        decoder,
        sentences(120),
        Training(epochs=3, consistency=0.1, **{**SMALL, "noise": 0.01}),
        checkpoint=keep,
        progress=False,
        after_step=after_step,
    )
    return history, [*encoder.parameters(), *decoder.parameters()]


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, deterministic, signum):
    history, unbroken = run()
    steps = []

    def stop(cursor):
        steps.append((cursor.epoch, cursor.batch))
        if len(steps) == 9:  # in the middle of the second epoch
            signal.raise_signal(signum)

    with pytest.raises(TrainingInterrupted):
        run(tmp_path, 1e6, stop)
    went_on, resumed = run(tmp_path, 1e6, lambda cursor: steps.append((cursor.epoch, cursor.batch)))
    assert steps[9] == (steps[8][0], steps[8][1] + 1)
    assert went_on == history
    assert same(unbroken, resumed)


CHILD = """
import sys, torch
sys.path.insert(0, sys.argv[2])
torch.use_deterministic_algorithms(True)
torch.set_num_threads(1)
import test_sentence_recurrent as here
def say(cursor):
    print(cursor.epoch, cursor.batch, flush=True)
here.run(sys.argv[1], 0.0, say)
"""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, deterministic):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _, unbroken = run()
        here = os.path.dirname(__file__)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), here], stdout=subprocess.PIPE, text=True
        )
        for line in child.stdout:
            if line.split() == ["1", "3"]:
                child.kill()
                break
        child.wait()
        child.stdout.close()
        first = []
        _, resumed = run(tmp_path, 1e6, lambda cursor: first.append((cursor.epoch, cursor.batch)))
        assert first[0] >= (1, 3)
        assert same(unbroken, resumed)
    finally:
        torch.set_num_threads(threads)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    encoder, decoder = pair("lstm", size=24)
    keep = SentenceCheckpoint(tmp_path, 0.0)
    plan = Training(epochs=3, consistency=0.1, **{**SMALL, "noise": 0.01})
    with pytest.raises(CheckpointError, match="same text"):
        train(encoder, decoder, sentences(121), plan, checkpoint=keep, progress=False)
    more = replace(plan, epochs=4)
    with pytest.raises(CheckpointError, match="epochs=4"):
        train(encoder, decoder, sentences(120), more, checkpoint=keep, progress=False)
    other = pair("lstm", size=24, seed=2)
    with pytest.raises(CheckpointError, match="start="):
        train(*other, sentences(120), plan, checkpoint=keep, progress=False)
    whole = keep.path.read_bytes()
    keep.path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="checksum"):
        train(encoder, decoder, sentences(120), plan, checkpoint=keep, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epochs": -1}, ValueError, "epochs >= 0"),
        ({"batch_size": 0}, ValueError, "batch_size >= 1"),
        ({"alpha": 0}, ValueError, "alpha > 0"),
        ({"loss": "l1"}, ValueError, "loss among match, cross_entropy"),
        ({"held_out": 1.0}, ValueError, r"held_out in \[0, 1\)"),
        ({"noise": -1}, ValueError, "noise"),
        ({"patience": 0}, ValueError, "patience >= 1"),
        ({"consistency": math.nan}, ValueError, "consistency"),
        ({"gumbel_temperature": 0}, ValueError, "gumbel_temperature > 0"),
    ],
)
def test_training_says_which_options_it_expects(options, error, said):
    with pytest.raises(error, match=said):
        Training(**options)


def test_training_says_which_sentences_it_expects():
    encoder, decoder = pair()
    for rows, error, said in [
        ([], ValueError, "got none"),
        ([[3, 4]], ValueError, "end in eos"),
        ([[]], ValueError, "end in eos"),
        ([[TOKENS, EOS]], IndexError, "0..59"),
    ]:
        with pytest.raises(error, match=said):
            train(encoder, decoder, rows, Training(epochs=1), progress=False)
    with pytest.raises(ValueError, match="teachers"):
        train(encoder, decoder, sentences(4), Training(distillation=1.0), progress=False)


def test_training_that_diverges_says_so():
    encoder, decoder = pair(size=16)
    with torch.no_grad():
        decoder.readout.bias.fill_(math.nan)
    with pytest.raises(ValueError, match="diverged"):
        train(encoder, decoder, sentences(20), Training(epochs=1, held_out=0.0), progress=False)
