"""``vecsmith neighbors``, ``evaluate`` and ``plot``: what to do with vectors."""

from __future__ import annotations

import enum
import json
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
    answered = asked = 0
    for line in sys.stdin:
        for plus, minus in _questions(line.split()):
            asked += 1
            try:
                answer(plus, minus)
                answered += 1
            except KeyError as error:
                print(f"error: {error.args[0]}", file=sys.stderr)
        sys.stdout.flush()
    if asked and not answered:
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
            "neighbors": [{"word": word, "similarity": round(s, 6)} for word, s in found],
        }
        return print(json.dumps(record, ensure_ascii=False))
    print(" + ".join(plus) + "".join(f" - {word}" for word in minus))
    width = max((len(word) for word, _ in found), default=0)
    for word, similarity in found:
        print(f"  {word:<{width}}  {similarity:.4f}")
    return None


def evaluate(
    vectors: Annotated[Path, _VECTORS],
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Word pairs with judgments (word word number) or analogies (lines of four words "
            "under ': section' lines); also .gz. Which of them a file is, is seen from its lines."
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
            pearson, spearman, unknown = wv.evaluate_word_pairs(
                file,
                delimiter=separator,
                restrict_vocab=restrict_vocab,
                case_insensitive=case_insensitive,
            )
            rows.append(
                {
                    "file": str(file),
                    "kind": "pairs",
                    "spearman": float(spearman[0]),
                    "pearson": float(pearson[0]),
                    "asked": round(_pairs(file, separator) * (1 - float(unknown) / 100)),
                    "unknown": float(unknown) / 100,
                }
            )
    if as_json:
        return print(json.dumps(rows, ensure_ascii=False, indent=2))
    return _print_rows(rows)


def _analogies(
    wv: KeyedVectors, file: Path, restrict_vocab: int, case_insensitive: bool, sections: bool
) -> list[dict[str, Any]]:
    questions = sum(1 for line in _lines(file) if line.split() and not line.startswith(":"))
    _, found = wv.evaluate_word_analogies(
        file, restrict_vocab=restrict_vocab, case_insensitive=case_insensitive
    )
    rows = []
    for section in found if sections else found[-1:]:
        right, wrong = len(section["correct"]), len(section["incorrect"])
        row = {
            "file": str(file),
            "kind": "analogies",
            "section": section["section"],
            "accuracy": right / (right + wrong) if right + wrong else None,
            "right": right,
            "asked": right + wrong,
        }
        if section is found[-1]:
            row["unknown"] = 1 - (right + wrong) / questions if questions else 0.0
        rows.append(row)
    return rows


def _lines(file: Path) -> Iterator[str]:
    from vecsmith.io import open_binary

    with open_binary(file) as stream:
        for line in stream:
            yield line.decode("utf-8", "replace")


def _kind(file: Path, delimiter: str | None) -> tuple[str, str]:
    """("analogies", "") or ("pairs", delimiter), from the first lines that are no comments.

    Raises: ValueError if it is neither.
    """
    for number, line in enumerate(_lines(file)):
        if line.startswith(":"):
            return "analogies", ""
        if not line.strip() or line.startswith("#"):
            continue
        candidates = (delimiter,) if delimiter is not None else ("\t", ",", " ")
        for separator in candidates:
            fields = line.strip().split(separator)
            if len(fields) >= 3 and _is_number(fields[2]):
                return "pairs", separator
        # A line of column names may come first.
        if number > 5:
            break
    raise ValueError(
        f"expected {file} to hold word pairs (word, word, number) or analogies under ': section' "
        "lines; got neither"
    )


def _pairs(file: Path, separator: str) -> int:
    """The number of lines that are a pair with its judgment."""
    fields = (line.strip().split(separator) for line in _lines(file) if not line.startswith("#"))
    return sum(1 for row in fields if len(row) >= 3 and _is_number(row[2]))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}%"

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("file", "kind", "score", "asked", "unknown"):
        table.add_column(name, justify="left" if name in ("file", "kind") else "right")
    for row in rows:
        if row["kind"] == "pairs":
            score = f"Spearman {row['spearman']:.3f}  Pearson {row['pearson']:.3f}"
            name = Path(row["file"]).name
            table.add_row(name, "pairs", score, f"{row['asked']:,}", percent(row["unknown"]))
        else:
            total = "unknown" in row
            name = Path(row["file"]).name if total else f"  {row['section']}"
            score = f"{percent(row['accuracy'])} ({row['right']:,} right)"
            unknown = percent(row["unknown"]) if total else ""
            table.add_row(name, "analogies", score, f"{row['asked']:,}", unknown)
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
