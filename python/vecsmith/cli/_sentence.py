"""``vecsmith sentence``: sentences to vectors, and vectors back to their sentences."""

from __future__ import annotations

import enum
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from unicodedata import category

import typer

from vecsmith.cli import _training
from vecsmith.cli._training import MODEL, TRAINING

if TYPE_CHECKING:
    import numpy as np

    from vecsmith.models.sentence_autoencoder import SentenceAutoencoder

app = typer.Typer(
    name="sentence",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Vectors of sentences that can be turned back into their sentence: **train**, **encode**, "
    "**decode**, **interpolate**.",
)

_TEXT = "Text"
_FOLDER = typer.Argument(help="A folder written by vecsmith sentence train.")


class Encoder(str, enum.Enum):
    """What makes the vector."""

    rotation = "rotation"
    rnn = "rnn"
    lstm = "lstm"
    bilstm = "bilstm"
    gru = "gru"
    residual_rnn = "residual_rnn"


class Tokenizer(str, enum.Enum):
    """What is trained on the text."""

    bpe = "bpe"
    wordpiece = "wordpiece"
    word = "word"


class Loss(str, enum.Enum):
    """What the decoder is trained for."""

    match = "match"
    cross_entropy = "cross_entropy"


class Method(str, enum.Enum):
    """How a token is chosen."""

    greedy = "greedy"
    multinomial = "multinomial"


def _input_lines(source: str) -> list[str]:
    """The lines of a file (also .gz, .zst), or of standard input for "-". Raises ValueError where
    they are not UTF-8."""
    from vecsmith.io._open import lines

    if source == "-":
        if sys.stdin is None:
            raise ValueError("expected lines on standard input; got one that is closed")
        given: Iterable[bytes] = sys.stdin.buffer
    elif not Path(source).is_file():
        raise FileNotFoundError(f"expected a file; got {source}: no such file")
    else:
        given = lines(source)
    found = []
    for number, line in enumerate(given, 1):
        try:
            found.append(line.decode("utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            where = "standard input" if source == "-" else source
            raise ValueError(f"{where}: line {number} is not UTF-8: {error}") from None
    return found


def _line(sentence: str) -> str:
    """A sentence as a line of text, whatever was decoded: what would end the line, or tell a
    terminal what to do, is a space."""
    return "".join(" " if category(c) == "Cc" or c in "\u2028\u2029" else c for c in sentence)


def _load(folder: Path) -> SentenceAutoencoder:
    from vecsmith.models.sentence_autoencoder import SentenceAutoencoder

    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of a sentence model; got {folder}: no such one")
    return SentenceAutoencoder.load(folder, progress=False)


@app.command()
def train(
    corpus: Annotated[
        str,
        typer.Argument(
            help="A text, one sentence per line: a file (plain, .gz, .zst), or - for standard "
            "input."
        ),
    ],
    output: Annotated[Path, _training.output("model")],
    encoder: Annotated[
        Encoder,
        typer.Option(
            help="The closed form, learned in seconds, or a recurrent layer that begins as it.",
            rich_help_panel=MODEL,
        ),
    ] = Encoder.rotation,
    vector_size: _training.VectorSize = 512,
    token_vectors: Annotated[
        Path | None,
        typer.Option(
            help="A folder of word vectors that the tokens are given.", rich_help_panel=MODEL
        ),
    ] = None,
    meaning: Annotated[
        Path | None,
        typer.Option(
            help="A folder of word vectors whose mean the vectors begin with, so that their "
            "cosines are those of meaning.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Recurrent: what each token leaves of the next.", rich_help_panel=MODEL),
    ] = None,
    hidden_size: Annotated[
        int | None,
        typer.Option(help="Recurrent: units of the decoder.", rich_help_panel=MODEL),
    ] = None,
    embedding_size: Annotated[
        int | None,
        typer.Option(help="Recurrent: size of the token vectors.", rich_help_panel=MODEL),
    ] = None,
    feedback: Annotated[
        bool | None,
        typer.Option(
            "--feedback/--no-feedback",
            help="Recurrent: whether the decoder is told what it has written.",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="bpe, wordpiece or word, trained on the text; or the file of a tokenizer (JSON).",
            rich_help_panel=_TEXT,
        ),
    ] = "bpe",
    vocab_size: Annotated[int, typer.Option(help="Tokens at most.", rich_help_panel=_TEXT)] = 8000,
    max_length: Annotated[
        int, typer.Option(help="Tokens of a sentence at most.", rich_help_panel=_TEXT)
    ] = 64,
    truncate: Annotated[
        bool,
        typer.Option(
            "--truncate", help="Cut longer sentences instead of refusing.", rich_help_panel=_TEXT
        ),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", "-e", help="Recurrent: passes at most.", rich_help_panel=TRAINING),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Recurrent: sentences of a step.", rich_help_panel=TRAINING),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Recurrent: the rate, in parts of a parameter's size.", rich_help_panel=TRAINING
        ),
    ] = None,
    loss: Annotated[
        Loss | None,
        typer.Option(
            help="Recurrent: squared error of the wrong tokens, or cross-entropy.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    consistency: Annotated[
        float | None,
        typer.Option(
            help="Recurrent: weight of the loss that re-encodes what was decoded.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(
            help="Noise that vectors must bear, in parts of their length.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Recurrent: the part of the text that says when to stop.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Recurrent: epochs that may pass without a better result.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    seed: _training.Seed = 1,
    deterministic: Annotated[bool, _training.deterministic()] = False,
    threads: _training.Threads = None,
    device: _training.DeviceOption = _training.Device.cpu,
    resume: Annotated[bool, _training.resume("this text and these settings")] = True,
    checkpoint_every: _training.CheckpointEvery = 60.0,
    quiet: _training.Quiet = False,
) -> None:
    """Train a model of sentences.

    The folder gets config.json, tokenizer.json and model.safetensors (open them with
    vecsmith.SentenceAutoencoder.load).

    Examples:

    * **vecsmith sentence train captions.txt -o model/** : the closed form

    * **vecsmith sentence train captions.txt.gz -o model/ --encoder gru --dim 256 --epochs 5**

    Ctrl-C leaves a checkpoint of a recurrent model; the same command goes on from there.
    """
    import torch

    from vecsmith.models._sentence_training import SentenceCheckpoint
    from vecsmith.models.keyed_vectors import KeyedVectors
    from vecsmith.models.sentence_autoencoder import SentenceAutoencoder

    say = _training.speaker(quiet)
    _training.set_deterministic(deterministic)
    if threads is not None:
        torch.set_num_threads(threads)
    recurrent = encoder is not Encoder.rotation
    # Only what was given: the others keep the model's own defaults.
    options: dict[str, Any] = {
        "decay": decay,
        "hidden_size": hidden_size,
        "embedding_size": embedding_size,
        "feedback": feedback,
    }
    fitting: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "alpha": alpha,
        "loss": None if loss is None else loss.value,
        "consistency": consistency,
        "held_out": held_out,
        "patience": patience,
    }
    (fitting if recurrent else options)["noise"] = noise
    options = {name: value for name, value in options.items() if value is not None}
    fitting = {name: value for name, value in fitting.items() if value is not None}
    if not recurrent:
        foreign = [name for name in (*options, *fitting) if name != "noise"]
        if foreign:
            flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
            raise ValueError(f"expected a recurrent --encoder with {flags}; got rotation")
    model = SentenceAutoencoder(
        vector_size=vector_size,
        encoder=encoder.value,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        max_length=max_length,
        truncate=truncate,
        token_embeddings=None if token_vectors is None else KeyedVectors.load(token_vectors),
        meaning=None if meaning is None else KeyedVectors.load(meaning),
        seed=seed,
        device=device.value,
        progress=False if quiet else None,
        **options,
    )
    texts = [line for line in _input_lines(corpus) if line]
    if not texts:
        raise ValueError(f"expected sentences in {corpus}; got none")
    say(f"read {len(texts):,} sentences")
    started = time.monotonic()
    checkpoint = SentenceCheckpoint(output, checkpoint_every, resume)
    with checkpoint.hold():
        if recurrent:
            fitting["checkpoint"] = checkpoint
            fitting["after_epoch"] = None if quiet else _say_epoch
        model.fit(texts, **fitting)
        model.save(output)
        if recurrent:
            checkpoint.remove()
    seconds = time.monotonic() - started
    say(f"trained in {seconds:.1f} s; saved {model!r} in {output}")
    say(f'try: vecsmith sentence interpolate {output} "{texts[0]}" "{texts[-1]}"')


def _say_epoch(entry: dict[str, float]) -> None:
    """A line above the progress bar."""
    from tqdm import tqdm

    parts = [f"epoch {entry['epoch']:g}"]
    parts += [f"loss {entry['loss']:.4f}"] if "loss" in entry else []
    if "exact_match" in entry:
        parts.append(f"held out: exact match {entry['exact_match']:.2%}")
        parts.append(f"tokens {entry['token_accuracy']:.2%}")
    tqdm.write(", ".join(parts), file=sys.stderr)


@app.command()
def encode(
    model: Annotated[Path, _FOLDER],
    sentences: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sentences. None: one per line of --input or of standard input.",
            show_default=False,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option("--input", "-i", help="A file of sentences, one per line."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="A .npy file [B, D]. None: a line of numbers per sentence."
        ),
    ] = None,
) -> None:
    """Turn sentences into vectors.

    Examples:

    * **vecsmith sentence encode model/ "A dog runs." "Two men talk."**

    * **vecsmith sentence encode model/ -i captions.txt -o vectors.npy**
    """
    import numpy as np

    if sentences and source is not None:
        raise ValueError("expected sentences, or a file of them with --input; got both")
    if output is not None and output.suffix != ".npy":
        raise ValueError(f"expected --output to end in .npy; got {output}")
    loaded = _load(model)
    vectors = loaded.encode(sentences or _input_lines(source or "-")).cpu().numpy()
    if output is not None:
        from vecsmith.io import atomic_file

        with atomic_file(output) as file:
            np.save(file, vectors, allow_pickle=False)
        return
    for row in vectors:
        # Nine digits are a float32 to the last bit.
        print(" ".join(f"{value:.9g}" for value in row.tolist()))


def _read_vectors(source: str) -> np.ndarray:
    """[B, D] of a .npy file, or of lines of numbers. Raises ValueError naming the line."""
    import numpy as np

    if source != "-" and source.endswith(".npy"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"expected a file; got {source}: no such file")
        try:
            found = np.load(source, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{source}: not a .npy file of numbers ({error})") from None
        if found.dtype.kind not in "fiu":
            raise ValueError(f"{source}: expected numbers; got {found.dtype}")
        return found.astype(np.float32)
    rows: list[list[float]] = []
    for number, line in enumerate(_input_lines(source), 1):
        if not line.strip():
            continue
        try:
            rows.append([float(part) for part in line.split()])
        except ValueError as error:
            raise ValueError(f"{source}: line {number}: expected numbers ({error})") from None
        if len(rows[-1]) != len(rows[0]):
            raise ValueError(
                f"{source}: line {number}: expected {len(rows[0])} numbers, as in the lines "
                f"before; got {len(rows[-1])}"
            )
    if not rows:
        raise ValueError(f"expected vectors in {source}; got none")
    return np.array(rows, dtype=np.float32)


@app.command()
def decode(
    model: Annotated[Path, _FOLDER],
    vectors: Annotated[
        str,
        typer.Argument(help="A .npy file [B, D], a text of one vector per line, or - for that."),
    ] = "-",
    method: Annotated[
        Method, typer.Option(help="Take the nearest token, or draw.")
    ] = Method.greedy,
    temperature: Annotated[float, typer.Option(help="How even a draw is.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 1,
) -> None:
    """Turn vectors back into their sentences, one per line.

    Examples:

    * **vecsmith sentence decode model/ vectors.npy**

    * **vecsmith sentence encode model/ "A dog runs." | vecsmith sentence decode model/**
    """
    import torch

    loaded = _load(model)
    generator = torch.Generator().manual_seed(seed)
    found = torch.from_numpy(_read_vectors(vectors))
    for sentence in loaded.decode(found, method.value, temperature, generator=generator):
        print(_line(sentence))


@app.command()
def interpolate(
    model: Annotated[Path, _FOLDER],
    first: Annotated[str, typer.Argument(help="A sentence.")],
    second: Annotated[str, typer.Argument(help="Another.")],
    steps: Annotated[int, typer.Option("--steps", "-n", help="Sentences to show.")] = 7,
) -> None:
    """Show the sentences on the line between the vectors of two.

    Examples:

    * **vecsmith sentence interpolate model/ "A dog runs." "Two men talk."**
    """
    for sentence in _load(model).interpolate(first, second, steps):
        print(_line(sentence))
