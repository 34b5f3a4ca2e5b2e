"""A classifier of sentences that was a language model first, against one that was not.

    python examples/language_model.py train TEXT -o model
    python examples/sentiment.py model --train NEGATIVE POSITIVE     # a file for each class
    python examples/sentiment.py model --train TRAIN --test TEST     # lines: sentence, tab, class

Both classifiers are the encoder of the language model (embedding and recurrent layers) and a linear
layer on the last, the mean and the greatest of its outputs. For each seed the language model first
goes on with the sentences of the training part, without their classes; its words are added to the
vocabulary. Then the classifier is trained twice with the same settings on the same batches: from
the numbers of the language model, and from random ones. Of each, the epoch counts that is best on a
tenth of the training part, and no test sentence is read before the end (Howard and Ruder 2018,
"Universal language model fine-tuning for text classification"; Dai and Le 2015, "Semi-supervised
sequence learning").
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_model import (
    ABOVE_0,
    COUNT,
    SHARE,
    UNK,
    WHOLE,
    Batch,
    LanguageModel,
    add_training_options,
    batches,
    count_tokens,
    encode,
    fit,
    load,
    perplexity,
    read_lines,
    run,
    tokens_of,
    within,
)
from torch import Tensor, nn

from vecsmith.data import Vocabulary

ARMS = ("from scratch", "pre-trained")


# --- data -----------------------------------------------------------------------------------------


def read_labeled(paths: list[Path]) -> list[tuple[str, str]]:
    """(sentence, class): of one file whose lines are both, or of a file for each class, whose
    number the class is."""
    if len(paths) > 1:
        return [(line, str(n)) for n, path in enumerate(paths) for line in read_lines(path)]
    found = []
    for number, line in enumerate(read_lines(paths[0]), 1):
        sentence, tab, label = line.rpartition("\t")
        if not tab or not sentence.strip() or not label.strip():
            raise ValueError(
                f"expected lines of a sentence, a tab and a class; got {line[:60]!r} in line "
                f"{number} of {paths[0]}. Or give a file for each class"
            )
        found.append((sentence, label.strip()))
    return found


@dataclasses.dataclass
class Part:
    """Sentences as lists of tokens, and the number of the class of each."""

    sentences: list[list[str]]
    labels: Tensor  # [N]

    @classmethod
    def of(cls, pairs: list[tuple[str, str]], classes: list[str], level: str) -> Part:
        return cls(
            [tokens_of(sentence, level) for sentence, _ in pairs],
            torch.tensor([classes.index(label) for _, label in pairs]),
        )


def split(options: argparse.Namespace, seed: int, level: str) -> tuple[dict[str, Part], list[str]]:
    """Parts "train", "valid" and "test", and the classes. Without test files the test part is a
    tenth of the training files, another for each seed up to ten."""
    pairs = read_labeled(options.train)
    order = np.random.default_rng(0).permutation(len(pairs))
    if options.test:
        test = read_labeled(options.test)
    else:
        test = [pairs[n] for n in order[seed % 10 :: 10]]
    known = {sentence.strip() for sentence, _ in test}
    rest = [pairs[n] for n in order if pairs[n][0].strip() not in known]
    classes = sorted({label for _, label in rest})
    strange = {label for _, label in test} - set(classes)
    if len(classes) < 2 or strange:
        raise ValueError(
            f"expected two classes or more, the same in both parts; got {', '.join(classes)} to "
            f"train on{', and ' + ', '.join(sorted(strange)) + ' to test on' if strange else ''}"
        )
    np.random.default_rng(seed).shuffle(rest)
    count = max(len(rest) // 10, 1)
    parts = {"train": rest[count:], "valid": rest[:count], "test": test}
    if not all(parts.values()):
        raise ValueError(f"expected at least 20 sentences; got {len(pairs)}")
    return {name: Part.of(some, classes, level) for name, some in parts.items()}, classes


# --- the model ------------------------------------------------------------------------------------


def extended(model: LanguageModel, more: Vocabulary, dropout: float) -> LanguageModel:
    """The model with more words. To it they were <unk> so far, whose vector they begin with, and
    whose probability they share."""
    old, vocabulary = len(model.vocabulary), model.vocabulary.merged(more)
    config = dataclasses.replace(model.config, dropout=dropout)
    larger = LanguageModel(vocabulary, config)
    larger.layers.load_state_dict(model.layers.state_dict())
    with torch.no_grad():
        new = max(len(vocabulary) - old, 1)
        for ours, theirs in (
            (larger.embedding.weight, model.embedding.weight),
            (larger.bias, model.bias),
        ):
            ours[:old], ours[old:] = theirs, theirs[UNK]
        larger.bias[old:] -= math.log(new)
    return larger


class Classifier(nn.Module):
    """[last output, mean of the outputs, greatest of each] -> scores of the classes."""

    def __init__(self, encoder: LanguageModel, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(encoder.config.dropout)
        self.head = nn.Linear(3 * encoder.config.dim, classes)

    def forward(self, batch: Batch) -> Tensor:
        """Scores [B, classes]."""
        rows, _ = self.encoder.encode(batch.tokens, batch.lengths)  # zero behind the end
        last = rows[torch.arange(len(rows)), batch.lengths - 1]
        mean = rows.sum(1) / batch.lengths[:, None]
        greatest = rows.masked_fill(~batch.mask[:, :, None], -torch.inf).amax(1)
        return self.head(self.dropout(torch.cat([last, mean, greatest], 1)))

    def groups(self, lr: float, decay: float) -> list[dict[str, Any]]:
        """For an optimizer: a layer learns ``decay`` times as fast as the one behind it."""
        modules = [self.head, *reversed(self.encoder.layers), self.encoder.embedding]
        return [
            {"params": list(module.parameters()), "lr": lr * decay**depth}
            for depth, module in enumerate(modules)
        ]


@torch.no_grad()
def accuracy(model: Classifier, sequences: list[Tensor], labels: Tensor, size: int) -> float:
    """Sentences whose class has the highest score, in percent."""
    model.eval()
    right = 0
    for batch in batches(sequences, size):
        right += int((model(batch).argmax(1) == labels[batch.places]).sum())
    return 100 * right / len(sequences)


# --- both classifiers -----------------------------------------------------------------------------


def classify(
    encoder: LanguageModel, parts: dict[str, Part], classes: int, options: argparse.Namespace
) -> float:
    """Trains a classifier; returns its accuracy on the test part."""
    torch.manual_seed(options.seed)
    model = Classifier(encoder, classes)
    # A sentence is one sequence however long it is.
    coded = {
        name: encode(part.sentences, encoder.vocabulary, 1 << 30) for name, part in parts.items()
    }
    labels = {name: part.labels for name, part in parts.items()}
    fit(
        model,
        lambda batch: nn.functional.cross_entropy(model(batch), labels["train"][batch.places]),
        coded["train"],
        lambda: 100 - accuracy(model, coded["valid"], labels["valid"], options.batch),
        options,
        groups=model.groups(options.lr, options.decay),
    )
    return accuracy(model, coded["test"], labels["test"], options.batch)


def compare(options: argparse.Namespace, seed: int) -> dict[str, float]:
    """The accuracy of both classifiers on the test part of one seed."""
    options = argparse.Namespace(**vars(options) | {"seed": seed})
    torch.manual_seed(seed)
    base = load(options.model)
    parts, classes = split(options, seed, base.config.level)
    sentences = parts["train"].sentences
    model = extended(base, count_tokens(sentences, 2, 20_000), options.dropout)
    fresh = LanguageModel(model.vocabulary, model.config)
    sizes = ", ".join(f"{len(part.labels):,} {name}" for name, part in parts.items())
    print(f"seed {seed}: {sizes}; {len(model.vocabulary):,} tokens")
    if options.fresh:
        model = copy.deepcopy(fresh)
    if options.lm_epochs:
        print("   language model, on the training sentences")
        train, valid = (
            encode(parts[name].sentences, model.vocabulary) for name in ("train", "valid")
        )
        settings = vars(options) | {"epochs": options.lm_epochs, "lr": options.lm_lr}
        fit(
            model,
            model.loss,
            train,
            lambda: perplexity(model, valid, options.batch),
            argparse.Namespace(**settings),
        )
    found = {}
    for name, encoder in zip(ARMS, (fresh, model), strict=True):
        print(f"   classifier {name}")
        found[name] = classify(encoder, parts, len(classes), options)
        print(f"   classifier {name}: {found[name]:.2f} % of the test sentences are right")
    return found


def report(runs: list[dict[str, float]]) -> str:
    """The accuracies of both, and the gain."""
    lines = []
    for name in ARMS:
        values = [run[name] for run in runs]
        lines.append(
            f"{name:<14}{statistics.mean(values):6.2f} %  ({min(values):.2f} .. {max(values):.2f})"
        )
    gains = [run[ARMS[1]] - run[ARMS[0]] for run in runs]
    lines.append(
        f"gain          {statistics.mean(gains):+6.2f} points  ({min(gains):+.2f} .. "
        f"{max(gains):+.2f}); the mean of {len(runs)} seeds, and the range"
    )
    return "\n".join(lines)


def record(
    runs: list[dict[str, float]], options: argparse.Namespace, config: dict[str, Any]
) -> dict[str, Any]:
    """The runs as a record of the benchmarks: bench/_runner.py says what is in it."""
    from bench._runner import machine

    samples = {name: [run[name] for run in runs] for name in ARMS}
    names = ("epochs", "batch", "optimizer", "lr", "decay", "lm_epochs", "lm_lr", "threads")
    mean = {name: statistics.mean(values) for name, values in samples.items()}
    return {
        "name": "sentiment",
        "title": f"sentiment of {options.train[0].resolve().parent.name}, {len(runs)} seeds",
        "unit": "%",
        "higher_is_better": True,
        "settings": {
            **config,
            "pre-trained on": options.text,
            **{name: getattr(options, name) for name in (*names, "dropout")},
            "seeds": len(runs),
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": len(runs),
        "agreement": [],
        "scores": {
            name: {"accuracy, %": {"mean": mean[name], "samples": samples[name]}} for name in ARMS
        },
        "differences": [
            {
                "what": "pre-trained: accuracy, points over from scratch",
                "ours": ARMS[1],
                "other": ARMS[0],
                "points": mean[ARMS[1]] - mean[ARMS[0]],
            }
        ],
    }


def run_compare(options: argparse.Namespace) -> None:
    runs = [compare(options, seed) for seed in range(options.seed, options.seed + options.seeds)]
    print(f"\n{report(runs)}")
    if options.record:
        from bench import _runner

        config = dataclasses.asdict(load(options.model).config)
        print(f"written: {_runner.write(record(runs, options, config))}", file=sys.stderr)


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(run=run_compare)
    parser.add_argument("model", type=Path, help="folder that language_model.py train has written")
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="FILE", help=" ")
    parser.add_argument("--test", type=Path, nargs="+", metavar="FILE", help="(None: a tenth)")
    parser.add_argument("--seeds", type=COUNT, default=3, help="how often both are trained")
    parser.add_argument(
        "--lm-epochs",
        type=WHOLE,
        default=2,
        help="of the language model",
    )
    parser.add_argument("--lm-lr", type=ABOVE_0, default=1e-3, help="of it")
    parser.add_argument("--decay", type=within(0, 1, "(]"), default=1.0, help="of the rate")
    parser.add_argument("--dropout", type=SHARE, default=0.5, help=" ")
    parser.add_argument("--fresh", action="store_true", help="take sizes and words of the model")
    parser.add_argument("--text", default="", help="for the record: what MODEL was trained on")
    parser.add_argument(
        "--record", action="store_true", help="write to bench/results (run with PYTHONPATH=.)"
    )
    add_training_options(parser, epochs=3, lr=1e-3, patience=3)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    return run(read_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
