"""`make bench`: every benchmark that needs nothing but this repository, one after another.

On the docstrings of this machine, unless a text is given; the quality of the vectors is measured
where --eval-dir names evaluation files.
"""

from __future__ import annotations

import sys
from pathlib import Path

from . import (
    als_peers,
    als_recommend,
    bench_als_solve,
    bench_cosine_topk,
    bench_embedding_bag,
    bench_factor_sgd,
    bench_hals_sweep,
    bench_rnn,
    bench_skipgram,
    bench_spmm,
    curves,
    low_rank_speed,
    word2vec_curves,
    word2vec_job,
    word2vec_memory,
    word2vec_quality,
    word2vec_speed,
)
from ._runner import parser


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__, rounds=3)
    options.add_argument("--eval-dir", type=Path, help="folder of evaluation files")
    given = options.parse_args(arguments)
    common = ["--rounds", str(given.rounds), "--threads", str(given.threads)]
    common += ["--no-write"] if given.no_write else []
    text = ["--corpus", str(given.corpus)] if given.corpus else []
    status = bench_skipgram.main(common)
    status |= bench_embedding_bag.main(common)
    status |= bench_rnn.main(common)
    status |= bench_rnn.main([*common, "--levels"])
    status |= bench_cosine_topk.main(common)
    status |= bench_cosine_topk.main([*common, "--levels"])
    for one in (bench_als_solve, als_recommend, als_peers, bench_factor_sgd):
        status |= one.main(common)
    for one in (bench_spmm, bench_hals_sweep, low_rank_speed):
        status |= one.main(common)
    threads = [str(number) for number in sorted({1, given.threads})]
    status |= curves.main(
        ["--rounds", str(given.rounds), "--threads", *threads]
        + (["--no-write"] if given.no_write else [])
    )
    status |= word2vec_speed.main([*common, *text])
    status |= word2vec_job.main([*common, *text])
    if Path("/proc/self/status").exists():
        status |= word2vec_memory.main([*common, *text])
    status |= word2vec_curves.main(common)
    if given.eval_dir:
        status |= word2vec_quality.main([*common, *text, "--eval-dir", str(given.eval_dir)])
    return status


if __name__ == "__main__":
    sys.exit(main())
