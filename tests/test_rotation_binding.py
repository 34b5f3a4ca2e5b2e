"""Sentences as sums of rotated vectors: the formula, the way back, the language model beside it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from vecsmith.nn import NGramLanguageModel, RotationBinding

PAD, BOS, EOS = 0, 2, 3


def sentences(batch: int, longest: int, vocabulary: int, seed: int = 0):
    """ids [B, longest + 1] ending in eos, lengths that count it; from no token at all on."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocabulary, (batch, longest + 1), generator=generator)
    lengths = torch.randint(1, longest + 2, (batch,), generator=generator)
    lengths[:2] = torch.tensor([longest + 1, 1])[:batch]
    places = torch.arange(longest + 1)
    ids[places >= lengths[:, None]] = PAD
    ids[torch.arange(batch), lengths - 1] = EOS
    return ids, lengths


def blurred(vectors: torch.Tensor, noise: float) -> torch.Tensor:
    drawn = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1))
    drawn = torch.nn.functional.normalize(drawn, dim=1)
    vectors = vectors.to(torch.bfloat16).float()
    return vectors + noise * vectors.norm(dim=1, keepdim=True) * drawn


def same(found: torch.Tensor, ids: torch.Tensor) -> float:
    """The share of rows that are the same sentence."""
    width = max(found.shape[1], ids.shape[1])
    found, ids = (torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (found, ids))
    return float((found == ids).all(1).float().mean())


# --- The formula. ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [None, 1.0, 0.8])
@pytest.mark.parametrize("size", [2, 6, 130])
def test_the_vector_is_the_sum_of_the_formula(size, gamma):
    module = RotationBinding(50, size, 9, gamma=gamma)
    ids, lengths = sentences(7, 9, 50)
    angles = torch.atan2(module.sines[1], module.cosines[1]).double()
    half = size // 2
    rotation = torch.zeros(size, size, dtype=torch.float64)
    rotation[:half, :half] = rotation[half:, half:] = torch.diag(angles.cos())
    rotation[half:, :half] = torch.diag(angles.sin())
    rotation[:half, half:] = -torch.diag(angles.sin())
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(size, dtype=torch.float64))
    for row, vector in enumerate(module(ids, lengths)):
        count = int(lengths[row]) - 1
        a = module.amplitudes[count].double()
        total = a[0] * module.lengths[count].double()
        for t in range(1, count + 1):
            token = module.weight[ids[row, t - 1]].double()
            total = total + a[t] * torch.linalg.matrix_power(rotation, t) @ token
        torch.testing.assert_close(vector.double(), total / total.norm(), atol=2e-6, rtol=0)


def test_every_token_stands_alike_above_what_comes_after_it():
    for size in (64, 4096):
        module = RotationBinding(10, size, 40, noise=0.01, snr=100.0)
        for count in (0, 1, 13, 40):
            powers = module.amplitudes[count].double().square()
            assert float(powers.sum()) == pytest.approx(1, rel=1e-6)
            assert not powers[count + 1 :].any()
            c = min(100 / size, (1 + 1e4) ** (1 / (count + 1)) - 1)
            ratios = [c] * count
            # The length has fewer to be told from: 50 / D is enough.
            floor = 1 / ((1 + c) ** count * (1 + min(c, 50 / size)) - 1)
            for t in range(1, count + 1):
                behind = float(powers[t + 1 :].sum())
                assert float(powers[t]) / (floor + behind) == pytest.approx(ratios[t - 1], rel=1e-4)
            assert floor >= 0.99e-4  # what is borne is at least the noise


def test_gamma_is_the_ratio_of_amplitudes():
    amplitudes = RotationBinding(10, 8, 5, gamma=0.7).amplitudes
    torch.testing.assert_close(amplitudes[5, 1:] / amplitudes[5, :-1], torch.full((5,), 0.7))
    assert RotationBinding(10, 8, 5, gamma=1.0).amplitudes[3, :4].unique().numel() == 1


def test_rows_have_length_one_and_do_not_depend_on_each_other():
    module = RotationBinding(99, 32, 12)
    ids, lengths = sentences(9, 12, 99)
    vectors = module(ids, lengths)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(9))
    for row in range(9):
        alone = module(ids[row : row + 1, : lengths[row]], lengths[row : row + 1])
        torch.testing.assert_close(alone[0], vectors[row])
    torch.testing.assert_close(module(ids), vectors)  # up to the first eos
    strided = ids.repeat_interleave(2, 1)[:, ::2]
    torch.testing.assert_close(module(strided.int(), lengths), vectors)
    behind = torch.where(torch.arange(13) >= lengths[:, None], 98, ids)
    torch.testing.assert_close(module(behind, lengths), vectors)
    assert module(ids[:0], lengths[:0]).shape == (0, 32)


def test_soft_tokens_have_gradients_and_the_same_vector():
    module = RotationBinding(20, 6, 4)
    ids, lengths = sentences(3, 4, 20)
    embeddings = module.weight[ids].double().requires_grad_()
    torch.testing.assert_close(
        module.encode_embeddings(embeddings, lengths).float(), module(ids, lengths)
    )
    assert torch.autograd.gradcheck(lambda e: module.encode_embeddings(e, lengths), (embeddings,))


def test_the_seed_alone_makes_the_vectors():
    """What was saved can be decoded in years to come: these bits must not change."""
    module = RotationBinding(5, 8, 2, seed=7)
    again = RotationBinding(5, 8, 2, seed=7, language_model=NGramLanguageModel(5))
    torch.testing.assert_close(module.weight, again.weight, atol=0, rtol=0)
    bits = np.random.Philox(key=7)
    angles = bits.random_raw(4) / 2.0**64 * 2 * np.pi
    np.testing.assert_allclose(module.cosines[1].numpy(), np.cos(angles), atol=1e-7)
    words = [int(word) for word in bits.random_raw(2)]  # 3 x 8 bits, then 5 x 8
    signs = [1 if words[1] >> n & 1 else -1 for n in range(40)]
    assert (module.weight * math.sqrt(8)).round().flatten().tolist() == signs
    assert not torch.equal(RotationBinding(5, 8, 2, seed=8).weight, module.weight)


# --- The way back. --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [False, True], ids=["plain", "ngrams"])
@pytest.mark.parametrize(("size", "longest"), [(128, 13), (256, 31)])
def test_sentences_come_back(size, longest, model):
    v = 997
    language_model = NGramLanguageModel(v, 2).fit([[5, EOS]]) if model else None
    module = RotationBinding(v, size, 40, language_model=language_model)
    ids, lengths = sentences(40, longest, v)
    vectors = module(ids, lengths)
    assert same(module.decode(vectors), ids) == 1
    found, misfits = module.search(blurred(vectors, 0.01))
    assert same(found, ids) == 1
    assert found.dtype == torch.int64
    assert found.shape[1] == longest + 1
    # |r|^2 is about D squares of noise; rounding adds a little.
    assert 0.8 < float(misfits.mean()) < 1.25
    assert same(module.decode(vectors.double() * 1e-3), ids) == 1
    strided = vectors.repeat_interleave(2, 1)[:, ::2]
    assert same(module.decode(strided), ids) == 1
    assert module.decode(vectors[:0]).shape == (0, 1)


def test_the_plain_sum_fails_where_falling_amplitudes_do_not():
    ids, lengths = sentences(40, 14, 2000)
    ids[:, :14] = torch.randint(4, 2000, (40, 14), generator=torch.Generator().manual_seed(4))
    ids[:, 14], lengths = EOS, torch.full((40,), 15)
    shares = []
    for gamma in (1.0, None):
        module = RotationBinding(2000, 96, 20, gamma=gamma, beam=1)
        found, _ = module.search(module(ids, lengths), lengths=lengths)
        shares.append(same(found, ids))
    assert shares[0] < 0.1
    assert shares[1] > 0.9


def test_given_vectors_are_used_whatever_their_lengths():
    table = torch.randn(60, 64, generator=torch.Generator().manual_seed(3)) * 5
    module = RotationBinding(60, 64, 8, embeddings=table)
    torch.testing.assert_close(module.weight, torch.nn.functional.normalize(table, dim=1))
    ids, lengths = sentences(12, 8, 60)
    assert same(module.decode(module(ids, lengths)), ids) == 1
    assert set(module.state_dict()) == {"weight"}
    assert not RotationBinding(60, 64, 8).state_dict()


@pytest.mark.parametrize("model", [False, True], ids=["plain", "ngrams"])
def test_a_beam_that_is_wide_enough_finds_the_best_sentence(model):
    """Against all V^T sentences of a length, where the vector is too short to be sure."""
    v, size, steps, noise = 9, 4, 3, 0.2
    texts = [[5, 6, 7, EOS], [6, 5, 4, EOS], [8, 8, EOS]]
    language_model = NGramLanguageModel(v, 3).fit(texts) if model else None
    module = RotationBinding(v, size, 3, noise=noise, beam=4096, language_model=language_model)
    real = [token for token in range(v) if token not in (PAD, BOS, EOS)]
    every = torch.tensor([[*row, EOS] for row in itertools.product(real, repeat=steps)])
    lengths = torch.full((len(every),), steps + 1)
    vectors = blurred(module(every, lengths), 0.2)[::5]
    unit = torch.nn.functional.normalize(vectors, dim=1)
    found, reached, _, _ = module._search(unit, lengths[: len(vectors)] - 1, 4096, None)
    sums = module(every, lengths).double()
    left = 1 - (unit.double() @ sums.T).square()
    left = left / noise**2
    score = -size / 2 * torch.where(left > 1, 1 + left.log(), left)
    if language_model is None:
        score -= steps * math.log(v)
    else:
        start = torch.full((len(every), 2), BOS)
        context = torch.cat([start, every], 1)
        for t in range(steps + 1):
            log_p = language_model.log_probabilities(context[:, t : t + 2])
            score += log_p.gather(1, every[:, t : t + 1])[:, 0]
    chosen = (every[:, None] == found).all(2).int().argmax(0)
    assert (every[chosen] == found).all()
    best = score.max(1).values
    torch.testing.assert_close(score[torch.arange(len(best)), chosen], best, atol=1e-4, rtol=0)
    torch.testing.assert_close(reached.double(), best, atol=1e-4, rtol=0)


def test_n_grams_help_where_the_vector_is_short():
    generator = torch.Generator().manual_seed(5)
    following = torch.randint(4, 3000, (3000, 3), generator=generator)

    def walk() -> list[int]:
        row = [int(torch.randint(4, 3000, (1,), generator=generator))]
        for _ in range(13):
            row.append(int(following[row[-1], int(torch.randint(3, (1,), generator=generator))]))
        return [*row, EOS]

    texts = [walk() for _ in range(3000)]
    ids, lengths = torch.tensor([walk() for _ in range(30)]), torch.full((30,), 15)
    shares = []
    for language_model in (None, NGramLanguageModel(3000, 3).fit(texts)):
        module = RotationBinding(3000, 24, 20, language_model=language_model)
        shares.append(same(module.decode(blurred(module(ids, lengths), 0.01)), ids))
    assert shares[0] < 0.7
    assert shares[1] > shares[0] + 0.2


def test_drawing():
    module = RotationBinding(200, 16, 10, noise=0.05)
    ids, lengths = sentences(20, 10, 200)
    vectors = module(ids, lengths)

    def drawn(seed: int, temperature: float) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return module.decode(vectors, None, "multinomial", temperature, generator)

    first = drawn(1, 1.0)
    assert torch.equal(first, drawn(1, 1.0))
    assert same(drawn(2, 1.0), first) < 1
    cold = RotationBinding(200, 16, 10, noise=0.05, beam=1)
    sure = RotationBinding(200, 256, 10)
    assert same(sure.decode(sure(ids, lengths), None, "multinomial", 1.0), ids) == 1
    found, _ = cold.search(vectors, None, "multinomial", 1e-4)
    known = torch.tensor([int((row == EOS).nonzero()[0]) + 1 for row in found])
    greedy, _ = cold.search(vectors, lengths=known)
    assert same(greedy, found) == 1


def test_a_limit_on_the_length():
    module = RotationBinding(100, 64, 10)
    ids, lengths = sentences(10, 10, 100)
    found = module.decode(module(ids, lengths), max_length=4)
    assert found.shape[1] <= 5
    short = lengths <= 5
    assert same(found[short], ids[short, :5]) == 1


# --- The language model. --------------------------------------------------------------------------


def slow_kneser_ney(texts, v, order, context, token):
    """The formula, one probability at a time, from dictionaries."""
    grams = {}
    for text in texts:
        row = [BOS] * (order - 1) + list(text)
        for at in range(order - 1, len(row)):
            gram = tuple(row[at - order + 1 : at + 1])
            grams[gram] = grams.get(gram, 0) + 1
    p = 1 / v
    levels = [grams]
    for _ in range(order - 1):
        shorter = {}
        for gram in levels[-1]:
            shorter[gram[1:]] = shorter.get(gram[1:], 0) + 1
        levels.append(shorter)
    for k, counts in enumerate(reversed(levels), 1):
        once = sum(c == 1 for c in counts.values())
        twice = sum(c == 2 for c in counts.values())
        d = once / (once + 2 * twice) if once and twice else 0.5
        h = tuple(context[len(context) - k + 1 :])
        behind = {gram[-1]: c for gram, c in counts.items() if gram[:-1] == h}
        total = sum(behind.values())
        if total:
            p = max(behind.get(token, 0) - d, 0) / total + d * len(behind) / total * p
    return p


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_n_grams_follow_the_formula_and_sum_to_one(order):
    generator = torch.Generator().manual_seed(2)
    texts = [
        [*torch.randint(4, 9, (n,), generator=generator).tolist(), EOS] for n in (0, 1, 2, 5, 9, 7)
    ]
    model = NGramLanguageModel(10, order).fit(texts)
    contexts = [[BOS] * 3, [BOS, BOS, 5], [5, 6, 7], [9, 9, 9], [4, 4, 8], [8, 1, 4]]
    found = model(torch.tensor(contexts)).exp()
    torch.testing.assert_close(found.sum(1), torch.ones(len(contexts)))
    for row, context in enumerate(contexts):
        want = [slow_kneser_ney(texts, 10, order, context, token) for token in range(10)]
        torch.testing.assert_close(found[row], torch.tensor(want))


def test_n_grams_are_saved_with_their_module():
    model = NGramLanguageModel(50, 3).fit([[7, 8, 9, EOS], [7, 9, EOS]])
    module = RotationBinding(50, 16, 4, language_model=model)
    other = RotationBinding(50, 16, 4, language_model=NGramLanguageModel(50, 3))
    other.load_state_dict(module.state_dict())
    contexts = torch.tensor([[7, 8], [BOS, 7], [1, 1]])
    assert torch.equal(other.language_model(contexts), model(contexts))
    fresh = NGramLanguageModel(50, 3)
    torch.testing.assert_close(fresh(contexts).exp(), torch.full((3, 50), 0.02))
    with pytest.raises(RuntimeError, match="unigram"):
        NGramLanguageModel(51, 3).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "num_embeddings"),
        ((10, 0), ValueError, "order"),
        ((100_000, 6), ValueError, r"2 \*\* 62"),
        ((2, 2), ValueError, "bos"),
    ],
)
def test_n_grams_refuse(arguments, error, message):
    with pytest.raises(error, match=message):
        NGramLanguageModel(*arguments)


def test_n_grams_refuse_texts():
    model = NGramLanguageModel(10)
    with pytest.raises(ValueError, match="got none"):
        model.fit([])
    with pytest.raises(IndexError, match=r"0\.\.9; got 10"):
        model.fit([[4, 10]])


# --- What is refused. -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vector_size": 7}, ValueError, "even"),
        ({"vector_size": 0}, ValueError, "vector_size"),
        ({"num_embeddings": 0}, ValueError, "num_embeddings"),
        ({"max_length": -1}, ValueError, "max_length"),
        ({"gamma": 0.0}, ValueError, "gamma"),
        ({"gamma": 1.5}, ValueError, "gamma"),
        ({"gamma": "x"}, TypeError, "gamma"),
        ({"snr": math.inf}, ValueError, "snr"),
        ({"noise": 0.0}, ValueError, "noise"),
        ({"noise": 1.0}, ValueError, "noise"),
        ({"beam": 0}, ValueError, "beam"),
        ({"eos": 10}, ValueError, "eos"),
        ({"seed": 1.5}, TypeError, "seed"),
        ({"embeddings": torch.ones(9, 8)}, ValueError, r"\[10, 8\]"),
        ({"embeddings": torch.zeros(10, 8)}, ValueError, "row 0"),
        ({"embeddings": torch.full((10, 8), math.nan)}, ValueError, "row 0"),
    ],
)
def test_options_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        RotationBinding(**{"num_embeddings": 10, "vector_size": 8, **options})


@pytest.mark.parametrize(
    ("ids", "lengths", "error", "message"),
    [
        ([[4, 5]], None, ValueError, "eos in every row"),
        ([[4, 3], [5, 6]], None, ValueError, "row 1"),
        ([[4, 10, 3]], [3], IndexError, "got 10 at step 1 of row 0"),
        ([[4, -1, 3]], [3], IndexError, "got -1"),
        ([[4, 5, 3]], [4], ValueError, "lengths in 1..3"),
        ([[4, 5, 3]], [0], ValueError, "got 0 in row 0"),
        ([[4, 5, 3]], [1, 1], ValueError, r"lengths \[1\]"),
        ([[4, 4, 4, 4, 4, 3]], [6], ValueError, "lengths in 1..5"),
        ([4, 3], None, ValueError, r"ids \[B, L\]"),
        ([[4.0, 3.0]], None, ValueError, "int64"),
    ],
)
def test_sentences_that_are_refused(ids, lengths, error, message):
    module = RotationBinding(10, 8, 4)
    with pytest.raises(error, match=message):
        module(torch.tensor(ids), None if lengths is None else torch.tensor(lengths))


def test_vectors_that_are_refused():
    module = RotationBinding(10, 8, 4)
    good = torch.ones(3, 8)
    for value in (math.nan, math.inf, 0.0):
        bad = good.clone()
        bad[1] = value
        with pytest.raises(ValueError, match="row 1"):
            module.decode(bad)
    for bad in (torch.ones(3, 7), torch.ones(8), torch.ones(3, 8, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"vectors \[B, 8\]"):
            module.decode(bad)
    with pytest.raises(ValueError, match="method"):
        module.decode(good, None, "beam")
    with pytest.raises(ValueError, match="temperature"):
        module.decode(good, temperature=0.0)
    with pytest.raises(ValueError, match="max_length"):
        module.decode(good, 5)
    with pytest.raises(ValueError, match=r"embeddings \[B, L, 8\]"):
        module.encode_embeddings(torch.ones(1, 2, 7), torch.tensor([1]))
