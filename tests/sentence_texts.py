"""Small invented sentences with case, marks and rare words, for the tests of sentence models."""

from __future__ import annotations

import random

_WHO = ("A man", "Two women", "The old dog", "A girl in a red hat", "Some workers", "My 3 cats")
_DOES = ("runs", "is sleeping", "play chess", "sings loudly", "reads", "doesn't move", "waits")
_WHERE = ("on the beach", "in a park", "near the station", "behind Anna's house", "at night")
_END = (".", "!", "...", "", ", it seems.")


def texts(count: int, seed: int = 0) -> list[str]:
    """So many sentences, with a word in most of them that hardly any other has."""
    draw = random.Random(seed)

    def rare() -> str:
        return "".join(draw.choice("abcdefghiklmnoprstuv") for _ in range(draw.randint(3, 7)))

    return [
        f"{draw.choice(_WHO)} {draw.choice(_DOES)} {draw.choice(_WHERE)}"
        + (f" with {rare()}" if draw.random() < 0.6 else "")
        + draw.choice(_END)
        for _ in range(count)
    ]
