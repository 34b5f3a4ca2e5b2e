"""A second of training with an installed vecsmith: run with the Python of an empty environment."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    import vecsmith

    source = Path(__file__).resolve().parent.parent
    found = Path(vecsmith.__file__).resolve()
    if source / "python" in found.parents:
        raise SystemExit(f"expected the installed package; got {found}")
    # Two topics whose words never meet: their vectors must part.
    generator = random.Random(0)
    topics = [[f"{topic}{i}" for i in range(40)] for topic in ("river", "engine")]
    sentences = [generator.choices(generator.choice(topics), k=20) for _ in range(6000)]
    model = vecsmith.Word2Vec(sentences, vector_size=50, sg=1, epochs=3, seed=1, progress=False)
    nearest = [word for word, _ in model.wv.most_similar("river0", topn=20)]
    if not all(word.startswith("river") for word in nearest):
        raise SystemExit(f"expected neighbors of river0 among the river words; got {nearest}")
    with tempfile.TemporaryDirectory() as folder:
        model.save(folder)
        again = vecsmith.KeyedVectors.load(folder)
        if [word for word, _ in again.most_similar("river0", topn=20)] != nearest:
            raise SystemExit("expected the same neighbors after save and load")
        command = [sys.executable, "-m", "vecsmith", "neighbors", folder, "river0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"vecsmith {vecsmith.__version__} from its wheel trains, saves, loads and answers")


if __name__ == "__main__":
    main()
