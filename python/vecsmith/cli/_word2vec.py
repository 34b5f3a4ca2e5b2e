"""``vecsmith word2vec``: a text in, a folder of vectors out."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Annotated

import typer

from vecsmith.cli import _training
from vecsmith.cli._training import MODEL, RUN, TRAINING


class SharedNegatives(str, enum.Enum):
    """Who shares the noise words."""

    window = "window"
    pair = "pair"


_TEXT = "Text"


def word2vec(
    corpus: Annotated[
        str,
        typer.Argument(
            help="A text, one sentence per line, words parted by spaces: a file (plain, .gz, "
            ".zst), a folder of files, or - for standard input."
        ),
    ],
    output: Annotated[Path, _training.output("vectors")],
    vector_size: _training.VectorSize = 100,
    sg: Annotated[
        bool, typer.Option("--sg/--cbow", help="Skip-gram or CBOW.", rich_help_panel=MODEL)
    ] = True,
    window: Annotated[
        int,
        typer.Option(
            "--window", "-w", help="Largest distance of a context word.", rich_help_panel=MODEL
        ),
    ] = 5,
    negative: Annotated[
        int | None,
        typer.Option(
            help="Noise words per positive [default: 5; 0 with --hs].",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    hs: Annotated[
        bool,
        typer.Option(
            "--hs",
            help="Hierarchical softmax instead of negative sampling.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    shared_negatives: Annotated[
        SharedNegatives,
        typer.Option(
            help="One set of noise words for a whole window (fast), or one for each pair "
            "(word2vec's own).",
            rich_help_panel=MODEL,
        ),
    ] = SharedNegatives.window,
    ns_exponent: Annotated[
        float,
        typer.Option(
            help="Noise words are drawn proportionally to count^this.", rich_help_panel=MODEL
        ),
    ] = 0.75,
    cbow_mean: Annotated[
        bool,
        typer.Option(
            "--cbow-mean/--cbow-sum",
            help="CBOW: mean or sum of the window.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    shrink_windows: Annotated[
        bool,
        typer.Option(
            "--shrink-windows/--fixed-windows",
            help="Draw each word's reach from 1..window, or take the whole window.",
            rich_help_panel=MODEL,
        ),
    ] = True,
    min_count: Annotated[
        int,
        typer.Option(help="Leave out words seen less often.", rich_help_panel=_TEXT),
    ] = 5,
    max_final_vocab: Annotated[
        int | None,
        typer.Option(
            "--max-final-vocab",
            "--max-vocab",
            help="Keep at most so many words.",
            rich_help_panel=_TEXT,
        ),
    ] = None,
    max_vocab_size: Annotated[
        int | None,
        typer.Option(help="Bound on distinct words while counting.", rich_help_panel=_TEXT),
    ] = None,
    sample: Annotated[
        float,
        typer.Option(
            help="Threshold for thinning out frequent words; 0: none. 1e-4 or 1e-5 suits large "
            "texts.",
            rich_help_panel=_TEXT,
        ),
    ] = 1e-3,
    cache_dir: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the encoded text, reused by later runs [default: FOLDER/corpus].",
            rich_help_panel=_TEXT,
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(
            "--epochs", "--iter", "-e", help="Passes over the text.", rich_help_panel=TRAINING
        ),
    ] = 5,
    alpha: Annotated[
        float, typer.Option(help="Learning rate at the start.", rich_help_panel=TRAINING)
    ] = 0.025,
    min_alpha: Annotated[
        float, typer.Option(help="Learning rate at the end.", rich_help_panel=TRAINING)
    ] = 0.0001,
    seed: _training.Seed = 1,
    deterministic: Annotated[bool, _training.deterministic(", with any number of workers")] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--threads",
            "-t",
            help="Threads [default: one per core].",
            rich_help_panel=RUN,
            show_default=False,
        ),
    ] = None,
    device: _training.DeviceOption = _training.Device.cpu,
    resume: Annotated[bool, _training.resume("this text and these settings")] = True,
    checkpoint_every: _training.CheckpointEvery = 60.0,
    text: Annotated[
        bool,
        typer.Option(
            "--text",
            help="Also write FOLDER/vectors.txt (word2vec's text format).",
            rich_help_panel=RUN,
        ),
    ] = False,
    binary: Annotated[
        bool,
        typer.Option(
            "--binary",
            help="Also write FOLDER/vectors.bin (word2vec's binary format).",
            rich_help_panel=RUN,
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Only errors, and what could not be written.",
            rich_help_panel=RUN,
        ),
    ] = False,
) -> None:
    """Train word vectors on a text.

    The folder gets config.json, vocab.txt and model.safetensors (open them with
    vecsmith.Word2Vec.load or vecsmith.KeyedVectors.load), and corpus/, the encoded text, which
    later runs reuse and you may delete.

    Examples:

    * **vecsmith word2vec corpus.txt -o vectors/** : the usual case

    * **vecsmith word2vec corpus.txt.gz -o vectors/ --dim 300 --sample 1e-4 --threads 8**

    * **zcat dump.gz | ./clean | vecsmith word2vec - -o vectors/ --cbow --window 8**

    Ctrl-C leaves a checkpoint; the same command goes on from there.
    """
    from vecsmith.models._driver import text_check
    from vecsmith.models.word2vec import Word2Vec

    if corpus != "-" and not Path(corpus).exists():
        raise FileNotFoundError(f"expected a text file or folder; got {corpus}: no such file")

    say = _training.speaker(quiet)
    _training.set_deterministic(deterministic)
    model = Word2Vec(
        vector_size=vector_size,
        alpha=alpha,
        min_alpha=min_alpha,
        window=window,
        min_count=min_count,
        max_vocab_size=max_vocab_size,
        max_final_vocab=max_final_vocab,
        sample=sample,
        seed=seed,
        workers=workers,
        sg=int(sg),
        hs=int(hs),
        negative=(0 if hs else 5) if negative is None else negative,
        ns_exponent=ns_exponent,
        cbow_mean=int(cbow_mean),
        epochs=epochs,
        shrink_windows=shrink_windows,
        shared_negatives=shared_negatives.value,
        device=device.value,
        checkpoint=output,
        checkpoint_every=checkpoint_every,
        resume=resume,
        cache_dir=output / "corpus" if cache_dir is None else cache_dir,
        progress=False if quiet else None,
    )
    checkpoint = model.checkpoint
    assert checkpoint is not None
    with checkpoint.hold():
        started = time.monotonic()
        model._build_vocab(corpus, accept=text_check(checkpoint, model._plan()))
        read = time.monotonic() - started
        say(
            f"read {model.corpus_total_words:,} words in {read:.1f} s: "
            f"{len(model.wv):,} words of vocabulary, {model.corpus_count:,} sentences"
        )
        resumes = resume and checkpoint.path.exists()
        _, raw_words = model.train()
        seconds = model.total_train_time
        rate = "" if resumes else f": {raw_words / max(seconds, 1e-9):,.0f} words/s"
        say(
            f"trained {epochs} epochs of {model.corpus_total_words:,} words in {seconds:.1f} s "
            f"with {model.workers} threads{rate}"
        )
        model.save(output)
        if text:
            model.wv.save_word2vec_format(output / "vectors.txt", binary=False)
        if binary:
            model.wv.save_word2vec_format(output / "vectors.bin", binary=True)
    say(f"saved {len(model.wv):,} vectors of dimension {vector_size} in {output}")
    say(f"try: vecsmith neighbors {output} {model.wv.index_to_key[min(20, len(model.wv) - 1)]}")
