"""Word2Vec(device="cuda"): what it learns there. Without gensim, which GPU machines seldom have."""

from __future__ import annotations

import pytest

from planted_text import MODES, planted, purity
from vecsmith import Word2Vec


@pytest.fixture(scope="module")
def text() -> list[list[str]]:
    return planted()


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_cuda_finds_planted_topics(text, mode):
    model = Word2Vec(text, vector_size=24, epochs=12, alpha=0.05, sample=0, device="cuda", **mode)
    assert model.wv.weight.device.type == "cpu"
    assert purity(model.wv) > 0.9
