"""Sentences to vectors, and the vectors back to their sentences.

python examples/sentences_there_and_back.py             # docstrings of the standard library
python examples/sentences_there_and_back.py TEXT        # yours; a line is a sentence
"""

import argparse
import json
import random
from pathlib import Path

import torch

import vecsmith
from vecsmith.data import docstring_sentences

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text", nargs="?", type=Path, help="a line is a sentence (UTF-8)")
parser.add_argument("--size", type=int, default=512, help="numbers in a vector [512]")
parser.add_argument("--length", type=int, default=24, help="words in a sentence, at most [24]")
parser.add_argument("--test", type=int, default=500, help="sentences that are not trained on [500]")
options = parser.parse_args()
if options.length < 3 or options.test < 2 or options.size < 8:
    parser.error("expected --length of at least 3, --test of 2 and --size of 8")

# 1. Sentences; some are held out.
if options.text is None:
    library = Path(json.__file__).parent.parent
    sentences = [" ".join(words) + "." for words in docstring_sentences([library])]
elif options.text.is_file():
    sentences = options.text.read_text(encoding="utf-8", errors="replace").splitlines()
else:
    parser.error(f"expected a text file; got {options.text}")
sentences = list(dict.fromkeys(s for s in sentences if 3 <= len(s.split()) <= options.length))
random.Random(0).shuffle(sentences)
test, train = sentences[: options.test], sentences[options.test :]
if len(train) < options.test:
    parser.error(f"expected at least twice --test different sentences; got {len(sentences)}")

# 2. Nothing but a vocabulary and a language model of n-grams is learned, so it takes seconds.
model = vecsmith.SentenceAutoencoder(train, vector_size=options.size, truncate=True)
print(f"{len(train):,} sentences trained on, {len(test):,} held out; {options.size} numbers each")

# 3. There and back: a tensor [B, D], and nothing else, goes into decode.
vectors = model.encode(test)
for sentence, back in zip(test[:3], model.decode(vectors[:3]), strict=True):
    print(f"  {sentence}\n  {'as it was' if back == sentence else f'-> {back}'}")

# 4. How many of them are the same to the last character, also after the vectors were damaged.
guess = sum(a == b for a, b in zip(test, model.decode(vectors.roll(1, 0)), strict=True))
print(f"{'vectors':<24}{'came back':>10}{'tokens right':>14}")
print(f"{'of other sentences':<24}{guess / len(test):10.1%}")
for name, damage in (
    ("as they are", {}),
    ("in bfloat16", {"round_to": torch.bfloat16}),
    ("with 5 % noise", {"noise": 0.05}),
    ("with 40 % noise", {"noise": 0.4}),
):
    found = model.evaluate(test, **damage)
    print(f"{name:<24}{found.exact_match:10.1%}{found.token_accuracy:14.1%}")

# 5. Between two sentences.
first, second = sorted(test, key=len)[len(test) // 4 :][:2]
print("from one sentence to another:")
for between in model.interpolate(first, second, steps=5):
    print(f"  {between}")
