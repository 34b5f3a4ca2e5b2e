"""What ``vecsmith bench`` does: measures a few groups of each operator, or all of them, against the
peers that are installed here, and shows how fast each is, the ratios and the part of the machine's
roofline. Nothing is installed, and nothing is written but what is asked for."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import _peers, _runner, roofline
from ._runner import Group, Job, Skipped, reason
from ._tables import Screen

OPERATORS = (
    *("skipgram", "embedding_bag", "rnn", "cosine_topk"),
    *("als_solve", "factor_sgd", "spmm", "hals_sweep"),
)
INTERRUPTED = 130


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    operators: names, none for all of them. full: every group, not the few that stand for all.
    rounds: how often each entry runs. threads: of every program; None for torch's. device: "cpu" or
    "cuda". as_json: the records on standard output, the tables on standard error. json_file, save,
    plot: a file of all records, folders for a file of each record and for pictures. curves: cost
    against size as well.
    """

    operators: Sequence[str] = ()
    full: bool = False
    rounds: int = 5
    threads: int | None = None
    device: str = "cpu"
    as_json: bool = False
    json_file: Path | None = None
    save: Path | None = None
    plot: Path | None = None
    curves: bool = False


@dataclass
class Outcome:
    """What has come of it: records, the groups that gave none, and why."""

    records: list[dict[str, Any]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False

    @property
    def status(self) -> int:
        """130 after Ctrl-C; 1 where a check is red or something of ours failed; 0, also where a
        peer failed."""
        if self.interrupted:
            return INTERRUPTED
        whole = all("ratios" in r or "curves" in r for r in self.records)
        checks = (check for record in self.records for check in record.get("agreement", ()))
        whole = whole and all(check["passed"] for check in checks)
        ours = any(is_ours(name) for r in self.records for name in r.get("failed", ()))
        return 1 if self.failed or ours or not whole else 0


def is_ours(entry: str) -> bool:
    """Whether an entry is of vecsmith, by its name."""
    return entry.startswith(("vecsmith", "native", "cuda", "triton", "reference"))


def chosen_operators(names: Sequence[str]) -> list[str]:
    """The operators that are meant, each once, in the order of the house; all for none.

    Raises: ValueError for a name that is not one.
    """
    unknown = [name for name in names if name not in OPERATORS]
    if unknown:
        raise ValueError(f"expected operators of {', '.join(OPERATORS)}; got {', '.join(unknown)}")
    return [name for name in OPERATORS if not names or name in names]


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def checked(settings: Settings) -> Settings:
    """The settings with their defaults, after everything that can be wrong was looked at: before
    minutes of measuring, not after.

    Raises: ValueError for a number or a name that cannot be; RuntimeError where there is no such
    device; OSError where nothing can be written; ImportError where a picture cannot be drawn.
    """
    operators = chosen_operators(settings.operators)
    if settings.rounds < 1:
        raise ValueError(f"expected rounds >= 1; got {settings.rounds}")
    threads = settings.threads
    if threads is None:
        threads = min(torch.get_num_threads(), processors())
    if not 1 <= threads <= processors():
        raise ValueError(
            f"expected threads in 1 .. {processors()}, the processors that there are; got {threads}"
        )
    if settings.device not in ("cpu", "cuda"):
        raise ValueError(f"expected device 'cpu' or 'cuda'; got {settings.device!r}")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("expected a CUDA device for --device cuda; torch finds none here")
    if settings.plot is not None:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"drawing needs the package {error.name}: pip install 'vecsmith[plot]'"
            ) from None
    for folder in (settings.save, settings.plot):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            _check_writable(folder)
    if settings.json_file is not None:
        file = settings.json_file
        if file.exists() and not file.is_file():
            raise ValueError(f"expected a regular file for JSON; got {file} (--json prints it)")
        _check_writable(file.resolve().parent)
    return replace(settings, operators=operators, threads=threads)


def _check_writable(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(error.errno, f"cannot be written to: {error.strerror}", str(folder)) from None


# --- what there is --------------------------------------------------------------------------------


def jobs_of(operator: str, settings: Settings, scratch: Path) -> list[Job]:
    """The groups of an operator that are asked for."""
    if settings.device == "cuda":
        module = importlib.import_module(f"{__package__}.gpu")
        made = module.groups([operator])
        return [one if isinstance(one, Job) else _as_job(one, operator) for one in made]
    module = importlib.import_module(f"{__package__}.bench_{operator}")
    found = module.offered(settings.threads, scratch)
    return [job for job in found if job.quick or settings.full]


def _as_job(made: Group | Callable[[], Group], operator: str) -> Job:
    if isinstance(made, Group):
        label = made.name.removeprefix("gpu_").removeprefix(f"{operator}_")
        return Job(label, lambda: made)
    return Job(getattr(made, "__name__", operator), made)


def show_list(settings: Settings) -> int:
    """Prints operators with their groups, and the peers with what they would be compared in."""
    settings = checked(replace(settings, json_file=None, save=None, plot=None))
    screen = Screen()
    with tempfile.TemporaryDirectory() as scratch:
        for operator in settings.operators:
            everything = replace(settings, full=True)
            found = jobs_of(operator, everything, Path(scratch))
            screen.listed(operator, [(job.label, job.quick) for job in found])
    chosen = set(settings.operators)
    peers = [peer for peer in _peers.PEERS if chosen & set(peer.operators)]
    screen.peers([(peer, _peers.state(peer.name)) for peer in peers])
    return 0


# --- measuring ------------------------------------------------------------------------------------


def main(settings: Settings) -> int:
    """Measures, prints, writes. Returns the status of the process: see :class:`Outcome`.

    Raises: as :func:`checked`; OSError where a file cannot be written after all.
    """
    settings = checked(settings)
    screen = Screen(sys.stderr if settings.as_json else sys.stdout)
    outcome = Outcome()
    try:
        with _prepared(settings), tempfile.TemporaryDirectory() as scratch:
            _measure(settings, Path(scratch), outcome, screen)
            if settings.curves and settings.device == "cpu":
                _measure_curves(settings, outcome, screen)
    except KeyboardInterrupt:
        outcome.interrupted = True
    except OSError:  # a full disk: what was measured before is not lost with it
        with contextlib.suppress(OSError):
            _write_json(settings, outcome, screen)
        raise
    absent = [] if settings.device == "cuda" else _absent(settings, outcome)
    screen.end(outcome.records, outcome.skipped, outcome.failed, absent, outcome.interrupted)
    _write_json(settings, outcome, screen)
    _draw(settings, outcome, screen)
    return outcome.status


def _absent(settings: Settings, outcome: Outcome) -> list[tuple[_peers.Peer, str]]:
    # After Ctrl-C nobody waits for imports that were not tried before.
    return [] if outcome.interrupted else _peers.absent(settings.operators)


@contextlib.contextmanager
def _prepared(settings: Settings) -> Iterator[None]:
    """Threads as given, for peers that look at the environment too; nothing on standard output but
    ours, and no warnings of others."""
    assert settings.threads is not None
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    os.environ.setdefault("LK_NUM_THREADS", str(settings.threads))  # LensKit's
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads(before)


def _measure(settings: Settings, scratch: Path, outcome: Outcome, screen: Screen) -> None:
    with screen.busy("measuring the roofline"):
        found = roofline.measure(settings.threads, settings.device)
    screen.machine(_runner.machine(settings.device), found)
    with screen.busy("looking for peers"):
        jobs = [
            (operator, job)
            for operator in settings.operators
            for job in jobs_of(operator, settings, scratch)
        ]
    for n, (operator, job) in enumerate(jobs, 1):
        name = f"{operator}: {job.label}"
        try:
            with screen.busy(f"[{n}/{len(jobs)}] {name}"):
                record = _record(operator, job, settings)
        except Skipped as why:
            outcome.skipped[name] = str(why)
            continue
        except Exception as error:
            outcome.failed[name] = reason(error)
            screen.line(f"FAILED: {name}: {reason(error)}")
            continue
        finally:
            gc.collect()  # tables of one group are not there beside those of the next
        _keep(record, settings, outcome)
        screen.group(record)


def _record(operator: str, job: Job, settings: Settings) -> dict[str, Any]:
    group = job.make()
    # The bars of a group were set for one machine.
    group.ratios = [replace(ratio, bar=None) for ratio in group.ratios]
    fresh = group.unit == "MB"  # processes of their own: nothing to warm
    record = _runner.run(
        group, settings.rounds, warmup=not fresh, quiet=True, device=settings.device
    )
    if settings.device == "cuda":
        _floors_of_device(group, record)
    return {"operator": operator, "label": job.label, **record}


def _floors_of_device(group: Group, record: dict[str, Any]) -> None:
    """What the groups of a GPU say of their floor, where they say it themselves."""
    describe = getattr(importlib.import_module(f"{__package__}.gpu"), "describe", None)
    if describe is not None:
        describe(record, group, "cuda", False)
        for name, fraction in record["settings"].get("of_floor", {}).items():
            record["entries"][name]["of_roofline"] = fraction


def _measure_curves(settings: Settings, outcome: Outcome, screen: Screen) -> None:
    for n, operator in enumerate(settings.operators, 1):
        what = f"curves of {operator}"
        try:
            curves = importlib.import_module(f"{__package__}.curves")
            with screen.busy(f"[{n}/{len(settings.operators)}] {what}"):
                records = curves.run(
                    [operator],
                    threads=settings.threads,
                    rounds=settings.rounds,
                    full=settings.full,
                )
        except Exception as error:
            outcome.failed[what] = reason(error)
            screen.line(f"FAILED: {what}: {reason(error)}")
            continue
        for record in records:
            _keep({"operator": operator, **record}, settings, outcome)
            screen.curve(record)


def _keep(record: dict[str, Any], settings: Settings, outcome: Outcome) -> None:
    outcome.records.append(record)
    if settings.save is not None:
        _runner.write(record, settings.save)


def _write_json(settings: Settings, outcome: Outcome, screen: Screen) -> None:
    from vecsmith.io._atomic import atomic_file

    text = json.dumps(outcome.records, indent=1)
    if settings.json_file is not None:
        with atomic_file(settings.json_file, "w") as file:
            file.write(text + "\n")
        screen.note(f"written: {settings.json_file}")
    if settings.as_json:
        print(text, flush=True)


def _draw(settings: Settings, outcome: Outcome, screen: Screen) -> None:
    """The pictures, after the numbers: they can be measured only once."""
    if settings.plot is None:
        return
    from ._plots import ratio_bars

    curve_plot = importlib.import_module(f"{__package__}._curve_plots").curve_plot
    pictures: dict[Path, Callable[[Path], object]] = {}
    if any(record.get("ratios") for record in outcome.records):
        pictures[settings.plot / "ratios.png"] = lambda path: ratio_bars(outcome.records, path)
    for record in outcome.records:
        if "curves" in record:
            path = settings.plot / f"{record['name']}.png"
            pictures[path] = functools.partial(curve_plot, record)
    for path, draw in pictures.items():
        try:
            draw(path)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        screen.note(f"written: {path}")
