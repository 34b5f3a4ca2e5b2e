"""Word vectors to an nn.Embedding in a classifier: many texts without a label, few with one.

python examples/word_vectors_classifier.py                      # docstrings of this machine
python examples/word_vectors_classifier.py NEGATIVE POSITIVE    # a file per class, a text a line
"""

import argparse
import json
import random
from pathlib import Path

import numpy
import scipy
import sklearn
import torch
from torch import nn

import vecsmith
from vecsmith.data import docstring_sentences

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("files", nargs="*", type=Path, help="one per class, a text a line (UTF-8)")
parser.add_argument("--texts", type=int, default=10_000, help="of a class, at most [10000]")
parser.add_argument("--labels", type=int, default=50, help="texts of a class with a label [50]")
parser.add_argument("--test", type=int, default=1000, help="texts of a class to test on [1000]")
parser.add_argument("--epochs", type=int, default=5, help="of the word vectors [5]")
options = parser.parse_args()
few = options.files and not 2 <= len(options.files) == len(set(options.files))
if few or min(options.texts, options.labels, options.test, options.epochs) < 1:
    parser.error("expected numbers of at least 1, and a file for each of two classes or more")

# 1. The texts of each class, as lists of words. Without files: which package has this docstring?
texts = {}
if options.files:
    for file in options.files:
        if not file.is_file():
            parser.error(f"expected a file of texts; got {file}")
        lines = file.read_text(encoding="utf-8", errors="replace").lower().splitlines()
        texts[str(file)] = [words for line in lines if (words := line.split())]
else:
    folders = {p.__name__: Path(p.__file__).parent for p in (numpy, scipy, sklearn)}
    folders["python"] = Path(json.__file__).parent.parent  # the standard library
    for name, folder in folders.items():
        texts[name] = [words for words in docstring_sentences([folder]) if len(words) > 5]
for name, found in texts.items():
    random.Random(0).shuffle(found)
    del found[options.texts :]
    if len(found) <= options.test + options.labels:
        parser.error(f"expected more texts than --test and --labels; got {len(found)} of {name}")
test, train, unlabeled = [], [], []
for label, found in enumerate(texts.values()):
    test += [(words, label) for words in found[: options.test]]
    unlabeled += found[options.test :]
    train += [(words, label) for words in found[options.test :][: options.labels]]

# 2. Word vectors of all texts but those of the test. No label is looked at.
model = vecsmith.Word2Vec(
    unlabeled, vector_size=64, min_count=3, sample=1e-3, sg=1, epochs=options.epochs, seed=1
)
words = model.wv.key_to_index
print(f"{len(unlabeled):,} texts without labels ({', '.join(texts)}): {len(words):,} word vectors")


# 3. A classifier of torch's: the mean of a text's embeddings, and a linear layer.
class Classifier(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding
        self.output = nn.Linear(embedding.embedding_dim, len(texts))

    def forward(self, ids, mask):
        total = (self.embedding(ids) * mask[..., None]).sum(1)
        return self.output(total / mask.sum(1, keepdim=True).clamp(min=1))


def batch(labeled):
    rows = [torch.tensor([words[w] for w in text if w in words]).long() for text, _ in labeled]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    return ids, mask.float(), torch.tensor([label for _, label in labeled])


def accuracy(embedding):
    torch.manual_seed(0)
    classifier = Classifier(embedding)
    learned = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learned, lr=0.01)
    ids, mask, labels = batch(train)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(ids, mask), labels).backward()
        optimizer.step()
    ids, mask, labels = batch(test)
    return float((classifier(ids, mask).argmax(1) == labels).float().mean())


# 4. The same classifier twice. to_embedding shares the vectors' memory: nothing is copied.
print(f"{len(train):,} texts with labels, {len(test):,} to test on; right answers:")
print(f"  a guess                        {1 / len(texts):6.1%}")
torch.manual_seed(0)
print(f"  embedding of random numbers    {accuracy(nn.Embedding(len(words), 64)):6.1%}")
print(f"  embedding of word vectors      {accuracy(model.wv.to_embedding(freeze=True)):6.1%}")
