"""The command ``vecsmith``: word2vec, sentence, als, recommend, similar, neighbors, evaluate, plot,
bench, info.

``main`` is the entry point. Whatever goes wrong is one line on standard error and exit code 2 (a
traceback with ``--debug``); Ctrl-C and SIGTERM end with 130.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated

import typer

from vecsmith.cli import _loads  # noqa: F401

# isort: split
from vecsmith.cli import _als, _bench, _info, _recommend, _sentence, _vectors, _word2vec
from vecsmith.models._checkpoint import TrainingInterrupted, interrupt_on_terminate

FAILED, INTERRUPTED = 2, 130

app = typer.Typer(
    name="vecsmith",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Train word vectors fast, and use them.\n\n"
        "Start with **vecsmith word2vec corpus.txt -o vectors/**, then ask "
        "**vecsmith neighbors vectors/ king**; or with **vecsmith als ratings.csv -o model/**, "
        "then **vecsmith recommend model/ --user 42**. Each command explains itself with "
        "**--help**."
    ),
)


for _function in (
    _word2vec.word2vec,
    _als.als,
    _recommend.recommend,
    _recommend.similar,
    _vectors.neighbors,
    _vectors.evaluate,
    _vectors.plot,
    _bench.bench,
    _info.info,
):
    app.command(_function.__name__)(_function)
app.add_typer(_sentence.app)


def _version(value: bool) -> None:
    if value:
        import vecsmith

        typer.echo(f"vecsmith {vecsmith.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (any position).")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Only here to be listed by --help: main() takes --debug out of the arguments."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # People add it to the end of the line that failed; after "--" it would be somebody's word.
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in options
    if debug:
        arguments.remove("--debug")
    _utf8()
    before = signal.signal(signal.SIGTERM, interrupt_on_terminate)
    try:
        with warnings.catch_warnings(), _log_lines():
            warnings.showwarning = _say_warning
            code = _run(arguments, debug)
    finally:
        signal.signal(signal.SIGTERM, before)
    sys.exit(code)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        # Not app(arguments): that ends an interrupt, while it parses too, without a word.
        command = typer.main.get_command(app)
        try:
            with command.make_context("vecsmith", arguments) as context:
                command.invoke(context)
            code = 0
        except typer.Exit as end:
            code = end.exit_code
        sys.stdout.flush()
        return code
    except (BrokenPipeError, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 1:
            raise
        # The reader (head, less) has all it wants; rich ends the process by a 1 then. Python would
        # flush once more at exit.
        _drop_output()
        return 0
    except KeyboardInterrupt as stop:
        return _stopped(stop)
    except BaseException as error:
        if debug:
            raise
        _say_error(error)
        return FAILED


def _stopped(stop: KeyboardInterrupt) -> int:
    if isinstance(stop, TrainingInterrupted) and stop.checkpoint is not None:
        _error_line(
            f"stopped. The state of training is in {stop.checkpoint}: "
            "give the same command again to go on"
        )
    elif isinstance(stop, TrainingInterrupted):
        _error_line("stopped. No checkpoint could be written: training will start anew")
    else:
        _error_line("stopped. What was saved before is unchanged")
    return INTERRUPTED


def _say_error(error: BaseException) -> None:
    usage = getattr(error, "format_message", None)  # click's and typer's own exceptions
    if usage is not None:
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "vecsmith"
        return _error_line(f"error: {usage()} (see {path} --help)")
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
        if error.filename is not None:
            text = f"{error.filename}: {text}"
    elif isinstance(error, KeyError) and error.args:
        text = str(error.args[0])
    if not isinstance(error, (ValueError, TypeError, OSError, LookupError, RuntimeError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    _error_line(f"error: {text or type(error).__name__}")


def _say_warning(message: Warning | str, *where: object, **more: object) -> None:
    _error_line(f"warning: {message}")


class _Lines(logging.Handler):
    """What the models log, in the form of the command's other lines."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        _error_line(prefix + record.getMessage())


@contextlib.contextmanager
def _log_lines() -> Iterator[None]:
    logger, handler = logging.getLogger("vecsmith"), _Lines()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _error_line(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


def _drop_output() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _utf8() -> None:
    """Words are UTF-8 whatever the locale says; a terminal that cannot show one gets a "?"."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
