"""What the commands that train have in common: options, and what they say on standard error."""

from __future__ import annotations

import enum
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL, TRAINING, RUN = "Model", "Training", "Run"


class Device(str, enum.Enum):
    """Where to train."""

    cpu = "cpu"
    cuda = "cuda"


def _output_folder(value: str) -> Path:
    """The output folder. An empty name (a variable that was not set) is not the current folder."""
    if not str(value):
        raise typer.BadParameter("expected the name of a folder; got an empty one")
    return Path(value)


def output(what: str) -> Any:
    """The option --output: the folder for ``what``."""
    return typer.Option(
        "-o",
        "--output",
        help=f"The folder for the {what}; created if needed.",
        metavar="FOLDER",
        parser=_output_folder,
    )


def resume(what: str) -> Any:
    """The option --resume: from a checkpoint that is of ``what``."""
    return typer.Option(
        "--resume/--no-resume",
        help=f"Go on from a checkpoint in FOLDER, if it is of {what}.",
        rich_help_panel=RUN,
    )


VectorSize = Annotated[
    int,
    typer.Option(
        *("--dim", "-d", "--vector-size"), help="Dimension of the vectors.", rich_help_panel=MODEL
    ),
]
Seed = Annotated[int, typer.Option(help="Of every random draw.", rich_help_panel=TRAINING)]
Threads = Annotated[
    int | None,
    typer.Option(
        *("--threads", "-t"),
        help="Threads [default: one per core].",
        rich_help_panel=RUN,
        show_default=False,
        min=1,
    ),
]
DeviceOption = Annotated[Device, typer.Option(help="Where to train.", rich_help_panel=RUN)]
CheckpointEvery = Annotated[
    float, typer.Option(help="Seconds between two checkpoints.", rich_help_panel=RUN)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.", rich_help_panel=RUN)]


def deterministic(more: str = "") -> Any:
    """The option --deterministic."""
    return typer.Option(
        "--deterministic",
        help=f"The same bits for the same seed{more}.",
        rich_help_panel=TRAINING,
    )


def set_deterministic(value: bool) -> None:
    """For torch. The setter imports torch's compiler: two seconds and 90 MB, for nothing where
    nothing changes."""
    import torch

    if value != torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(value)


def speaker(quiet: bool) -> Callable[[str], None]:
    """What writes a line on standard error, unless ``quiet``; what the models log is said in the
    same way."""
    logging.getLogger("vecsmith").setLevel(logging.ERROR if quiet else logging.INFO)

    def say(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    return say
