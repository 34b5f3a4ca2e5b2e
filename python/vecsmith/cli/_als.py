"""``vecsmith als``: a file of ratings in, a folder of factors out."""

from __future__ import annotations

import enum
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vecsmith.cli import _training
from vecsmith.cli._sentence import _line as one_line
from vecsmith.cli._training import MODEL, TRAINING

if TYPE_CHECKING:
    from vecsmith.data import Interactions


class Method(str, enum.Enum):
    """How each half-step is solved."""

    cholesky = "cholesky"
    cg = "cg"
    block = "block"


class Format(str, enum.Enum):
    """What a file is."""

    text = "text"
    lists = "lists"
    parquet = "parquet"


class Duplicates(str, enum.Enum):
    """What to make of a pair that comes twice."""

    error = "error"
    sum = "sum"
    mean = "mean"
    max = "max"
    last = "last"


_FILE = "Ratings"


def column(value: str | None) -> str | int | None:
    """A column's name, or its position."""
    return int(value) if value is not None and value.isdecimal() else value


def als(
    ratings: Annotated[
        list[Path],
        typer.Argument(
            help="Ratings, plays or clicks: text with columns for user, item and, if there is one, "
            "rating (CSV, TSV, ::, also .gz, .zst), lines 'user item item ...' (--format lists), "
            "or Parquet. Several files are read as one.",
        ),
    ],
    output: Annotated[Path, _training.output("model")],
    explicit: Annotated[
        bool,
        typer.Option(
            "--explicit/--implicit",
            help="Predict ratings, or rank items by feedback that is more or less sure (plays).",
            rich_help_panel=MODEL,
        ),
    ] = False,
    factors: Annotated[
        int,
        typer.Option(
            "--factors",
            "-d",
            "--dim",
            help="Numbers per user and item.",
            rich_help_panel=MODEL,
        ),
    ] = 100,
    regularization: Annotated[
        float | None,
        typer.Option(
            "--regularization",
            "-l",
            help="Lambda [default: 0.01; 0.06 with --explicit].",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    weighted: Annotated[
        bool | None,
        typer.Option(
            "--weighted/--unweighted",
            help="Lambda times the number of a row's ratings, or lambda [default: --unweighted; "
            "--weighted with --explicit].",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            "-a",
            help="Implicit: the confidence of a value is alpha times it [default: 1].",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    biases: Annotated[
        bool | None,
        typer.Option(
            "--biases/--no-biases",
            help="Explicit: with a mean, and a bias for each user and item [default: --biases].",
            rich_help_panel=MODEL,
            show_default=False,
        ),
    ] = None,
    nonnegative: Annotated[
        bool,
        typer.Option(
            "--nonnegative", help="Explicit: factors of at least 0.", rich_help_panel=MODEL
        ),
    ] = False,
    clip: Annotated[
        bool,
        typer.Option(
            "--clip",
            help="Explicit: keep predictions within the ratings seen.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    iterations: Annotated[
        int,
        typer.Option(
            "--iterations",
            "-i",
            "--epochs",
            help="At most so many.",
            rich_help_panel=TRAINING,
        ),
    ] = 15,
    method: Annotated[
        Method | None,
        typer.Option(
            help="Exactly, by conjugate gradients, or in blocks for many factors [default: cg; "
            "cholesky with --explicit].",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    cg_steps: Annotated[
        int, typer.Option(help="Of cg, in each half-step.", rich_help_panel=TRAINING)
    ] = 3,
    block_size: Annotated[int, typer.Option(help="Of block.", rich_help_panel=TRAINING)] = 128,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Stop when the loss falls by less than this part of itself; 0: never.",
            rich_help_panel=TRAINING,
        ),
    ] = 1e-4,
    held_out: Annotated[
        float | None,
        typer.Option(
            help="Explicit: the part of each user's ratings that says when to stop; their RMSE is "
            "shown.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="With --held-out: iterations that may pass without a better RMSE [default: 2].",
            rich_help_panel=TRAINING,
            show_default=False,
        ),
    ] = None,
    seed: _training.Seed = 1,
    user: Annotated[
        str | None,
        typer.Option(help="The users' column: its name, or 0, 1, ...", rich_help_panel=_FILE),
    ] = None,
    item: Annotated[
        str | None, typer.Option(help="The items' column.", rich_help_panel=_FILE)
    ] = None,
    rating: Annotated[
        str | None, typer.Option(help="The ratings' column.", rich_help_panel=_FILE)
    ] = None,
    no_rating: Annotated[
        bool,
        typer.Option("--no-rating", help="Every rating is 1.", rich_help_panel=_FILE),
    ] = False,
    form: Annotated[
        Format | None, typer.Option("--format", help="Of the files.", rich_help_panel=_FILE)
    ] = None,
    sep: Annotated[
        str | None,
        typer.Option(help="What is between the columns of text.", rich_help_panel=_FILE),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Whether the first line of text names the columns.",
            rich_help_panel=_FILE,
            show_default=False,
        ),
    ] = None,
    skip_lines: Annotated[
        int, typer.Option(help="Lines to skip first.", rich_help_panel=_FILE)
    ] = 0,
    encoding: Annotated[str, typer.Option(help="Of text.", rich_help_panel=_FILE)] = "utf-8",
    duplicates: Annotated[
        Duplicates,
        typer.Option(help="Of a pair that comes twice.", rich_help_panel=_FILE),
    ] = Duplicates.error,
    threads: _training.Threads = None,
    device: _training.DeviceOption = _training.Device.cpu,
    resume: Annotated[bool, _training.resume("these ratings and settings")] = True,
    checkpoint_every: _training.CheckpointEvery = 60.0,
    quiet: _training.Quiet = False,
) -> None:
    """Factorize ratings, by alternating least squares.

    The folder gets config.json, model.safetensors (the factors), and the keys and cells that
    vecsmith recommend needs (open them with vecsmith.ALS.load or vecsmith.ExplicitALS.load).

    Examples:

    * **vecsmith als plays.csv -o model/ --factors 128 --alpha 10** : items to rank

    * **vecsmith als ratings.dat -o model/ --explicit --held-out 0.1** : ratings to predict

    * **vecsmith als train.txt -o model/ --format lists --method block --factors 512**

    Ctrl-C leaves a checkpoint; the same command goes on from there.
    """
    from vecsmith.models import _options as check
    from vecsmith.models._factor_training import FactorCheckpoint

    say = _training.speaker(quiet)
    foreign = {
        "--alpha": explicit and alpha is not None,
        "--biases": not explicit and biases is not None,
        "--nonnegative": not explicit and nonnegative,
        "--clip": not explicit and clip,
        "--held-out": not explicit and held_out is not None,
        "--patience": held_out is None and patience is not None,
    }
    for name, given in foreign.items():
        if given:
            needs = {"--alpha": "--implicit", "--patience": "--held-out"}.get(name, "--explicit")
            raise ValueError(f"expected {needs} with {name}")
    if held_out is not None and not 0 < held_out < 1:
        raise ValueError(f"expected --held-out between 0 and 1; got {held_out:g}")
    if no_rating and (rating is not None or explicit):
        raise ValueError("expected --no-rating without --rating and --explicit; got both")
    checkpoint_every = check.finite("--checkpoint-every", checkpoint_every, low=0.0)
    checkpoint = FactorCheckpoint(output, checkpoint_every, resume)
    options: dict[str, Any] = {
        "factors": factors,
        "iterations": iterations,
        "cg_steps": cg_steps,
        "block_size": block_size,
        "method": None if method is None else method.value,
        "calculate_training_loss": True,
        "tolerance": tolerance,
        "num_threads": threads or 0,
        "random_state": seed,
        "device": device.value,
        "checkpoint": checkpoint,
        "progress": False if quiet else None,
    }
    # Only what was given: the others keep the model's own defaults.
    given = {
        "regularization": regularization,
        "weighted_regularization": weighted,
        "alpha": alpha,
        "biases": biases,
        "patience": patience,
        **({"nonnegative": nonnegative, "clip": clip} if explicit else {}),
    }
    options |= {name: value for name, value in given.items() if value is not None}
    model = _model(explicit, options)
    started = time.monotonic()
    reading: dict[str, Any] = {
        "user": column(user),
        "item": column(item),
        "rating": False if no_rating else column(rating),
        "timestamp": False,
        "format": None if form is None else form.value,
        "sep": {r"\t": "\t"}.get(sep, sep) if sep is not None else None,
        "header": header,
        "skip_lines": skip_lines,
        "encoding": encoding,
        "duplicates": duplicates.value,
    }
    with checkpoint.hold():
        every = _read(ratings, reading)
        read, held = (every, None) if held_out is None else every.split_ratio(held_out, seed=seed)
        seconds = time.monotonic() - started
        say(
            f"read {len(read):,} ratings of {read.shape[0]:,} users and {read.shape[1]:,} items "
            f"in {seconds:.1f} s{'' if held is None else f', {len(held):,} held out'}"
        )
        started = time.monotonic()
        callback = None if quiet else _say_iteration
        if explicit:
            model.fit(read, validation=held, callback=callback)
            model.interactions = every  # what is held out is nothing to recommend, either
        else:
            model.fit(read, callback=callback)
        say(f"trained in {time.monotonic() - started:.1f} s")
        model.save(output)
    say(f"saved {model!r} in {output}")
    if len(read):
        user_key, item_key = read.users[0], read.items[int(read.matrix.indices[0])]
        folder = shlex.quote(str(output))
        # Keys are whatever stood in the file.
        say(one_line(f"try: vecsmith recommend {folder} --user {shlex.quote(str(user_key))}"))
        say(one_line(f"     vecsmith similar {folder} --item {shlex.quote(str(item_key))}"))


def _model(explicit: bool, options: dict[str, Any]) -> Any:
    if explicit:
        from vecsmith.models.explicit_als import ExplicitALS

        return ExplicitALS(**options)
    from vecsmith.models.als import ALS

    return ALS(**options)


def _read(paths: list[Path], options: dict[str, Any]) -> Interactions:
    from vecsmith.data import Interactions

    for path in paths:
        if not path.exists():
            raise FileNotFoundError(f"expected a file of ratings; got {path}: no such file")
    return Interactions.read(paths, **options)


def _say_iteration(iteration: int, seconds: float, measured: Any) -> None:
    """A line above the progress bar."""
    from tqdm import tqdm

    measures = measured if isinstance(measured, dict) else {"loss": measured}
    parts = [f"iteration {iteration + 1}"]
    for name, value in measures.items():
        said = {"rmse": "RMSE", "validation_rmse": "held out RMSE"}.get(name, name)
        parts.append(f"{said} {value:.6g}" if name == "loss" else f"{said} {value:.4f}")
    tqdm.write(", ".join([*parts, f"{seconds:.2f} s"]), file=sys.stderr)
