"""The recurrent layer of an existing model, swapped for vecsmith's: the same losses, another speed.

python examples/swap_lstm.py                # characters of docstrings
python examples/swap_lstm.py TEXT           # of your text; a line is a sequence
python examples/swap_lstm.py --cell GRU
"""

import argparse
import copy
import itertools
import json
import math
import random
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import vecsmith
from vecsmith.data import docstring_sentences

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("text", nargs="?", type=Path, help="a line is a sequence (UTF-8)")
parser.add_argument("--cell", choices=("LSTM", "GRU", "RNN"), default="LSTM")
parser.add_argument("--hidden", type=int, default=256, help="units of the layer [256]")
parser.add_argument("--batch", type=int, default=32, help="lines of a batch [32]")
parser.add_argument("--steps", type=int, default=100, help="batches to train on [100]")
options = parser.parse_args()
if min(options.hidden, options.batch, options.steps) < 1:
    parser.error("expected --hidden, --batch and --steps of at least 1")

# 1. Lines of unequal length, as numbers of characters.
if options.text is None:
    email = Path(json.__file__).parent.parent / "email"  # a package of the standard library
    lines = [" ".join(words) for words in docstring_sentences([email])]
elif options.text.is_file():
    lines = options.text.read_text(encoding="utf-8", errors="replace").splitlines()
else:
    parser.error(f"expected a text file; got {options.text}")
lines = [line for line in lines if len(line) > 1]
characters = {c: n for n, c in enumerate(sorted(set("".join(lines))))}
rows = [torch.tensor([characters[c] for c in line]) for line in lines]
if len(rows) < options.batch:
    parser.error(f"expected at least --batch lines of two characters; got {len(rows)}")
random.Random(0).shuffle(rows)
endless = itertools.cycle(rows)
batches = [[next(endless) for _ in range(options.batch)] for _ in range(options.steps)]


# 2. A language model as it may be in a project: torch's layers, and packed sequences.
class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(characters), 64)
        self.rnn = getattr(nn, options.cell)(64, options.hidden)
        self.output = nn.Linear(options.hidden, len(characters))

    def forward(self, batch):
        read = pack_sequence([row[:-1] for row in batch], enforce_sorted=False)
        wanted = pack_sequence([row[1:] for row in batch], enforce_sorted=False)
        states, _ = self.rnn(read._replace(data=self.embedding(read.data)))
        return nn.functional.cross_entropy(self.output(states.data), wanted.data)


torch.manual_seed(0)
theirs = LanguageModel()

# 3. accelerate() swaps, in place, what has a faster layer. It leaves an LSTM alone, which is no
#    faster when all rows are of one length; with unequal lengths it is, so we take it by name:
#    vecsmith.nn.LSTM has torch's arguments and state_dict.
ours = vecsmith.accelerate(copy.deepcopy(theirs), verbose=True)
if options.cell == "LSTM":
    ours.rnn = vecsmith.nn.LSTM(64, options.hidden)
    ours.rnn.load_state_dict(theirs.rnn.state_dict())
print(f"torch.nn: {type(theirs.rnn).__module__}; ours: {type(ours.rnn).__module__}")


# 4. Both trained from the same numbers on the same batches, in turn.
models = {"torch.nn": theirs, "vecsmith": ours}
optimizers = {name: torch.optim.Adam(model.parameters(), 3e-3) for name, model in models.items()}
losses, rates = {name: [] for name in models}, {name: [] for name in models}
for batch in batches:
    for name, model in models.items():
        started = time.perf_counter()
        optimizers[name].zero_grad()
        loss = model(batch)
        loss.backward()
        optimizers[name].step()
        rates[name].append(sum(map(len, batch)) / (time.perf_counter() - started))
        losses[name].append(loss.item() / math.log(2))
print(f"{'':<10}{'bits per character: first, last':>34}{'characters/s':>16}")
for name in models:
    print(f"{name:<10}{losses[name][0]:24.4f}{losses[name][-1]:10.4f}{median(rates[name]):16,.0f}")
apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
print(f"losses differ by {apart:.1g} at most over {len(batches)} steps of {options.batch} lines")
print(f"vecsmith is {median(rates['vecsmith']) / median(rates['torch.nn']):.2f} times as fast")
