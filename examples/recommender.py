"""A recommender from a file of ratings: who liked this may like that.

python examples/recommender.py                  # made-up ratings, in ./recommender/ratings.csv
python examples/recommender.py ratings.csv --titles movies.csv --user 42      # MovieLens; yours
"""

import argparse
import csv
import os
from pathlib import Path

import numpy as np

import vecsmith
from vecsmith.data import Interactions
from vecsmith.eval import evaluate_ranking

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("ratings", nargs="?", type=Path, help="users, items, ratings: CSV, ...")
parser.add_argument("--titles", type=Path, help="CSV with a header: an item and its title")
parser.add_argument("--folder", type=Path, default=Path("recommender"), help="for made-up files")
parser.add_argument("--liked", type=float, default=4, help="a rating from here on is a like [4]")
parser.add_argument("--factors", type=int, default=16, help="numbers for a user or an item [16]")
parser.add_argument("--user", help="whom to recommend to; default: the first")
options = parser.parse_args()

GENRES = {
    "western": ("Sheriff", "Saloon", "Gold Mine", "Stagecoach", "Outlaw", "Frontier"),
    "space": ("Orbit", "Star Pilot", "Moon Base", "Comet", "Galaxy", "Robot"),
    "crime": ("Detective", "Alibi", "Heist", "Witness", "Informer", "Getaway Car"),
    "romance": ("Wedding", "Love Letter", "Kiss", "Summer in Rome", "Bride", "Bouquet"),
    "horror": ("Crypt", "Haunting", "Werewolf", "Scream", "Graveyard", "Vampire"),
}
FIRST = ("The Last", "A Silent", "Midnight", "The Return of the", "My", "Beyond the", "One More")


def write(file, *rows):
    with open(file, "w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(rows)


def make_up(folder, users=1500):
    """Writes ratings.csv and titles.csv: everybody likes one genre or two, and rates those more."""
    folder.mkdir(parents=True, exist_ok=True)
    films = [
        (g, f"{f} {noun} ({g})") for g, nouns in GENRES.items() for f in FIRST for noun in nouns
    ]
    write(folder / "titles.csv", ("item", "title"), *((n, film[1]) for n, film in enumerate(films)))
    draw, genres, rows = np.random.default_rng(0), np.array([genre for genre, _ in films]), []
    fame, quality = draw.pareto(1.5, len(films)) + 0.2, draw.normal(0, 0.5, len(films))
    for user in range(users):
        liked = np.isin(genres, draw.choice(list(GENRES), draw.integers(1, 3), replace=False))
        chance = fame * np.where(liked, 4, 1)
        seen = draw.choice(len(films), draw.integers(10, 40), False, chance / chance.sum())
        stars = 2.5 + 1.5 * liked[seen] + quality[seen] + draw.normal(0, 0.5, len(seen))
        rows += [(user, item, round(x)) for item, x in zip(seen, stars.clip(1, 5), strict=True)]
    write(folder / "ratings.csv", ("user", "item", "rating"), *rows)
    return folder / "ratings.csv", folder / "titles.csv"


class Popular:
    """The baseline: everybody gets what most people like, but for what he knows."""

    def __init__(self, likes):
        self.counts = np.asarray(likes.matrix.sum(axis=0)).ravel()

    def recommend(self, users, known, N, filter_already_liked_items):
        scores = np.where(known.toarray() > 0, -np.inf, self.counts)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :N]
        return best, np.take_along_axis(scores, best, axis=1)


# 1. The file. The columns are found by their names; keys may be numbers or words.
try:
    if options.ratings is None:
        options.ratings, options.titles = make_up(options.folder)
    ratings = Interactions.read(options.ratings)
    with open(options.titles or os.devnull, newline="", encoding="utf-8") as file:
        titles = {row[0]: row[1] for row in csv.reader(file) if len(row) > 1}
    likes = ratings.binarize(options.liked)
    number = likes.users.dtype.kind == "i" and options.user is not None
    key = likes.users[0] if options.user is None else int(options.user) if number else options.user
    user = likes.user_index(key)
    train, test = likes.split_ratio(0.2, seed=0)
    if options.factors < 1 or not len(test):
        raise ValueError("expected --factors of at least 1, and somebody with several likes")
except KeyError as error:
    parser.error(error.args[0])
except (OSError, ValueError) as error:
    parser.error(error)
print(f"{options.ratings}: {len(ratings):,} ratings, {len(likes):,} of them likes")

# 2. A fifth of everybody's likes is held out: how many of them are among ten recommendations?
model = vecsmith.ALS(options.factors, alpha=10, regularization=1, random_state=0, progress=False)
for name, each in (("most popular", Popular(train)), ("ALS", model.fit(train))):
    found = evaluate_ranking(each, train, test, k=10)
    print(f"  {name:<13} recall@10 {found['recall@10']:6.1%}   ndcg@10 {found['ndcg@10']:.3f}")

# 3. For one user, from all likes.
model.fit(likes)
ids, _ = model.recommend(user, likes.matrix[user], N=5)
ids = ids[ids >= 0]
near = model.similar_items(ids[0], N=4)[0][1:] if len(ids) else ids
for what, items in (
    (f"user {key} likes", likes.matrix[user].indices[:5]),
    ("and may like", ids),
    ("near the first of these", near),
):
    names = (str(item) for item in likes.items[items])
    print(f"{what}: {', '.join(titles.get(name, name) for name in names)}")
