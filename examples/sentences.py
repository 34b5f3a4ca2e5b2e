"""Sentence vectors of several sizes, and how many of the sentences come back from them.

    python examples/sentences.py FOLDER                  # train.en, test_2016_flickr.en
    python examples/sentences.py FOLDER --sts sts-test.csv --words WORDS

FOLDER is Multi30k's English side, plain or .gz. Everything is trained on train.en; the sentences of
the test file that have 5 to 30 words are encoded and decoded, with nothing but the vector, and
must come back to the last character. Twice: from the vector as it is, and after rounding it to
bfloat16 and adding Gaussian noise of 1 % of its norm, so that nothing is hidden in the last bits.

The closed form is measured as it was first thought of, and with one thing more each time:

    plain       all tokens as loud as each other, cancelled one by one; the length is told
    falling     each token above the sum of those after it
    beam        several beginnings are kept
    n-grams     a language model of the training sentences beside a single beginning
    both        the default of SentenceAutoencoder
    meaning     that, behind the weighted mean of word vectors (with --words: a folder that
                ``vecsmith word2vec`` has written), in half the numbers but at most 256

and, where --forms names them, recurrent encoders and decoders, which begin as "falling" and are
trained for at most --epochs with the match loss: rnn, lstm, bilstm, gru, residual_rnn.

With --sts it also prints Spearman's correlation of the vectors' cosines with people's judgments of
how alike two sentences are, for each, and for the plain mean of the word vectors.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vecsmith
from vecsmith import KeyedVectors, SentenceAutoencoder
from vecsmith import eval as measures
from vecsmith.models.sentence_autoencoder import Reconstruction, read_sentences

FORMS: dict[str, dict[str, Any]] = {
    "plain": {"gamma": 1.0, "language_model": 0, "beam": 1},
    "falling": {"language_model": 0, "beam": 1},
    "beam": {"language_model": 0},
    "n-grams": {"beam": 1},
    "both": {},
    "meaning": {},
}
RECURRENT = ("rnn", "lstm", "bilstm", "gru", "residual_rnn")
BLURS: dict[str, dict[str, Any]] = {
    "clean": {},
    "blurred": {"round_to": torch.bfloat16, "noise": 0.01},
}


def find(folder: Path, name: str) -> Path:
    """The file of that name, plain or .gz."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"expected {name} or {name}.gz in {folder}; got neither")


def measure(model: SentenceAutoencoder, sentences: list[str], lengths_told: bool, **blur: Any):
    """``model.evaluate``; the lengths told, where asked."""
    if not lengths_told:
        return model.evaluate(sentences, **blur)
    decoder: Any = model.decoder
    whole, lengths = decoder.search, model.tokens.encode(sentences)[1]
    begin = 0

    def told(vectors: Tensor, *rest: Any) -> Tensor:
        nonlocal begin
        begin += len(vectors)
        return whole(vectors, *rest, lengths=lengths[begin - len(vectors) : begin])[0]

    decoder.decode = told
    try:
        return model.evaluate(sentences, **blur)
    finally:
        del decoder.decode


def plain_mean(words: KeyedVectors) -> Any:
    """Sentences to the mean of the vectors of their words."""
    table = words.weight.detach()

    def encode(sentences: list[str]) -> Tensor:
        rows = []
        for sentence in sentences:
            found = re.findall(r"[^\W\d_]+", sentence.lower())
            known = [words.key_to_index[word] for word in found if word in words.key_to_index]
            rows.append(table[known].mean(0) if known else torch.zeros(table.shape[1]))
        return torch.stack(rows)

    return encode


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    train = read_sentences(None, find(options.folder, "train.en"))
    test = read_sentences(None, find(options.folder, f"{options.split}.en"))
    test = [sentence for sentence in test if 5 <= len(sentence.split()) <= 30]
    words = None if options.words is None else KeyedVectors.load(options.words)
    print(f"{len(train)} sentences to train on, {len(test)} of {options.split}", flush=True)
    if options.sts is not None and words is not None:
        mean = measures.sts(plain_mean(words), options.sts)
        print(f"STS of the mean of the word vectors: {mean:.4f}")
    print(
        f"{'D':>5} {'form':12} {'fit s':>6} {'exact':>8} {'tokens':>7} {'blurred':>8} "
        f"{'tokens':>7} {'BLEU':>7} {'cosine':>7} {'decode s':>8} {'STS':>7}"
    )
    rows, tokenizer = [], options.tokenizer
    for size in options.sizes:
        for form in options.forms:
            chosen = dict(FORMS.get(form, {"encoder": form}))
            training = {"epochs": options.epochs} if form in RECURRENT else {}
            if form == "meaning":
                if words is None:
                    continue
                chosen |= {"meaning": words, "meaning_size": min(256, size // 2, words.vector_size)}
            began = time.perf_counter()
            model = SentenceAutoencoder(
                vector_size=size,
                tokenizer=tokenizer,
                vocab_size=options.vocab_size,
                truncate=True,
                seed=options.seed,
                **chosen,
            ).fit(train, **training)
            fitted = time.perf_counter() - began
            tokenizer = model.tokens.tokenizer  # the same for all that follow
            found: dict[str, Reconstruction] = {}
            for name, blur in BLURS.items():
                began = time.perf_counter()
                found[name] = measure(model, test, form == "plain", **blur)
            decoded = time.perf_counter() - began
            sts = None if options.sts is None else measures.sts(model.encode, options.sts)
            rows.append(
                {"size": size, "form": form, "fit_seconds": fitted, "decode_seconds": decoded}
                | {name: asdict(one) for name, one in found.items()}
                | {"sts": sts}
            )
            clean, blurred = found["clean"], found["blurred"]
            print(
                f"{size:5} {form:12} {fitted:6.1f} {100 * clean.exact_match:8.2f} "
                f"{100 * clean.token_accuracy:7.2f} {100 * blurred.exact_match:8.2f} "
                f"{100 * blurred.token_accuracy:7.2f} {100 * blurred.bleu:7.2f} "
                f"{blurred.cosine:7.4f} {decoded:8.1f} " + ("" if sts is None else f"{sts:7.4f}"),
                flush=True,
            )
    return rows


# The bars: percent of the sentences that come back from the blurred vector, by size, of the best
# form; of the recurrent ones the tokens at 1024.
BARS = {128: 40.0, 256: 85.0, 512: 98.0, 1024: 99.0}
TOKEN_BAR = 95.0


def record(rows: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The rows as a record of the benchmarks: bench/_runner.py says what is in it."""
    from bench._runner import machine

    def percent(value: float) -> dict[str, float]:
        return {"mean": 100 * value}

    scores = {
        f"{row['form']}, D={row['size']}": {
            "exact, %": percent(row["clean"]["exact_match"]),
            "exact, blurred": percent(row["blurred"]["exact_match"]),
            "tokens": percent(row["clean"]["token_accuracy"]),
            "tokens, blurred": percent(row["blurred"]["token_accuracy"]),
            "BLEU, blurred": percent(row["blurred"]["bleu"]),
            "cosine, blurred": {"mean": row["blurred"]["cosine"]},
            "STS Spearman": percent(float("nan") if row["sts"] is None else row["sts"]),
            "fit, s": {"mean": row["fit_seconds"]},
        }
        for row in rows
    }
    bars = []
    for size, bar in BARS.items():
        sized = [row for row in rows if row["size"] == size]
        if sized:
            best = 100 * max(row["blurred"]["exact_match"] for row in sized)
            what = f"exact match, blurred, best form at D={size}"
            bars.append((what, best, bar))
    tokens = [
        100 * row["blurred"]["token_accuracy"]
        for row in rows
        if row["form"] in RECURRENT and row["size"] == 1024
    ]
    if tokens:
        bars.append(("tokens, blurred, best recurrent form at D=1024", max(tokens), TOKEN_BAR))
    return {
        "name": f"sentences_{options.split}",
        "title": f"sentences of {options.split} that come back from their vector",
        "unit": "%",
        "higher_is_better": True,
        "settings": {"tokenizer": options.tokenizer, "vocabulary": options.vocab_size}
        | {name: getattr(options, name) for name in ("epochs", "seed", "threads")},
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "rounds": 1,
        "agreement": [],
        "scores": scores,
        "floors": [
            {"what": what, "value": value, "bar": bar, "reached": value >= bar}
            for what, value, bar in bars
        ],
    }


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="with train.en and the test file")
    parser.add_argument("--split", default="test_2016_flickr", help="name of the test file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256, 512, 1024], help="D")
    forms = [*FORMS, *RECURRENT]
    parser.add_argument("--forms", nargs="+", choices=forms, default=list(FORMS), help=" ")
    parser.add_argument("--epochs", type=int, default=4, help="of a recurrent form, at most")
    parser.add_argument("--tokenizer", default="bpe", help="bpe, wordpiece, word or a path")
    parser.add_argument("--vocab-size", type=int, default=8000, help="of the tokenizer")
    parser.add_argument("--words", type=Path, help="folder of word vectors")
    parser.add_argument("--sts", type=Path, help="a file of the STS benchmark, plain or .gz")
    parser.add_argument("--seed", type=int, default=1, help="of the fixed vectors")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help=" ")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    parser.add_argument(
        "--record", action="store_true", help="write to bench/results (run with PYTHONPATH=.)"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = read_options(arguments)
    torch.set_num_threads(options.threads)
    try:
        rows = run(options)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if options.json is not None:
        result = {"vecsmith": vecsmith.__version__, "torch": torch.__version__, "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.record:
        from bench import _runner

        print(f"written: {_runner.write(record(rows, options))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
