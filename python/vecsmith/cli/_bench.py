"""``vecsmith bench``: how fast the operators are here, against the peers that are installed."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer

_OUTPUT = "Output"


class Device(str, enum.Enum):
    """Where to measure."""

    cpu = "cpu"
    cuda = "cuda"


def _named(value: str) -> Path:
    if not value:
        raise typer.BadParameter("expected the name of a file or folder; got an empty one")
    return Path(value)


def _output(metavar: str, what: str) -> Any:
    return typer.Option(metavar=metavar, help=what, parser=_named, rich_help_panel=_OUTPUT)


def bench(
    operators: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="OPERATOR",
            help="skipgram, embedding_bag, rnn, cosine_topk, als_solve, factor_sgd, spmm, "
            "hals_sweep; none: all of them.",
            show_default=False,
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All groups, not the few that stand for all: long.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="How often each entry is run.")] = 5,
    threads: Annotated[
        int | None,
        typer.Option(
            *("--threads", "-t"),
            min=1,
            help="Of every program [default: torch's].",
            show_default=False,
        ),
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    curves: Annotated[
        bool | None,
        typer.Option(
            "--curves/--no-curves",
            help="Cost against size as well [default: with --plot].",
            show_default=False,
        ),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Show the groups and the peers; measure nothing.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the records as JSON; the tables go to standard error.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    json_file: Annotated[Path | None, _output("FILE", "Write all records to it.")] = None,
    save: Annotated[Path | None, _output("FOLDER", "Write each record to a file there.")] = None,
    plot: Annotated[Path | None, _output("FOLDER", "Draw ratios and curves.")] = None,
) -> None:
    """Measure the operators on this machine, against torch and the peers that are installed.

    Nothing is installed, downloaded or written unless you ask for it; peers that are missing are
    named, with how to get them. Every group checks first that all give the same answers.

    Examples:

    * **vecsmith bench** : some groups of every operator

    * **vecsmith bench cosine_topk rnn --rounds 9** : these two, for steadier ratios

    * **vecsmith bench --list** : what there is, and which peers are installed

    * **vecsmith bench --save results/ --plot results/** : a file for each group, and pictures
    """
    from vecsmith.bench import command

    settings = command.Settings(
        operators=operators or (),
        full=full,
        rounds=rounds,
        threads=threads,
        device=device.value,
        as_json=as_json,
        json_file=json_file,
        save=save,
        plot=plot,
        curves=plot is not None if curves is None else curves,
    )
    raise typer.Exit(command.show_list(settings) if listed else command.main(settings))
