"""A text in which words of one topic stand together, and how well vectors tell the topics apart."""

from __future__ import annotations

import numpy as np

from vecsmith import KeyedVectors

TOPICS, TOPIC_WORDS = 6, 5
SMALL = {"vector_size": 12, "min_count": 1, "epochs": 2, "workers": 1}
MODES = {
    f"{model}-{loss}-{shared}": {
        "sg": sg,
        "hs": hs,
        "negative": negative,
        "shared_negatives": shared,
    }
    for model, sg in (("sg", 1), ("cbow", 0))
    for loss, hs, negative in (("ns", 0, 5), ("hs", 1, 0))
    for shared in ("window", "pair")
}


def planted(sentences: int = 1500, seed: int = 0) -> list[list[str]]:
    """Sentences of words of one topic, among filler words that say nothing."""
    random = np.random.default_rng(seed)
    text = []
    for _ in range(sentences):
        topic = random.integers(TOPICS)
        words = [f"t{topic}w{i}" for i in random.integers(TOPIC_WORDS, size=8)]
        fillers = [f"filler{i}" for i in random.integers(10, size=3)]
        for filler in fillers:
            words.insert(int(random.integers(len(words))), filler)
        text.append(words)
    return text


def purity(wv: KeyedVectors) -> float:
    """The share of a topic word's nearest topic words that are of its topic."""
    words = [word for word in wv.index_to_key if word.startswith("t")]
    right = total = 0
    for word in words:
        others = [w for w, _ in wv.most_similar(word, topn=len(wv)) if w.startswith("t")]
        nearest = others[: TOPIC_WORDS - 1]
        right += sum(w[:2] == word[:2] for w in nearest)
        total += len(nearest)
    return right / total
