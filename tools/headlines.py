"""The ratios that stand for the others: a fixed list, by the bars that the project set itself, not
by how they came out. In the README's table and picture, and on each operator's page.

A region of a file that is written by this tool stands between two comments:
<!-- figures: NAME --> and <!-- end of figures -->.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from result_sections import spread, times

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PICTURES = {
    "light": ROOT / "docs" / "pictures" / "ratios.svg",
    "dark": ROOT / "docs" / "pictures" / "ratios-dark.svg",
}
# Each operator and its page.
OPERATORS = {
    "skipgram": "skipgram.md",
    "embedding_bag": "operators/embedding_bag.md",
    "rnn": "operators/rnn.md",
    "cosine_topk": "operators/cosine_topk.md",
    "als_solve": "operators/als_solve.md",
    "factor_sgd": "operators/factor_sgd.md",
    "spmm": "operators/spmm.md",
    "hals_sweep": "operators/hals_sweep.md",
}
NOT_MEASURED = "not yet measured"


@dataclass(frozen=True)
class Headline:
    """A ratio of a record: its name there, and in plain words what was done, against whom, how."""

    topic: str
    record: str
    ratio: str
    what: str
    peer: str
    setting: str


HEADLINES = (
    Headline(
        *("word2vec", "word2vec_speed_dim100", "dim 100 / gensim"),
        *("skip-gram training", "gensim"),
        "100 dimensions, 5 negatives, 17M words of Wikipedia",
    ),
    Headline(
        *("word2vec", "word2vec_speed_cbow", "CBOW, dim 100 / gensim"),
        *("CBOW training", "gensim"),
        "the same text and options",
    ),
    Headline(
        *("embedding tables", "embedding_bag_step_adam_zipf_64"),
        "adam, zipf-64: in backward / torch",
        *("training step, Adam", "torch.nn"),
        "1M rows of 64, 4,096 bags of 20, Zipf; torch: sparse=True, SparseAdam",
    ),
    Headline(
        *("embedding tables", "embedding_bag_fbgemm_zipf_64", "zipf-64: vecsmith / FBGEMM"),
        *("training step, row-wise Adagrad", "FBGEMM"),
        "the same table and bags",
    ),
    Headline(
        *("recurrent layers", "rnn_lstm_i256_h256_b32_t64"),
        "LSTM i256_h256_b32_t64: vecsmith / torch",
        *("LSTM, forward and backward", "torch.nn"),
        "256 inputs and units, batch 32, 64 steps, float32",
    ),
    Headline(
        *("recurrent layers", "rnn_gru_i256_h256_b32_t64"),
        "GRU i256_h256_b32_t64: vecsmith / torch",
        *("GRU, forward and backward", "torch.nn"),
        "the same shape",
    ),
    Headline(
        *("nearest rows", "cosine_topk_v30522_d312_q8192_k10"),
        "v30522_d312_q8192 k=10: faiss / vecsmith, index",
        *("10 nearest by cosine", "faiss"),
        "8,192 queries, 30,522 rows of 312; exact; faiss: IndexFlatIP",
    ),
    Headline(
        *("nearest rows", "cosine_topk_v30522_d312_q8192_k10"),
        "v30522_d312_q8192 k=10: torch / vecsmith, packing both",
        *("10 nearest by cosine, no index", "torch"),
        "the same; torch: normalize, product, topk",
    ),
    Headline(
        *("ALS", "als_solve_gowalla_f128", "gowalla f=128: implicit / vecsmith, cholesky"),
        *("iteration, exact", "implicit"),
        "Gowalla, 719,081 likes, 128 factors, equal loss",
    ),
    Headline(
        *("ALS", "als_solve_gowalla_f128", "gowalla f=128: implicit / vecsmith, cg"),
        *("iteration, conjugate gradients", "implicit"),
        "the same; our loss is the lower one",
    ),
    Headline(
        *("low rank", "low_rank_truncatedsvd_ml-1m_float32"),
        "TruncatedSVD, ml-1m, float32: scikit-learn / vecsmith",
        *("TruncatedSVD", "scikit-learn"),
        "MovieLens-1M, rank 64, float32, equal residual",
    ),
    Headline(
        *("low rank", "low_rank_nmf_ml-1m_float32"),
        "NMF, ml-1m, float32: scikit-learn / vecsmith",
        *("NMF", "scikit-learn"),
        "the same matrix and rank",
    ),
)
# What an operator's page shows: the ratios of these records.
FIGURES = {
    "skipgram": (
        *("word2vec_speed_dim100", "word2vec_speed_dim300", "word2vec_speed_cbow"),
        "word2vec_speed_hs",
    ),
    "embedding_bag": (
        *("embedding_bag_forward_zipf_64", "embedding_bag_forward_uniform_64"),
        *("embedding_bag_bandwidth", "embedding_bag_step_adam_zipf_64"),
        *("embedding_bag_step_adagrad_zipf_64", "embedding_bag_step_sgd_zipf_64"),
        *("embedding_bag_fbgemm_zipf_64", "embedding_bag_file", "embedding_one_hot"),
    ),
    "rnn": (
        *("rnn_lstm_i256_h256_b32_t64", "rnn_lstm_i256_h256_b32_t64_lengths"),
        *("rnn_lstm_i256_h256_b32_t64_bf16", "rnn_lstm_step", "rnn_gru_i256_h256_b32_t64"),
        *("rnn_gru_i256_h256_b32_t64_lengths", "rnn_gru_i512_h512_b1_t100", "rnn_gru_step"),
        *("rnn_gru_reset_before_i256_h256_b32_t64", "rnn_rnn_i256_h256_b32_t64"),
    ),
    "cosine_topk": (
        *("cosine_topk_v30522_d312_q8192_k1", "cosine_topk_v30522_d312_q8192_k10"),
        *("cosine_topk_v50257_d768_q1024_k10", "cosine_topk_v400000_d300_q1024_k10"),
        *("cosine_topk_v30522_d312_q8192_k10_held_avx2", "cosine_topk_single"),
        "cosine_topk_match_loss",
    ),
    "als_solve": (
        *("als_solve_gowalla_f64", "als_solve_gowalla_f128", "als_solve_gowalla_f256"),
        *("als_solve_ml-1m_f64", "als_solve_ml-1m_f128", "als_solve_ml-1m_f256"),
        *("als_solve_gowalla_f128_to_loss", "als_solve_ml-1m_f128_to_loss"),
        *("als_likes_gowalla_f128", "als_likes_ml-1m_f128"),
        *("als_ratings_ml-1m_cmfrec", "als_ratings_ml-1m_lenskit"),
    ),
    "factor_sgd": (
        *("factor_sgd_ml-1m_f32_t2", "factor_sgd_ml-1m_f128_t2"),
        *("factor_sgd_bpr_ml-1m_f32_t2", "factor_sgd_bpr_ml-1m_f128_t2"),
    ),
    "spmm": (
        *("low_rank_truncatedsvd_ml-1m_float32", "low_rank_truncatedsvd_text_float32"),
        *("low_rank_pca_ml-1m_float32", "low_rank_pca_text_float32"),
    ),
    "hals_sweep": ("low_rank_nmf_ml-1m_float32", "low_rank_nmf_text_float32"),
}


def find(machines: list[list[dict]], name: str) -> dict | None:
    """The record of this name, of the first machine without a GPU that has it."""
    for records in machines:
        for record in records:
            if record["name"] == name and "gpu" not in record["machine"]:
                return record
    return None


def ratio_of(record: dict | None, what: str) -> dict | None:
    """The ratio of this name; None where there is no record, or where a check was red."""
    if record is None or not all(check["passed"] for check in record["agreement"]):
        return None
    return next((r for r in record.get("ratios", []) if r["what"] == what), None)


def _bar(ratio: dict) -> str:
    if "bar" not in ratio:
        return ""
    sign = "" if ratio.get("at_least", True) else "≤ "
    return f"{sign}{ratio['bar']:g}x" + ("" if ratio["reached"] else ", **missed**")


def readme_table(machines: list[list[dict]]) -> list[str]:
    """The table on the README's first screen."""
    lines = ["| | against | times as fast | range | bar | setting, JSON |"]
    lines.append("| --- | --- | ---: | ---: | ---: | --- |")
    topic = ""
    for line in HEADLINES:
        record = find(machines, line.record)
        ratio = ratio_of(record, line.ratio)
        name = f"**{line.topic}**: {line.what}" if line.topic != topic else line.what
        topic = line.topic
        if record is None or ratio is None:
            lines.append(f"| {name} | {line.peer} | {NOT_MEASURED} | | | {line.setting} |")
            continue
        cells = [name, line.peer, f"**{times(ratio['median'])}**"]
        cells += [spread(record, ratio), _bar(ratio)]
        lines.append("| " + " | ".join([*cells, f"[{line.setting}]({record['path']})"]) + " |")
    return lines


def _rows(record: dict) -> list[str]:
    """A row for each ratio of a record whose checks are good."""
    found = [ratio_of(record, ratio["what"]) for ratio in record.get("ratios", [])]
    return [
        f"| {r['what']} | {times(r['median'])} | {spread(record, r)} | {_bar(r)} |"
        for r in found
        if r is not None
    ]


def operator_table(machines: list[list[dict]], operator: str) -> list[str]:
    """The figures on an operator's page: those of the list, and all that a GPU has."""
    # Links from docs/<page> to docs/benchmarks.md.
    up = "../" * OPERATORS[operator].count("/")
    chosen = [find(machines, name) for name in FIGURES[operator]]
    on_cpu = [row for record in chosen if record for row in _rows(record)]
    on_gpu = [
        row
        for records in machines
        for record in records
        if record["name"].startswith(f"gpu_{operator}_")
        for row in _rows(record)
    ]
    lines = []
    for where, rows in (("on a CPU", on_cpu), ("on a GPU", on_gpu)):
        lines += [f"| {where} | ratio | range | bar |", "| --- | ---: | ---: | ---: |"]
        lines += [*(rows or [f"| `{operator}` | {NOT_MEASURED} | | |"]), ""]
    link = f"[Benchmarks]({up}benchmarks.md)"
    return [*lines, f"Settings, times, checks and all other rows: {link}."]


def replaced(text: str, name: str, lines: list[str]) -> str:
    """A text with these lines in its region of this name. Raises ValueError where it has none."""
    pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- end of figures -->)"
    body = "\n" + "\n".join(lines) + "\n\n"
    new, count = re.subn(pattern, lambda m: m[1] + body + m[2], text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected one region of figures called {name}; got {count}")
    return new


def regions(machines: list[list[dict]]) -> dict[Path, str]:
    """The files that have regions, with what belongs into these."""
    text = README.read_text(encoding="utf-8")
    made = {README: replaced(text, "ratios", readme_table(machines))}
    for operator, page in OPERATORS.items():
        path = ROOT / "docs" / page
        text = path.read_text(encoding="utf-8")
        made[path] = replaced(text, operator, operator_table(machines, operator))
    return made


# --- The picture. ---------------------------------------------------------------------------------

COLORS = {
    "light": {"text": "#1f2328", "soft": "#59636e", "grid": "#d1d9e0"},
    "dark": {"text": "#e6edf3", "soft": "#9198a1", "grid": "#3d444d"},
}
# One for each topic, which both backgrounds bear.
FILLS = ("#4c8fd6", "#3fa796", "#d98a3d", "#9a78cf", "#d0637f", "#7f9a3b")
_GOAL: dict[str, Any] = {"linestyle": (0, (1.2, 1.2)), "linewidth": 1.6, "zorder": 4}


def described(machines: list[list[dict]]) -> str:
    """What the picture shows, which is also in its file."""
    found = [(line, ratio_of(find(machines, line.record), line.ratio)) for line in HEADLINES]
    return "; ".join(
        f"{line.topic}, {line.what} against {line.peer}: "
        + (f"{times(r['median'])} ({r['min']:.2f} .. {r['max']:.2f})" if r else NOT_MEASURED)
        for line, r in found
    )


def stale_pictures(machines: list[list[dict]]) -> list[Path]:
    """Pictures of other results. (Their bytes depend on matplotlib's version, what they say does
    not.)"""
    said = f"<dc:description>{described(machines)}</dc:description>"
    return [
        path
        for path in PICTURES.values()
        if not path.exists() or said not in path.read_text(encoding="utf-8")
    ]


def draw(machines: list[list[dict]]) -> None:
    """Writes the pictures where they are not those of these results: a bar for each headline, with
    its range, on a logarithmic scale; for light and for dark pages, without a background."""
    stale = stale_pictures(machines)
    for theme, path in PICTURES.items():
        if path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            _draw(machines, theme, path)


def _draw(machines: list[list[dict]], theme: str, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    color = COLORS[theme]
    found = [(line, ratio_of(find(machines, line.record), line.ratio)) for line in HEADLINES]
    bars = [(line, ratio) for line, ratio in found if ratio is not None]
    topics = list(dict.fromkeys(line.topic for line, _ in bars))
    fills = dict(zip(topics, itertools.cycle(FILLS)))
    style = {"svg.hashsalt": "vecsmith", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    with mpl.rc_context({**style, "font.size": 10, "text.color": color["text"]}):
        figure, axes = plt.subplots(figsize=(10, 0.32 * len(bars) + 0.16 * len(topics) + 0.9))
        aside = axes.get_yaxis_transform()
        bold: dict[str, Any] = {"fontweight": "bold", "va": "center"}
        rows: dict[str, list[float]] = {topic: [] for topic in topics}
        y = 0.0
        for line, ratio in bars:
            y -= 0.5 * (not rows[line.topic] and line.topic != topics[0])
            rows[line.topic].append(y)
            value, low, high = ratio["median"], ratio["min"], ratio["max"]
            axes.barh(y, value - 1, 0.72, left=1, color=fills[line.topic], linewidth=0, zorder=2)
            axes.plot([low, high], [y, y], color=color["text"], linewidth=1.1, zorder=3)
            if "bar" in ratio:
                axes.plot([ratio["bar"]] * 2, [y - 0.36, y + 0.36], **_GOAL, color=color["text"])
            axes.text(1, y, times(value), transform=aside, ha="right", **bold)
            name = f"{line.what} / {line.peer}"
            axes.text(-0.015, y, name, transform=aside, va="center", ha="right")
            y -= 1
        for topic, own in rows.items():
            middle = (own[0] + own[-1]) / 2
            axes.text(-1.02, middle, topic, transform=aside, color=fills[topic], **bold)
        axes.axvline(1, color=color["soft"], linewidth=1.2, zorder=3)
        axes.set_xscale("log")
        axes.set_xlim(0.7, 38)
        axes.set_ylim(y + 0.4, 0.6)
        axes.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
        axes.tick_params(axis="x", colors=color["soft"], length=0)
        axes.grid(axis="x", color=color["grid"], linewidth=0.8, zorder=0)
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        about = "times as fast as the peer: median, range; dotted: what the project set itself"
        axes.text(1, -0.1, about, transform=axes.transAxes, color=color["soft"], ha="right")
        figure.subplots_adjust(left=0.505, right=0.99, top=0.99, bottom=0.115)
        metadata = {"Date": None, "Title": "Measured ratios", "Description": described(machines)}
        figure.savefig(path, transparent=True, metadata=metadata)
        plt.close(figure)
    # Lines that end with spaces, which matplotlib writes, are none of ours.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
