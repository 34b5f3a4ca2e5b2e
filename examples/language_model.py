"""A language model of words or characters, on vecsmith's recurrent layers.

    python examples/language_model.py train TEXT -o model      # perplexity of every epoch
    python examples/language_model.py sample model --temperature 0.8 --prompt "the film"

A line of the text is a sequence y_1 .. y_n. Its probability is the product of those of y_1 .. y_n
and of <eos>, each given <sos> and what stands before it: an embedding, GRU or LSTM layers, and a
softmax whose weight is the embedding's (Press and Wolf 2017, "Using the output embedding to improve
language models"). Dropout draws one mask for a sequence and not one for a step (Gal and Ghahramani
2016, "A theoretically grounded application of dropout in recurrent neural networks"), and so does
DropConnect on the recurrent weights (Merity et al. 2018, "Regularizing and optimizing LSTM language
models").

Lines of unequal length make a batch: the layers are told the ``lengths``, and the softmax sees only
what is a target, so that <pad> costs nothing and changes nothing. The perplexity is of a token:
those of the text and <eos> count, <sos> and <pad> do not. <unk> is one token for everything that is
not in the vocabulary: perplexities compare where the vocabularies are the same.

sentiment.py makes a classifier of such a model.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import vecsmith.nn
from vecsmith import io
from vecsmith.data import Vocabulary

SPECIAL = ("<pad>", "<sos>", "<eos>", "<unk>")
PAD, SOS, EOS, UNK = range(4)
CELLS = {"gru": vecsmith.nn.GRU, "lstm": vecsmith.nn.LSTM}
UNREADABLE = (OSError, EOFError, zlib.error, ValueError)


# --- text -----------------------------------------------------------------------------------------


def read_lines(path: Path) -> list[str]:
    """The lines of a text that hold more than white space; .gz, .bz2 and .xz are unpacked."""
    with io.open_binary(path) as file:
        data = file.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8; got {path}: {error}") from None
    if "\0" in text:
        raise ValueError(f"expected text; got {path}, which holds NUL bytes")
    # Not splitlines, to which more characters than these end a line.
    lines = [line for line in re.split("\r?\n", text) if line.strip()]
    if not lines:
        raise ValueError(f"expected text; got {path}, which holds none")
    return lines


def tokens_of(line: str, level: str) -> list[str]:
    """Characters, or the words and signs of the line in lower case."""
    if level == "char":
        return list(line)
    return re.findall(r"<unk>|\w+(?:'\w+)*|[^\w\s]", line.lower())


def runs(line: list[str], length: int = 8) -> set[tuple[str, ...]]:
    """All so many consecutive tokens of a line; a shorter line as a whole."""
    return {tuple(line[n : n + length]) for n in range(max(len(line) - length, 0) + 1)}


def count_tokens(lines: Iterable[list[str]], min_count: int, limit: int) -> Vocabulary:
    """The tokens that occur ``min_count`` times, at most ``limit`` of them, behind the special."""
    found = Counter(itertools.chain.from_iterable(lines))
    total = found.total()
    kept = [pair for pair in found.most_common() if pair[1] >= min_count and pair[0] != "<unk>"]
    kept = kept[:limit]
    if len(kept) < 2:
        raise ValueError(
            f"expected at least two different tokens that occur {min_count} times; got {len(kept)}"
        )
    words, counts = zip(*kept, strict=True)
    return Vocabulary([*SPECIAL, *words], [0, 0, 0, total - sum(counts), *counts])


def encode(lines: Iterable[list[str]], vocabulary: Vocabulary, limit: int = 200) -> list[Tensor]:
    """<sos>, the tokens and <eos> of each line, as numbers.

    A line of more than ``limit`` steps is cut: the first piece ends with the token that the second
    begins with, so that each token is once a target.
    """
    index, found = vocabulary.index, []
    for line in lines:
        numbers = torch.tensor([SOS, *(index.get(token, UNK) for token in line), EOS])
        found += [numbers[n : n + limit + 1] for n in range(0, len(numbers) - 1, limit)]
    return found


@dataclass(frozen=True)
class Batch:
    """B sequences: what is read, and what is to be said next."""

    tokens: Tensor  # [B, T], with <pad> behind the end
    lengths: Tensor  # [B]
    targets: Tensor  # [N], those of the first sequence first, without padding
    places: Tensor  # [B], of the sequences in the list that they came from

    @property
    def mask(self) -> Tensor:
        """Where there is a token: [B, T]."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]


def batches(
    sequences: list[Tensor], size: int, random: np.random.Generator | None = None
) -> Iterator[Batch]:
    """All sequences once, those of like length together; in random order, if one is given."""
    lengths = np.array([len(sequence) - 1 for sequence in sequences])
    ties = np.arange(len(lengths)) if random is None else random.random(len(lengths))
    order = np.lexsort((ties, lengths))
    starts = np.arange(0, len(order), size)
    for start in starts if random is None else random.permutation(starts):
        places = torch.from_numpy(order[start : start + size])
        chosen = [sequences[place] for place in places]
        yield Batch(
            nn.utils.rnn.pad_sequence([s[:-1] for s in chosen], True, PAD),
            torch.from_numpy(lengths)[places],
            torch.cat([s[1:] for s in chosen]),
            places,
        )


# --- the model ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    """What is needed to build a model, besides its vocabulary."""

    level: str = "word"
    cell: str = "gru"
    dim: int = 256  # of the embedding, and of the last layer, since the two meet in the softmax
    hidden: int = 512  # of the layers before the last
    layers: int = 1
    dropout: float = 0.3
    weight_dropout: float = 0.0


class LanguageModel(nn.Module):
    """The next token, given those before it. <pad> and <sos> are never the next."""

    def __init__(self, vocabulary: Vocabulary, config: Config) -> None:
        super().__init__()
        self.vocabulary, self.config = vocabulary, config
        self.embedding = vecsmith.nn.Embedding(len(vocabulary), config.dim)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        widths = [config.dim, *[config.hidden] * (config.layers - 1), config.dim]
        self.layers = nn.ModuleList(
            CELLS[config.cell](*pair, batch_first=True, weight_dropout=config.weight_dropout)
            for pair in itertools.pairwise(widths)
        )
        self.bias = nn.Parameter(torch.zeros(len(vocabulary)))
        never = torch.zeros(len(vocabulary)).index_fill(0, torch.tensor([PAD, SOS]), -torch.inf)
        self.register_buffer("never", never, persistent=False)

    def locked_dropout(self, rows: Tensor) -> Tensor:
        """Dropout of [B, T, D] with one mask [B, 1, D] for all steps."""
        return rows * functional.dropout(
            torch.ones_like(rows[:, :1]), self.config.dropout, self.training
        )

    def encode(
        self, tokens: Tensor, lengths: Tensor | None = None, states: list[Any] | None = None
    ) -> tuple[Tensor, list[Any]]:
        """tokens [B, T] -> what the last layer says after each step [B, T, D], zero behind the end;
        and the state of each layer."""
        rows, after = self.locked_dropout(self.embedding(tokens)), []
        for layer, state in zip(self.layers, states or [None] * len(self.layers), strict=True):
            rows, state = layer(rows, state, lengths=lengths)
            rows = self.locked_dropout(rows)
            after.append(state)
        return rows, after

    def logits(self, rows: Tensor) -> Tensor:
        """[..., D] -> [..., V]."""
        return functional.linear(rows, self.embedding.weight, self.bias + self.never)

    def loss(self, batch: Batch) -> Tensor:
        """-log p of a token, the mean over the targets of the batch."""
        rows, _ = self.encode(batch.tokens, batch.lengths)
        return functional.cross_entropy(self.logits(rows[batch.mask]), batch.targets)

    def step(self, tokens: Tensor, states: list[Any] | None) -> tuple[Tensor, list[Any]]:
        """For vecsmith.nn.generate: tokens [B] -> logits [B, V], <unk> left out."""
        rows, states = self.encode(tokens[:, None], states=states)
        return self.logits(rows[:, 0]).index_fill(1, torch.tensor([UNK]), -torch.inf), states

    def save(self, folder: Path) -> None:
        """config.json, vocab.txt and model.safetensors: all of them replaced, or none."""
        with io.atomic_folder(folder) as staging:
            (staging / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n")
            self.vocabulary.save(staging / "vocab.txt")
            io.save_safetensors(staging / "model.safetensors", self.state_dict())


def load(folder: Path) -> LanguageModel:
    """The model that ``save`` wrote there. Raises ValueError for a folder that holds no such."""
    with io.read_folder(folder) as find:
        try:
            config = Config(**json.loads(find("config.json").read_text()))
            model = LanguageModel(Vocabulary.load(find("vocab.txt")), config)
            model.load_state_dict(io.load_safetensors(find("model.safetensors"))[0])
            if not all(parameter.isfinite().all() for parameter in model.parameters()):
                raise ValueError("numbers that are not finite")
        except (OSError, TypeError, KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"expected a model in {folder}; got {reason}") from None
    return model.eval()


# --- training -------------------------------------------------------------------------------------


@torch.no_grad()
def perplexity(model: LanguageModel, sequences: list[Tensor], size: int) -> float:
    """exp of the mean of -log p over all targets."""
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for batch in batches(sequences, size):
        total += model.loss(batch) * len(batch.targets)
        count += len(batch.targets)
    return float((total / count).exp())


def unigram_perplexity(vocabulary: Vocabulary, train: list[Tensor], valid: list[Tensor]) -> float:
    """That of the frequencies in ``train``, plus one: what a model has to be better than."""
    counts = torch.cat([s[1:] for s in train]).bincount(minlength=len(vocabulary)).double() + 1
    counts[[PAD, SOS]] = 0
    return float((-(counts / counts.sum()).log()[torch.cat([s[1:] for s in valid])].mean()).exp())


def fit(
    model: nn.Module,
    loss: Callable[[Batch], Tensor],
    train: list[Tensor],
    measure: Callable[[], float],
    options: argparse.Namespace,
    keep: Callable[[], None] = lambda: None,
    groups: list[dict[str, Any]] | None = None,
) -> float:
    """Trains, and leaves the model as it was after the epoch with the least ``measure()``.

    The rate falls to zero over ``options.epochs``; ``options.patience`` epochs that are no better
    than the best end it before. ``keep`` is called after each that is better. ``groups`` are those
    of an optimizer. Returns the least measure.
    """
    random = np.random.default_rng(options.seed)
    makers = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    optimizer = makers[options.optimizer](groups or model.parameters(), lr=options.lr)
    steps = options.epochs * -(-len(train) // options.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
    best, since, state = float("inf"), 0, {}
    for epoch in range(1, options.epochs + 1):
        model.train()
        started, tokens, losses = time.perf_counter(), 0, []
        shuffled = batches(train, options.batch, random)
        for batch in tqdm(shuffled, total=steps // options.epochs, disable=None, leave=False):
            value = loss(batch)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            schedule.step()
            losses.append(value.item())
            tokens += len(batch.targets)
        speed = tokens / (time.perf_counter() - started)
        if not np.isfinite(losses).all():
            raise ValueError(f"the loss is no longer finite; try an --lr below {options.lr}")
        found = measure()
        print(
            f"   epoch {epoch}/{options.epochs}  loss {np.mean(losses):.4f}  "
            f"held out {found:.2f}  {speed:,.0f} tokens/s",
            flush=True,
        )
        since += 1
        if not state or found < best:
            best, since = found, 0
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            keep()
        if since == options.patience:
            break
    model.load_state_dict(state)
    model.eval()
    return best


def run_train(options: argparse.Namespace) -> None:
    folder = options.output
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected -o to be a folder; got the file {folder}")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected -o in a folder that exists; got {folder}")
    lines = read_lines(options.text)
    if options.sentences:
        lines = [part for line in lines for part in re.split(r"(?<=[.!?])\s+", line.strip())]
    lines = [tokens_of(line, options.level) for line in lines]
    if options.without:
        others = itertools.chain.from_iterable(map(read_lines, options.without))
        known = set().union(*(runs(tokens_of(line, options.level)) for line in others))
        lines = [line for line in lines if known.isdisjoint(runs(line))]
    held_out = max(round(options.held_out * len(lines)), 1)
    if len(lines) <= held_out:
        raise ValueError(f"expected at least two lines, one to hold out; got {len(lines)}")
    order = np.random.default_rng(options.seed).permutation(len(lines))
    parts = [[lines[n] for n in order[held_out:]], [lines[n] for n in order[:held_out]]]
    vocabulary = count_tokens(parts[0], options.min_count, options.vocabulary)
    train, valid = (encode(part, vocabulary) for part in parts)
    targets = torch.cat([sequence[1:] for sequence in valid])
    print(
        f"{len(parts[0]):,} lines to train on, {held_out:,} held out, {len(vocabulary):,} tokens; "
        f"of the held-out ones {(targets == UNK).float().mean():.1%} are <unk>\n"
        f"perplexity of the unigrams: {unigram_perplexity(vocabulary, train, valid):.2f}"
    )
    names = Config.__dataclass_fields__
    model = LanguageModel(vocabulary, Config(**{name: getattr(options, name) for name in names}))

    def measure() -> float:
        return perplexity(model, valid, options.batch)

    best = fit(model, model.loss, train, measure, options, keep=lambda: model.save(folder))
    print(f"perplexity {best:.2f}; the model is in {folder}")


# --- sampling -------------------------------------------------------------------------------------


def sample(model: LanguageModel, prompt: str, count: int, **options: Any) -> list[str]:
    """``count`` lines that begin with the prompt. ``options``: those of vecsmith.nn.generate."""
    level, vocabulary = model.config.level, model.vocabulary
    begin = tokens_of(prompt, level)
    unknown = [token for token in begin if token not in vocabulary]
    if unknown:
        raise ValueError(f"expected a --prompt of known tokens; got {' '.join(unknown)}")
    start = torch.tensor([[SOS, *(vocabulary[token] for token in begin)]]).expand(count, -1)
    drawn, _ = vecsmith.nn.generate(model.eval().step, None, start, eos=EOS, **options)
    between = "" if level == "char" else " "
    return [
        between.join([*begin, *(vocabulary.words[n] for n in row if n != EOS)])
        for row in drawn.tolist()
    ]


def run_sample(options: argparse.Namespace) -> None:
    names = ("count", "max_length", "temperature", "top_k", "top_p")
    chosen = {name: getattr(options, name) for name in names}
    print("\n".join(sample(load(options.model), options.prompt, **chosen)))


# --- the command line -----------------------------------------------------------------------------


def within(low: float, high: float, ends: str = "[)", kind: type = float) -> Callable[[str], Any]:
    """A type for argparse: a number in the interval."""

    def number(text: str) -> float:
        value = kind(text)
        above = value >= low if ends[0] == "[" else value > low
        if not (above and (value <= high if ends[1] == "]" else value < high)):
            interval = f"{ends[0]}{low:g}, {high:g}{ends[1]}"
            raise argparse.ArgumentTypeError(f"expected a number in {interval}; got {text}")
        return value

    return number


COUNT = within(1, float("inf"), kind=int)
WHOLE = within(0, 2**63, kind=int)
ABOVE_0 = within(0, float("inf"), "()")
SHARE = within(0, 1)


def add_training_options(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """What ``fit`` reads."""
    values = {"epochs": 10, "batch": 32, "lr": 2e-3, "patience": 2} | defaults
    parser.add_argument("--epochs", type=COUNT, default=values["epochs"], help="at most")
    parser.add_argument("--batch", type=COUNT, default=values["batch"], help="lines")
    parser.add_argument("--optimizer", choices=("adam", "sgd"), default="adam", help=" ")
    parser.add_argument("--lr", type=ABOVE_0, default=values["lr"], help="at first")
    parser.add_argument("--clip", type=ABOVE_0, default=1.0, help="the norm of the gradient")
    parser.add_argument("--patience", type=COUNT, default=values["patience"], help="epochs")
    parser.add_argument("--seed", type=WHOLE, default=1, help="of everything that is drawn")
    parser.add_argument("--threads", type=COUNT, default=torch.get_num_threads(), help=" ")


def read_options(arguments: list[str] | None) -> argparse.Namespace:
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="on the lines of a text", formatter_class=shown)
    train.set_defaults(run=run_train)
    train.add_argument("text", type=Path, help="UTF-8; a line is a sequence")
    train.add_argument("-o", "--output", type=Path, required=True, help="folder of the model")
    train.add_argument("--sentences", action="store_true", help="cut lines behind . ! and ?")
    train.add_argument(
        "--without",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="leave out lines that share 8 tokens in a row with a line of these files",
    )
    train.add_argument("--level", choices=("word", "char"), default="word", help="what a token is")
    train.add_argument("--cell", choices=sorted(CELLS), default="gru", help=" ")
    train.add_argument("--dim", type=COUNT, default=256, help="of embedding and last layer")
    train.add_argument("--hidden", type=COUNT, default=512, help="of the layers before it")
    train.add_argument("--layers", type=COUNT, default=1, help=" ")
    train.add_argument("--dropout", type=SHARE, default=0.3, help="one mask for a sequence")
    train.add_argument("--weight-dropout", type=SHARE, default=0.0, help="of recurrent weights")
    train.add_argument("--min-count", type=COUNT, default=2, help="rarer tokens are <unk>")
    train.add_argument("--vocabulary", type=COUNT, default=20_000, help="tokens, at most")
    train.add_argument("--held-out", type=SHARE, default=0.1, help="share of the lines")
    add_training_options(train)
    draw = commands.add_parser("sample", help="lines from a model", formatter_class=shown)
    draw.set_defaults(run=run_sample)
    draw.add_argument("model", type=Path, help="folder of the model")
    draw.add_argument("--prompt", default="", help="what the lines begin with")
    draw.add_argument("--count", type=COUNT, default=5, help="lines")
    draw.add_argument("--max-length", type=COUNT, default=200, help="tokens")
    draw.add_argument("--temperature", type=within(0, float("inf")), default=1.0, help="0: no draw")
    draw.add_argument("--top-k", type=COUNT, help="draw among so many")
    draw.add_argument("--top-p", type=within(0, 1, "(]"), help="draw among so much")
    draw.add_argument("--seed", type=WHOLE, default=1, help="of the draws")
    draw.add_argument("--threads", type=COUNT, default=torch.get_num_threads(), help=" ")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Runs ``options.run``; what is wrong with the input is one line, and the status 2."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    try:
        options.run(options)
    except UNREADABLE as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def main(arguments: list[str] | None = None) -> int:
    return run(read_options(arguments))


if __name__ == "__main__":
    sys.exit(main())
