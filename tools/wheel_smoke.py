"""What an installed vecsmith must be able to do where there is no compiler and no source tree:

    python -I tools/wheel_smoke.py      with the Python of an environment that has the wheel

Every operator at every ISA level of this machine, against its reference and against the other
levels; a model of each family at each level; the command line; vecsmith.bench. Each level runs in a
process of its own with VECSMITH_ISA, as a user would force it.

With --valgrind PROGRAM the operators also run in valgrind, whose processor has AVX2 and not
AVX-512: avx2 must be chosen there by itself, and an instruction beyond it ends the process.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Of two float32 results that are summed in different orders, relative to the greatest.
TOLERANCE = 1e-4
COMPILERS = ("cc", "gcc", "c++", "g++", "clang", "clang++", "nvcc", "cmake", "ninja", "make", "ld")
Results = dict[str, dict[str, Any]]


def expect(condition: Any, expected: str, got: Any = "another result") -> None:
    if not condition:
        raise SystemExit(f"expected {expected}; got {got}")


# --- at one level, in a process of its own --------------------------------------------------------


def operators(backend: str) -> Results:
    """The results of every operator by one backend, on made-up problems of odd sizes."""
    import torch
    from scipy import sparse

    from vecsmith import ops

    torch.manual_seed(0)
    matrix = sparse.random(61, 47, 0.2, format="csr", random_state=0, dtype="float32")
    # Drawn anew in every call, in the same order: what is changed in place is not used again.
    users, items, rows = torch.randn(61, 19) / 4, torch.randn(47, 19) / 4, torch.randn(300, 37)
    grams, queries = items.T @ items, torch.randn(9, 37)
    indices, offsets = torch.randint(300, (100,)), torch.arange(0, 100, 7)
    plain: dict[str, Any] = {"backend": backend, "num_threads": 1}
    results: Results = {}

    solved = ops.als_solve(matrix, items, **plain)
    results["als_solve"] = {"users": solved}

    best = ops.cosine_topk(queries, rows, 5, **plain)
    results["cosine_topk"] = {"values": best.values, "indices": best.indices}

    pooled = ops.embedding_bag(indices, rows, offsets, mode="sum", **plain)
    table, state = rows.clone(), [torch.zeros(300, 37), torch.zeros(300, 37)]
    rule = ops.UpdateRule("adam", 0.01)
    ops.embedding_bag_update(table, state, indices, pooled, offsets, rule=rule, **plain)
    touched, sums = ops.embedding_bag_gradient(pooled, indices, 300, offsets, mode="sum", **plain)
    results["embedding_bag"] = {"pooled": pooled, "table": table, "sums": sums, "rows": touched}

    blocks, p, q = ops.factor_blocks(matrix), users.clone(), items.clone()
    ops.factor_sgd(p, q, blocks, **plain)
    results["factor_sgd"] = {"users": p.clone(), "items": q.clone()}
    ops.factor_sgd_bpr(p, q, blocks, **plain)
    results["factor_sgd"] |= {"users of pairs": p, "items of pairs": q}

    swept = ops.hals_sweep(users.abs(), torch.rand(61, 19), grams, **plain)
    results["hals_sweep"] = {"factor": swept}

    results["rnn"] = {}
    for cell, gates in (("lstm", 4), ("gru", 3)):
        x = torch.randn(60, 37, requires_grad=True)
        weights = [torch.randn(gates * 33, n).div(6).requires_grad_() for n in (37, 33)]
        states = [torch.zeros(12, 33), torch.zeros(12, 33) if cell == "lstm" else None]
        sizes = torch.full((5,), 12)
        output, last, _ = ops.rnn(x, sizes, *states, *weights, cell=cell, **plain)
        gradients = torch.autograd.grad((output * last.sum()).sum(), (x, *weights))
        results["rnn"] |= {f"{cell} output": output.detach(), f"{cell} gradient": gradients[2]}

    alias = torch.stack((torch.full((300,), 2**31 - 1), torch.arange(300)), 1).int()
    tables = [rows[:, :21].clone() / 21, rows[:, 16:].clone() / 21]
    loss = ops.skipgram(tables[0], tables[1], indices.int(), offsets, alias=alias, **plain)
    draws = [part.contiguous() for part in indices.view(25, 4).split((1, 1, 2), 1)]
    ops.skipgram_pairs(*tables, draws[0][:, 0], draws[1][:, 0], draws[2], **plain)
    results["skipgram"] = {"inputs": tables[0], "outputs": tables[1], "loss": loss}

    results["spmm"] = {"product": ops.spmm(matrix, items, **plain)}
    return results


def words_and_sentences(folder: Path) -> None:
    import torch

    import vecsmith

    # Two topics whose words never meet: their vectors must part.
    generator = random.Random(0)
    topics = [[f"{topic}{i}" for i in range(40)] for topic in ("river", "engine")]
    sentences = [generator.choices(generator.choice(topics), k=20) for _ in range(6000)]
    model = vecsmith.Word2Vec(sentences, vector_size=50, sg=1, epochs=3, seed=1, progress=False)
    nearest = [word for word, _ in model.wv.most_similar("river0", topn=20)]
    expect(all(word.startswith("river") for word in nearest), "river words near river0", nearest)
    model.save(folder / "words")
    again = vecsmith.KeyedVectors.load(folder / "words")
    expect((again.vectors == model.wv.vectors).all(), "the same vectors after save and load")
    index = vecsmith.CosineIndex(torch.from_numpy(again.vectors.copy()))
    _, ids = index.search(torch.from_numpy(again["river0"].copy())[None], k=20)
    found = [again.index_to_key[i] for i in ids[0].tolist()]
    expect(found[0] == "river0" and all(word.startswith("river") for word in found), nearest, found)

    texts = [" ".join(words[:8]) + "." for words in sentences[:500]]
    autoencoder = vecsmith.SentenceAutoencoder(texts, vector_size=256, progress=False)
    back = autoencoder.decode(autoencoder.encode(texts[:20]))
    expect(back == texts[:20], "the sentences back")


def factorizations() -> None:
    import numpy as np

    import vecsmith
    from vecsmith.data import Interactions

    draw = np.random.default_rng(0)
    matrix = draw.random((60, 4)) @ draw.random((4, 40)) + 0.01 * draw.random((60, 40))
    for model in (
        vecsmith.PCA(4),
        vecsmith.TruncatedSVD(4),
        vecsmith.NMF(4, max_iter=500, random_state=0),
    ):
        again = model.inverse_transform(model.fit_transform(matrix))
        error = float(np.linalg.norm(again - matrix) / np.linalg.norm(matrix))
        expect(error < 0.03, f"an error below 3 % of {model}", error)
    # Even users like even items.
    at, to = (draw.random((60, 40)) < 0.5).nonzero()
    likes = at % 2 == to % 2
    pairs = Interactions.from_arrays(at[likes], to[likes], np.ones(likes.sum()))
    stars = Interactions.from_arrays(at, to, np.where(likes, 5.0, 1.0))
    options: dict[str, Any] = {"random_state": 0, "progress": False}
    for model in (vecsmith.ALS(8, **options), vecsmith.BPR(8, learning_rate=0.1, **options)):
        model.fit(pairs)
        ids, _ = model.recommend(np.arange(60), pairs.matrix, N=5)
        share = float((pairs.items[ids] % 2 == pairs.users[:, None] % 2).mean())
        expect(share > 0.9, f"recommendations of {model}", f"{share:.0%} right")
    for model in (
        vecsmith.ExplicitALS(4, **options),
        vecsmith.MatrixFactorizationSGD(4, epochs=100, **options),
    ):
        model.fit(stars)
        high, low = (
            float(model.predict(*stars.matrix.nonzero())[likes == k].mean()) for k in (1, 0)
        )
        expect(high > 4 and low < 2, f"the ratings by {model}", (high, low))


def layers(folder: Path) -> None:
    import torch

    import vecsmith
    from vecsmith import nn, optim

    torch.manual_seed(0)
    x = torch.randn(6, 11, 24)
    for kind in ("LSTM", "GRU", "RNN"):
        theirs = getattr(torch.nn, kind)(24, 33, batch_first=True)
        ours = getattr(nn, kind)(24, 33, batch_first=True)
        ours.load_state_dict(theirs.state_dict())
        expect(torch.allclose(ours(x)[0], theirs(x)[0], atol=1e-5), f"torch's answers of {kind}")
    model = torch.nn.Sequential(torch.nn.Embedding(50, 24), torch.nn.GRU(24, 8))
    expect(type(vecsmith.accelerate(model)[0]) is nn.Embedding, "a swapped layer", model)
    with nn.CachedTable(5000, 16, storage="mmap", path=folder / "rows", cache_rows=200) as table:
        optim.apply_optimizer_in_backward(optim.SparseAdam, table.parameters(), {"lr": 0.1})
        bag = nn.EmbeddingBag(5000, 16, mode="sum", table=table)
        for _ in range(60):
            for first in (0, 150, 300):  # more rows than slots
                loss = bag(torch.arange(first, first + 150).view(-1, 5)).square().mean()
                loss.backward()
        expect(loss.item() < 0.05, "a table that learns", loss.item())


def at_one_level(target: Path) -> None:
    """Runs the operators and the models, and saves the operators' results. No program is started
    meanwhile: no compiler is missed."""
    started: list[str] = []

    def hook(event: str, arguments: Any) -> None:
        if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
            started.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)
    # The lowest layers first: they, too, must see to it that torch, and with it libgomp, comes
    # before the native module.
    importlib.import_module("vecsmith.io")
    from vecsmith import _native, ops

    level = _native.isa_level()
    expect(os.environ["VECSMITH_ISA"] == level, f"the level {os.environ['VECSMITH_ISA']}", level)
    rows = [row for row in ops.explain("cpu") if row["state"] == "chosen"]
    chosen = {row["operator"]: row["backend"] for row in rows}
    expect(chosen == dict.fromkeys(ops.registry(), "native"), "every native backend", chosen)
    ours, reference = operators("native"), operators("reference")
    expect(set(ours) == set(chosen), f"a case of each of {sorted(chosen)}", sorted(ours))
    compare(ours, reference, f"{level} and the reference")
    with tempfile.TemporaryDirectory() as folder:
        words_and_sentences(Path(folder))
        factorizations()
        layers(Path(folder))
    expect(not started, "no program to be started", started)
    if sys.platform == "linux":
        maps = Path("/proc/self/maps").read_text().split()
        # scikit-learn brings one of its own, under another name.
        runtimes = {path for path in maps if "/libgomp.so" in path}
        expect(len(runtimes) == 1 and "/torch/" in min(runtimes), "torch's libgomp alone", runtimes)
    save(ours, target)
    print(f"  {level}: {len(ours)} operators as their references, a model of each family")


def emulated(target: Path) -> None:
    """Runs the operators, and saves their results, on valgrind's processor."""
    import torch

    from vecsmith import _native

    expect(_native.isa_levels() == ["base", "avx2"], "base and avx2", _native.isa_levels())
    expect(_native.isa_level() == "avx2", "avx2 to be chosen", _native.isa_level())
    torch.set_num_threads(1)
    save(operators("native"), target)


def save(results: Results, target: Path) -> None:
    import torch

    plain = {op: {k: v.detach().double() for k, v in r.items()} for op, r in results.items()}
    torch.save(plain, target)


def compare(ours: Results, others: Results, what: str) -> None:
    for name, results in ours.items():
        for part, value in results.items():
            a, b = value.detach().double(), others[name][part].detach().double()
            expect(a.isfinite().all(), f"finite {part} of {name}")
            error = float((a - b).abs().max() / b.abs().max())
            expect(error < TOLERANCE, f"the same {part} of {name} from {what}", f"off by {error:g}")


# --- the whole ------------------------------------------------------------------------------------


def start(*command: Any, level: str | None = None) -> subprocess.Popen[str]:
    """A program, at the level that is chosen by itself, or forced."""
    environment = {k: v for k, v in os.environ.items() if k != "VECSMITH_ISA"}
    if level is not None:
        environment["VECSMITH_ISA"] = level
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([str(part) for part in command], env=environment, text=True, **pipes)


def finish(program: subprocess.Popen[str], given: str | None = None) -> str:
    """The output of a program, which must succeed."""
    output, errors = program.communicate(given)
    if program.returncode:
        raise SystemExit(f"{program.args} ended with {program.returncode}:\n{output}{errors}")
    return output


def run(*command: Any, level: str | None = None, given: str | None = None) -> str:
    return finish(start(*command, level=level), given)


def command_line(folder: Path, level: str) -> None:
    """The commands of the README, at one level."""
    program = Path(sys.executable).parent / "vecsmith"

    def vecsmith(*arguments: Any, given: str | None = None) -> str:
        return run(program, *arguments, level=level, given=given)

    expect(json.loads(vecsmith("info", "--json"))["isa"]["level"] == level, f"the level {level}")
    draw = random.Random(0)
    lines = [" ".join(draw.choices([f"{t}{i}" for i in range(9)], k=12)) for t in "ab" * 600]
    text, ratings = folder / "text.txt", folder / "ratings.csv"
    text.write_text("\n".join(lines))
    vecsmith("word2vec", text, "-o", folder / "vectors", "-d", 20, "--epochs", 3, "--quiet")
    near = json.loads(vecsmith("neighbors", folder / "vectors", "a0", "-n", 5, "--json"))
    words = [entry["word"] for entry in near["neighbors"]]
    expect(all(word.startswith("a") for word in words), "words with a near a0", words)
    cells = [
        f"u{u},i{i},1"
        for u in range(40)
        for i in range(30)
        if u % 2 == i % 2 and draw.random() < 0.7
    ]
    ratings.write_text("\n".join(["user,item,rating", *cells]))
    vecsmith("als", ratings, "-o", folder / "model", "-d", 8, "--quiet")
    best = json.loads(vecsmith("recommend", folder / "model", "--user", "u4", "-n", 3, "--json"))
    found = [entry["key"] for entry in best["found"]]
    expect(all(int(item[1:]) % 2 == 0 for item in found), "even items for u4", found)
    vecsmith("sentence", "train", text, "-o", folder / "sentences", "-d", 256, "--quiet")
    vectors = vecsmith("sentence", "encode", folder / "sentences", *lines[:3])
    back = vecsmith("sentence", "decode", folder / "sentences", given=vectors).splitlines()
    expect(back == lines[:3], "the sentences back", back)
    names = vecsmith("bench", "--list")
    expect("skipgram" in names and "gensim" in names, "operators and peers", names)
    measured = json.loads(vecsmith("bench", "hals_sweep", "--rounds", 1, "--threads", 1, "--json"))
    expect(all(record["ratios"] for record in measured), "ratios", measured)
    print(
        f"  the command line at {level}: info, word2vec, neighbors, als, recommend, sentence, bench"
    )


def surroundings() -> None:
    """An installed package, and no compiler within reach."""
    import vecsmith

    found = Path(vecsmith.__file__).resolve()
    expect(Path(sys.prefix).resolve() in found.parents, f"vecsmith below {sys.prefix}", found)
    reachable = [path for name in COMPILERS if (path := shutil.which(name))]
    expect(not reachable, "no compiler on the PATH", reachable)
    for variable in ("CC", "CXX", "CUDACXX"):
        value = os.environ.get(variable, "")
        expect(not shutil.which(value or "/nonexistent"), f"no compiler in {variable}", value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--valgrind", help="the program: run the operators in it, too")
    parser.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--emulated", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.save is not None:
        return emulated(options.save) if options.emulated else at_one_level(options.save)
    surroundings()
    import torch

    import vecsmith
    from vecsmith import _native

    levels = _native.isa_levels()
    with tempfile.TemporaryDirectory() as folder:
        this = (sys.executable, "-I", __file__, "--save")
        saved = {}
        emulation = Path(folder) / "emulated.pt"
        waiting = None
        if options.valgrind is not None and "avx2" in levels:
            command = [options.valgrind, "-q", "--tool=none", *this, emulation, "--emulated"]
            waiting = start(*command)  # most of a minute: beside the others
        try:
            for level in levels:
                target = Path(folder) / f"{level}.pt"
                print(run(*this, target, level=level), end="", flush=True)
                saved[level] = torch.load(target, weights_only=True)
                compare(saved[level], saved["base"], f"{level} and base")
            command_line(Path(folder), "avx2" if "avx2" in levels else "base")
            if waiting is not None:
                finish(waiting)
        finally:
            if waiting is not None:
                waiting.kill()
        if waiting is not None:
            compare(torch.load(emulation, weights_only=True), saved["avx2"], "both processors")
            print("  a processor with AVX2 alone, emulated: the same from every operator")
    print(f"vecsmith {vecsmith.__version__} works from its wheel, at {', '.join(levels)}")
    return None


if __name__ == "__main__":
    main()
