"""``vecsmith neighbors``, ``evaluate`` and ``plot``: what to do with vectors."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vecsmith.models.keyed_vectors import KeyedVectors

_VECTORS = typer.Argument(
    help="A folder written by vecsmith, or a file in word2vec's text or binary format (also .gz)."
)


class Method(str, enum.Enum):
    """How to bring the vectors down to two dimensions."""

    pca = "pca"
    tsne = "tsne"


def load_vectors(path: Path) -> KeyedVectors:
    """Vectors from a model folder or from a file in word2vec's formats, told apart by a look at it.

    Raises: FileNotFoundError, ValueError.
    """
    from vecsmith.models.keyed_vectors import KeyedVectors

    if not path.exists():
        raise FileNotFoundError(f"expected a folder or file of vectors; got {path}: no such file")
    if path.is_dir():
        return KeyedVectors.load(path)
    return KeyedVectors.load_word2vec_format(path, binary=None)


def neighbors(
    vectors: Annotated[Path, _VECTORS],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help="Words, each a question of its own, or a sum: king - man + woman. "
            "None: questions are read from standard input, one per line.",
            show_default=False,
        ),
    ] = None,
    positive: Annotated[
        list[str] | None, typer.Option("--positive", "-p", help="A word to add (repeat).")
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option("--negative", "-m", help="A word to subtract (repeat).")
    ] = None,
    topn: Annotated[
        int, typer.Option("--topn", "-n", min=1, help="How many neighbors to show.")
    ] = 10,
    restrict_vocab: Annotated[
        int | None, typer.Option(min=1, help="Look among the most frequent words only.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per question.")] = False,
) -> None:
    """Show the words nearest to a word, by cosine similarity.

    Examples:

    * **vecsmith neighbors vectors/ king**

    * **vecsmith neighbors vectors/ king - man + woman** : what is to woman as king is to man?

    * **vecsmith neighbors GoogleNews.bin -n 3 paris london** : two questions

    * **echo "paris - france + italy" | vecsmith neighbors vectors/**
    """
    wv = load_vectors(vectors)

    def check(plus: list[str], minus: list[str]) -> None:
        for word in plus + minus:
            if word not in wv:
                raise KeyError(f"expected a word of the vocabulary; got {word!r}")

    def answer(plus: list[str], minus: list[str]) -> None:
        check(plus, minus)
        found = wv.most_similar(plus, minus, topn=topn, restrict_vocab=restrict_vocab)
        _print_neighbors(plus, minus, found, as_json)

    if positive or negative:
        if words:
            raise ValueError("expected words, or --positive and --negative; got both")
        return answer(positive or [], negative or [])
    if words:
        questions = list(_questions(words))
        for plus, minus in questions:
            check(plus, minus)  # all of them before the first answer
        for plus, minus in questions:
            answer(plus, minus)
        return None
    if sys.stdin is None:
        raise ValueError("expected words, or questions on standard input; got one that is closed")
    answered = failed = 0
    for line in sys.stdin:
        try:
            questions = list(_questions(line.split()))
        except ValueError as error:
            questions, failed = [], failed + 1
            print(f"error: {error}", file=sys.stderr)
        for plus, minus in questions:
            try:
                answer(plus, minus)
                answered += 1
            except KeyError as error:
                failed += 1
                print(f"error: {error.args[0]}", file=sys.stderr)
        sys.stdout.flush()
    if failed and not answered:
        raise typer.Exit(2)


def _questions(words: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Sums if there is a lone + or -, else one question for each word."""
    fields = [field for word in words for field in word.split()]
    if not any(field in ("+", "-") for field in fields):
        for field in fields:
            yield [field], []
        return
    plus: list[str] = []
    minus: list[str] = []
    side, expected = plus, True
    for field in fields:
        if field in ("+", "-"):
            side, expected = (plus if field == "+" else minus), True
        elif expected:
            side.append(field)
            expected = False
        else:
            raise ValueError(f"expected + or - before {field!r}; got {' '.join(fields)!r}")
    if expected or not plus + minus:
        raise ValueError(f"expected a word after the last + or -; got {' '.join(fields)!r}")
    yield plus, minus


def _print_neighbors(
    plus: list[str], minus: list[str], found: list[tuple[str, float]], as_json: bool
) -> None:
    if as_json:
        record = {
            "positive": plus,
            "negative": minus,
            "neighbors": [{"word": word, "similarity": _finite(s, 6)} for word, s in found],
        }
        return print(json.dumps(record, ensure_ascii=False))
    print(" + ".join(plus) + "".join(f" - {word}" for word in minus))
    width = max((len(word) for word, _ in found), default=0)
    for word, similarity in found:
        print(f"  {word:<{width}}  {similarity:.4f}")
    return None


def _finite(value: float, digits: int | None = None) -> float | None:
    """The number, rounded; None for nan, which JSON does not have."""
    if not math.isfinite(value):
        return None
    return float(value) if digits is None else round(value, digits)


def evaluate(
    vectors: Annotated[Path, _VECTORS],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Word pairs with judgments (word word number; more columns are left out) or "
            "analogies (lines of four words under ': section' lines); also .gz. Which of them a "
            "file is, is seen from its lines."
        ),
    ],
    restrict_vocab: Annotated[
        int, typer.Option(min=1, help="Use only the most frequent words.")
    ] = 300_000,
    case_insensitive: Annotated[
        bool, typer.Option("--case-insensitive/--case-sensitive", help="Whether case matters.")
    ] = True,
    delimiter: Annotated[
        str | None,
        typer.Option(help="Of pairs [default: tab, comma or space, as found].", show_default=False),
    ] = None,
    sections: Annotated[
        bool, typer.Option("--sections", help="Show each section of analogies.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure vectors against human judgments and analogies.

    Pairs give Spearman's and Pearson's correlation, analogies the share of right answers, both
    with the questions left out because a word is not in the vocabulary.

    Examples:

    * **vecsmith evaluate vectors/ wordsim353.tsv questions-words.txt**

    * **vecsmith evaluate vectors/ simlex.tsv.gz --json**
    """
    from vecsmith import eval as measures

    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"expected a file of pairs or analogies; got {file}")
    kinds = [_kind(file, delimiter) for file in files]
    wv = load_vectors(vectors)
    rows: list[dict[str, Any]] = []
    for file, (kind, separator) in zip(files, kinds, strict=True):
        if kind == "analogies":
            rows += _analogies(wv, file, restrict_vocab, case_insensitive, sections)
        else:
            found = measures.word_pairs(
                wv.weight,
                wv.index_to_key,
                file,
                delimiter=separator,
                restrict_vocab=restrict_vocab,
                case_insensitive=case_insensitive,
            )
            rows.append(
                {
                    "file": str(file),
                    "kind": "pairs",
                    "spearman": _finite(found.spearman[0]),
                    "pearson": _finite(found.pearson[0]),
                    "asked": found.pairs,
                    "unknown": found.oov_ratio / 100,
                    "invalid": found.invalid,
                }
            )
    if as_json:
        return print(json.dumps(rows, ensure_ascii=False, indent=2))
    return _print_rows(rows)


def _analogies(
    wv: KeyedVectors, file: Path, restrict_vocab: int, case_insensitive: bool, sections: bool
) -> list[dict[str, Any]]:
    from vecsmith import eval as measures

    found = measures.analogies(
        wv.weight,
        wv.index_to_key,
        file,
        restrict_vocab=restrict_vocab,
        case_insensitive=case_insensitive,
    )
    rows = [
        {
            "file": str(file),
            "kind": "analogies",
            "section": section.name,
            "accuracy": section.score if section.total else None,
            "right": len(section.correct),
            "asked": section.total,
        }
        for section in [*(found.sections if sections else []), found.total]
    ]
    rows[-1].update(unknown=found.unknown / found.questions, invalid=found.invalid)
    return rows


def _kind(file: Path, delimiter: str | None) -> tuple[str, str | None]:
    """("analogies", None) or ("pairs", delimiter), from the first lines that are no comments.

    Raises: ValueError if it is neither.
    """
    from vecsmith.eval._word_pairs import parse_word_pair
    from vecsmith.io._open import lines

    for number, raw in enumerate(lines(file)):
        line = raw.decode("utf-8", "replace")
        if line.startswith(":"):
            return "analogies", None
        if not line.strip() or line.startswith("#"):
            continue
        candidates = (delimiter,) if delimiter is not None else ("\t", ",", None)
        for separator in candidates:
            if parse_word_pair(line, separator) is not None:
                return "pairs", separator
        # A line of column names may come first.
        if number > 5:
            break
    raise ValueError(
        f"expected {file} to hold word pairs (word, word, number) or analogies under ': section' "
        "lines; got neither"
    )


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}%"

    def coefficient(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "kind", "score", "asked", "unknown", "invalid lines"):
        table.add_column(name, justify="left" if name in ("file", "kind") else "right")
    for row in rows:
        if row["kind"] == "pairs":
            spearman, pearson = coefficient(row["spearman"]), coefficient(row["pearson"])
            score = f"Spearman {spearman}  Pearson {pearson}"
        else:
            score = f"{percent(row['accuracy'])} ({row['right']:,} right)"
        # A section of the analogies has only its name and its score.
        total = "unknown" in row
        name = Path(row["file"]).name if total else f"  {row['section']}"
        unknown, invalid = (percent(row["unknown"]), f"{row['invalid']:,}") if total else ("", "")
        table.add_row(name, row["kind"], score, f"{row['asked']:,}", unknown, invalid)
    # Piped output is not cut to some terminal's width.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)


def plot(
    vectors: Annotated[Path, _VECTORS],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The picture to write, .png.", metavar="PNG")
    ],
    method: Annotated[
        Method, typer.Option(help="PCA (quick) or t-SNE (keeps neighbors together).")
    ] = Method.tsne,
    top: Annotated[
        int, typer.Option("--top", "-n", min=3, help="How many of the most frequent words.")
    ] = 200,
    stop_words: Annotated[
        bool,
        typer.Option("--stop-words", help="With English function words (the, of, ...)."),
    ] = False,
    title: Annotated[str | None, typer.Option(help="Over the map.", show_default=False)] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the layout.")] = 0,
) -> None:
    """Draw a map of the most frequent words.

    Examples:

    * **vecsmith plot vectors/ -o map.png**

    * **vecsmith plot vectors/ -o map.png --method pca --top 100**
    """
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"expected a folder for the picture; got {output.parent}")
    wv = load_vectors(vectors)
    from vecsmith.plot import word_map

    drawn = word_map(
        wv,
        output,
        topn=top,
        method=method.value,
        title=title,
        seed=seed,
        skip_stop_words=not stop_words,
    )
    print(f"drew {len(drawn.words)} words in {output}", file=sys.stderr)
