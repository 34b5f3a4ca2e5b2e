"""Sentences as sums of rotated token vectors, and back, without training."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith.ops import _checks as check
from vecsmith.ops import cosine_topk

_LENGTH_SNR = 50.0
# In nats: lengths that much less likely than the likeliest are not tried, and a token that much
# likelier than the next is certain.
_DOUBT = 20.0
_CERTAIN = 10.0
_SCORE_BYTES = 128 << 20


class RotationBinding(nn.Module):
    """A sentence w_1 .. w_T as one vector by a closed form, and the sentence of a vector.

        s = u / |u|,   u = a_0 l(T) + sum_{t=1..T} a_t R^t e(w_t),   sum_t a_t^2 = 1

    R is a fixed rotation (D / 2 planes, an angle drawn for each), e(w) are V fixed vectors of
    length 1 (random signs, or ``embeddings``), l(T) are vectors of the same kind that tell the
    length. R^t says where a token stands: holographic reduced representations (Plate 1995,
    doi:10.1109/72.377968) with a rotation in the place of convolution.

    **Amplitudes.** What is decoded sees the tokens that are not yet known as noise. With all a_t
    alike a token has a ratio of signal to noise of D / T, too little where T is large against D. So
    a_t falls such that each token stands above the sum of those *after* it:

        a_t^2 = c (f + sum_{k>t} a_k^2),   f the square of the noise that is borne

    which is a_t ~ gamma^t, gamma^2 = 1 / (1 + c): superposition codes with exponential power
    allocation and successive cancellation (Cover 1972, doi:10.1109/TIT.1972.1054727; Joseph and
    Barron 2012, arXiv:1006.3780, and 2014, IEEE Trans. Inf. Theory 60(2)). A token then has the
    ratio c D at its turn. Noise of ``noise`` allows (1 + c)^(T + 1) = 1 + 1 / noise^2; c is that,
    and no more than ``snr`` / D: where tokens are certain already, what is left makes the vector
    bear more noise. l(T) needs no more than 50 / D. ``gamma`` sets a_t ~ gamma^t for all T instead;
    1 is the plain sum.

    **Decoding.** Token after token. With u_t the sum of what is known, b the scale that fits best,

        r_t = s - b u_t,   b = s . u_t / |u_t|^2

    is under the right beginning noise of variance v_t = (noise^2 + sum_{k>t} a_k^2) / D in each
    direction, so a beam keeps the beginnings of largest

        - |r_t|^2 / (2 v_t) + sum_{k<=t} log p(w_k | w_<k)

    with p of the language model, or 1 / V; at the end v_T is |r_T|^2 / D, and noise^2 / D at least.
    |r_T|^2 also tells whether a sentence fits. Those that do not, or where a choice was close, are
    decoded again with a wider beam and with other lengths that are likely. The norm of a vector
    carries nothing and may be anything but 0.

    Args:
        num_embeddings: V.
        vector_size: D, even.
        max_length: T at most, up to 1024.
        gamma: the ratio of amplitudes, in (0, 1]; None: by the rule above.
        snr: c D at most, in that rule.
        noise: the norm of the noise to be expected in vectors, as a share of theirs, in (0, 1).
        embeddings: e [V, D], kept as they are but for their length. None: random signs.
        language_model: a module with ``order`` and ``log_probabilities(contexts [N, order - 1])``
            -> [N, V] (:class:`NGramLanguageModel`), or None.
        beam: the widest beam.
        pad, bos, eos: tokens that are no part of a vector.
        seed: of R, e and l, which depend on nothing else (Philox, Salmon et al. 2011).

    Raises: ValueError, TypeError for arguments that do not fit.
    """

    def __init__(
        self,
        num_embeddings: int,
        vector_size: int,
        max_length: int = 64,
        *,
        gamma: float | None = None,
        snr: float = 100.0,
        noise: float = 0.01,
        embeddings: Tensor | None = None,
        language_model: Any = None,
        beam: int = 32,
        pad: int = 0,
        bos: int = 2,
        eos: int = 3,
        seed: int = 1,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check.integer(name, "num_embeddings", num_embeddings, low=1, high=2**31 - 1)
        check.integer(name, "vector_size", vector_size, low=2, high=2**20)
        check.integer(name, "max_length", max_length, low=0, high=2**10)
        check.integer(name, "beam", beam, low=1, high=2**12)
        check.seed(name, seed)
        for token, value in (("pad", pad), ("bos", bos), ("eos", eos)):
            check.integer(name, token, value, low=0, high=num_embeddings - 1)
        if vector_size % 2:
            raise ValueError(f"{name}: expected an even vector_size; got {vector_size}")
        if gamma is not None:
            _within(name, "gamma", gamma, 1.0)
        _within(name, "snr", snr, math.inf)
        if _within(name, "noise", noise, 1.0) == 1:
            raise ValueError(f"{name}: expected noise below 1; got {noise}")
        self.num_embeddings, self.vector_size = num_embeddings, vector_size
        self.max_length, self.gamma, self.snr, self.noise = max_length, gamma, snr, noise
        self.beam, self.pad, self.bos, self.eos, self.seed = beam, pad, bos, eos, seed
        self.language_model = language_model

        bits = np.random.Philox(key=seed)
        turns = bits.random_raw(vector_size // 2).astype(np.float64) / 2.0**64
        steps = torch.arange(max_length + 1)[:, None] * torch.from_numpy(2 * np.pi * turns)
        # Angles of many steps lose no precision: they are taken in fp64, once.
        self.register_buffer("cosines", steps.cos().float(), persistent=False)
        self.register_buffer("sines", steps.sin().float(), persistent=False)
        self.register_buffer("lengths", _signs(bits, max_length + 1, vector_size), persistent=False)
        if embeddings is None:
            weight = _signs(bits, num_embeddings, vector_size)
        else:
            weight = _unit_rows(name, embeddings, (num_embeddings, vector_size))
        self.register_buffer("weight", weight, persistent=embeddings is not None)
        amplitudes = torch.stack([self._amplitudes(t) for t in range(max_length + 1)])
        self.register_buffer("amplitudes", amplitudes.float(), persistent=False)

    cosines: Tensor
    sines: Tensor
    lengths: Tensor
    weight: Tensor
    amplitudes: Tensor

    def _amplitudes(self, length: int) -> Tensor:
        """a_0 .. a_T of sentences of that length, and zeros to max_length + 1."""
        if self.gamma is not None:
            powers = [self.gamma ** (2 * t) for t in range(length + 1)]
        else:
            allowed = math.expm1(math.log1p(self.noise**-2) / (length + 1))
            c = min(self.snr / self.vector_size, allowed)
            # There are few lengths to tell apart.
            ratios = [min(c, _LENGTH_SNR / self.vector_size)] + [c] * length
            powers, behind = [], 1.0
            for ratio in reversed(ratios):
                powers.append(ratio * behind)
                behind += powers[-1]
            powers.reverse()
        amplitudes = torch.zeros(self.max_length + 1, dtype=torch.float64)
        amplitudes[: length + 1] = torch.tensor(powers, dtype=torch.float64)
        return (amplitudes / amplitudes.sum()).sqrt()

    def _rotate(self, x: Tensor, t: int, back: bool = False) -> Tensor:
        """R^t x, or R^-t x. x: [..., D]."""
        cosines, sines = self.cosines[t].to(x.dtype), self.sines[t].to(x.dtype)
        if back:
            sines = -sines
        a, b = x.chunk(2, -1)
        return torch.cat([a * cosines - b * sines, a * sines + b * cosines], -1)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """The vectors of sentences.

        Args:
            ids: [B, L] int64: a sentence's T tokens, then eos, then anything.
            lengths: [B], T + 1: eos is counted. None: up to the first eos of each row.

        Returns: [B, D], rows of length 1.

        Raises:
            ValueError: for shapes that do not fit, a row without eos where lengths are None, and
                sentences longer than ``max_length``.
            IndexError: for a token outside the vocabulary.
        """
        name = type(self).__name__
        if ids.dim() != 2 or ids.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name}: expected ids [B, L] of int64; got {_described(ids)}")
        if lengths is None:
            ended = ids == self.eos
            if not bool(ended.any(1).all()):
                row = int((~ended.any(1)).nonzero()[0])
                raise ValueError(f"{name}: expected eos in every row of ids; got none in row {row}")
            lengths = ended.int().argmax(1) + 1
        lengths = self._check_lengths(lengths, ids.shape[0], ids.shape[1])
        real = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None] - 1
        wrong = real & ((ids < 0) | (ids >= self.num_embeddings))
        if bool(wrong.any()):
            row, at = wrong.nonzero()[0].tolist()
            raise IndexError(
                f"{name}: expected tokens in 0..{self.num_embeddings - 1}; got "
                f"{int(ids[row, at])} at step {at} of row {row}"
            )
        tokens = torch.where(real, ids, 0)
        return self._sum(lambda t, rows: self.weight[tokens[rows, t]], lengths)

    def encode_embeddings(self, embeddings: Tensor, lengths: Tensor) -> Tensor:
        """The vectors of sentences of soft tokens, differentiable in them.

        Args:
            embeddings: [B, L, D], rows e_t in the place of e(w_t); that of eos adds nothing.
            lengths: [B], T + 1, as in :meth:`forward`.

        Returns: [B, D], rows of length 1. Raises: ValueError for shapes that do not fit.
        """
        name = type(self).__name__
        if embeddings.dim() != 3 or embeddings.shape[2] != self.vector_size:
            raise ValueError(
                f"{name}: expected embeddings [B, L, {self.vector_size}]; got "
                f"{_described(embeddings)}"
            )
        lengths = self._check_lengths(lengths, embeddings.shape[0], embeddings.shape[1])
        return self._sum(lambda t, rows: embeddings[rows, t], lengths)

    def _check_lengths(self, lengths: Tensor, batch: int, steps: int) -> Tensor:
        name = type(self).__name__
        if lengths.shape != (batch,) or lengths.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"{name}: expected lengths [{batch}] of int64; got {_described(lengths)}"
            )
        most = min(steps, self.max_length + 1)
        wrong = (lengths < 1) | (lengths > most)
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name}: expected lengths in 1..{most} (max_length and eos); got "
                f"{int(lengths[row])} in row {row}"
            )
        return lengths.long().to(self.lengths.device)

    def _sum(self, token: Any, lengths: Tensor) -> Tensor:
        """s; token(t, rows) gives the vectors of the tokens t (from 0) of those rows."""
        order = torch.argsort(lengths, descending=True, stable=True)
        counts = lengths[order] - 1
        amplitudes = self.amplitudes[counts]
        total = amplitudes[:, :1] * self.lengths[counts]
        finished, active = [], len(order)
        for t in range(1, int(counts[0]) + 1 if len(counts) else 0):
            longer = int((counts >= t).sum())
            finished.append(total[longer:active])
            rotated = self._rotate(token(t - 1, order[:longer]), t)
            total = total[:longer] + amplitudes[:longer, t : t + 1].to(rotated.dtype) * rotated
            active = longer
        total = torch.cat([total, *reversed(finished)])
        return nn.functional.normalize(total, dim=1)[torch.argsort(order)]

    def decode(
        self,
        vectors: Tensor,
        max_length: int | None = None,
        method: str = "greedy",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The sentences of vectors [B, D]: ids [B, L], each row ending in eos, then pad.

        Arguments and errors are those of :meth:`search`.
        """
        return self.search(vectors, max_length, method, temperature, generator)[0]

    @torch.no_grad()
    def search(
        self,
        vectors: Tensor,
        max_length: int | None = None,
        method: str = "greedy",
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        *,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The sentences of vectors, and how well they fit.

        Args:
            vectors: [B, D], of any floating dtype and any norm but 0.
            max_length: T at most; None: the module's.
            method: "greedy": the likeliest sentence that the beam finds. "multinomial": each token
                is drawn from its probabilities given the tokens before it.
            temperature: of the draw: probabilities are taken to the power 1 / temperature.
            generator: of the draw.
            lengths: [B], T + 1, where they are known.

        Returns: (ids [B, L] int64, each row ending in eos, then pad; misfits [B]: |r_T|^2 over the
            expected noise^2. About 1 where a vector has that noise, less where it is cleaner, and
            more where the sentence is wrong or there is no such sentence).

        Raises:
            ValueError: for shapes that do not fit, and a row that is 0 or holds nan or infinity.
        """
        name = type(self).__name__
        if method not in ("greedy", "multinomial"):
            raise ValueError(f"{name}: expected method 'greedy' or 'multinomial'; got {method!r}")
        _within(name, "temperature", temperature, math.inf)
        longest = self.max_length if max_length is None else max_length
        check.integer(name, "max_length", longest, low=0, high=self.max_length)
        v = self._check_vectors(vectors)
        if lengths is None:
            likely = self._length_likelihoods(v)[:, : longest + 1]
        else:
            lengths = self._check_lengths(lengths, len(v), longest + 1)
            likely = torch.full((len(v), longest + 1), -math.inf, device=v.device)
            likely[torch.arange(len(v)), lengths - 1] = 0.0
        ranked = likely.sort(1, descending=True)
        ids = torch.full((len(v), longest + 1), self.pad, device=v.device)
        ids[:, 0] = self.eos
        best = torch.full((len(v),), -math.inf, device=v.device)
        misfits = torch.full((len(v),), math.inf, device=v.device)
        certain = torch.zeros(len(v), dtype=torch.bool, device=v.device)
        settled = torch.zeros_like(certain)
        for width, rank in self._attempts(longest) if method == "greedy" else [(1, 0)]:
            # |r_T|^2 is a sum of D squares: two standard deviations above its mean.
            again = misfits > 1 + 2 * math.sqrt(2 / self.vector_size)
            again |= ~certain
            again &= ~settled
            again &= ranked.values[:, rank] >= ranked.values[:, 0] - _DOUBT
            rows = again.nonzero()[:, 0]
            rows = rows[torch.argsort(ranked.indices[rows, rank], descending=True, stable=True)]
            at_once = max(1, _SCORE_BYTES // (4 * 4 * width * self.num_embeddings))
            for part in rows.split(at_once):
                draw = None if method == "greedy" else (temperature, generator)
                counts = ranked.indices[part, rank]
                found, score, misfit, sure = self._search(v[part], counts, width, draw)
                better = score >= best[part]
                if width > 1 and rank == 0:
                    # Nothing close, and nothing better in a wider beam: there is more noise than
                    # was expected.
                    settled[part] |= certain[part] & (score <= best[part] + 1e-2)
                part = part[better]
                ids[part] = self.pad
                ids[part, : found.shape[1]] = found[better]
                best[part], misfits[part] = score[better], misfit[better]
                certain[part] = sure[better]
        longest = int((ids == self.eos).int().argmax(1).max()) if len(v) else 0
        return ids[:, : longest + 1], misfits

    def _attempts(self, longest: int) -> list[tuple[int, int]]:
        """(width of the beam, the how manieth likeliest length), in the order they are tried."""
        widths = [8**n for n in range(4) if 8**n < self.beam] + [self.beam]
        ranks = min(3, longest + 1)
        return [(width, rank) for width in widths for rank in range(ranks)]

    def _check_vectors(self, vectors: Tensor) -> Tensor:
        """vectors in float32, of length 1."""
        name = type(self).__name__
        if (
            vectors.dim() != 2
            or vectors.shape[1] != self.vector_size
            or not vectors.is_floating_point()
        ):
            raise ValueError(
                f"{name}: expected vectors [B, {self.vector_size}] of floats; got "
                f"{_described(vectors)}"
            )
        v = vectors.to(self.weight.device).float()
        norms = v.norm(dim=1)
        wrong = ~(norms.isfinite() & (norms > 0))
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"{name}: expected vectors that are finite and not 0; got row {row} of norm "
                f"{float(norms[row])}"
            )
        return v / norms[:, None]

    def _length_likelihoods(self, v: Tensor) -> Tensor:
        """log p(v | T) up to a constant, the tokens taken for noise: [B, max_length + 1]."""
        own = self.amplitudes[:, 0]
        left = 1 - 2 * own * (v @ self.lengths.T) + own * own
        variance = (1 - own * own + self.noise**2) / self.vector_size
        return -left / (2 * variance) - self.vector_size / 2 * variance.log()

    def _search(
        self,
        v: Tensor,
        counts: Tensor,
        width: int,
        draw: tuple[float, torch.Generator | None] | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One beam search. v: [B, D] of length 1; counts: [B] T, falling. Returns ids [B, max T +
        1], what is maximized at the end [B], the misfits [B], and whether no choice was close [B]
        (a beam of several keeps what is close)."""
        model = self.language_model
        context = 0 if model is None else model.order - 1
        device, (batch, d) = v.device, v.shape
        steps = int(counts[0]) if batch else 0
        amplitudes = self.amplitudes[counts]
        powers = amplitudes.square()
        # Summed from the last token: the differences of sums from the first would be rounding
        # errors.
        behind = powers.flip(1).cumsum(1).flip(1) - powers
        variances = (behind + self.noise**2) / d
        rows = torch.arange(batch, device=device)[:, None]
        # K beginnings of each sentence; first the empty one.
        sums = (amplitudes[:, :1] * self.lengths[counts])[:, None]  # [B, K, D]
        prior = torch.zeros(batch, 1, device=device)  # log p of the tokens
        certain = torch.ones(batch, dtype=torch.bool, device=device)
        tokens = torch.full((batch, 1, context + steps), self.bos, device=device)
        for t in range(1, steps + 1):
            active = int((counts >= t).sum())
            scale, residual, energy = _fit(v[:active], sums[:active])
            a = scale * amplitudes[:active, t, None]  # [B, K]
            turned = self._rotate(residual, t, back=True)
            if model is None:
                count = min(width + 3, self.num_embeddings)
                score, candidates = _nearest(turned, self.weight, count)
                # All tokens alike: without a price a longer sentence would always fit better.
                log_p = score.new_full((1, 1, 1), -math.log(self.num_embeddings))
            else:
                score, candidates = turned @ self.weight.T, None
                seen = tokens[:active, :, t - 1 : t - 1 + context].reshape(-1, context)
                log_p = model.log_probabilities(seen).view(score.shape)
            # log p - |r - a R^t e|^2 / 2v, in place: this is K V numbers for each sentence.
            variance = variances[:active, t, None]
            score *= (a / variance)[:, :, None]
            score += log_p
            score += (prior[:active] - (energy + a * a) / (2 * variance))[:, :, None]
            banned = torch.tensor([self.pad, self.bos, self.eos], device=device)
            if candidates is None:
                score[:, :, banned] = -math.inf
            else:
                score.masked_fill_(torch.isin(candidates, banned), -math.inf)
            flat, per = score.flatten(1), score.shape[2]
            if draw is None:
                ranked = flat.topk(min(max(width, 2), flat.shape[1]), 1)
                chosen = ranked.indices[:, :width]
                if width == 1 and ranked.values.shape[1] > 1:
                    gap = ranked.values[:, 0] - ranked.values[:, 1]
                    certain[:active] &= gap > _CERTAIN
            else:
                # From the largest downwards: a low temperature leads to -inf and never to inf.
                scores = (flat - flat.amax(1, keepdim=True)) / max(draw[0], 1e-30)
                chosen = torch.multinomial(scores.softmax(1), 1, generator=draw[1])
            from_, token = chosen // per, chosen % per
            if candidates is not None:
                token = candidates.flatten(1).gather(1, chosen)
            kept = log_p.expand_as(score).flatten(1).gather(1, chosen)
            kept += prior[:active].gather(1, from_)
            kept.masked_fill_(flat.gather(1, chosen) == -math.inf, -math.inf)  # V below the width
            grown = sums[:active][rows[:active], from_]
            grown += amplitudes[:active, t, None, None] * self._rotate(self.weight[token], t)
            written = tokens[:active][rows[:active], from_]
            written[:, :, context + t - 1] = token
            # Sentences that have ended keep what they have; unused places hold their best again.
            sums, tokens, prior = (
                torch.cat([new, _widened(old[active:], chosen.shape[1])])
                for new, old in ((grown, sums), (written, tokens), (kept, prior))
            )
        if model is not None:
            ends = counts[:, None] + torch.arange(context, device=device)
            last = tokens.gather(2, ends[:, None].expand(-1, tokens.shape[1], -1))
            log_p = model.log_probabilities(last.flatten(0, 1))[:, self.eos]
            prior = prior + log_p.view(prior.shape)
        _, _, energy = _fit(v, sums)
        misfits = energy / self.noise**2
        # Where more is left than the noise that was expected, the noise was larger: the likelihood
        # at its best, or a longer sentence would fit a part of the noise and win.
        left = torch.where(misfits > 1, 1 + misfits.clamp(min=1).log(), misfits)
        score, best = (prior - left * d / 2).max(1)
        ids = torch.full((batch, steps + 1), self.pad, device=device)
        ids[:, :steps] = tokens[rows[:, 0], best, context:]
        place = torch.arange(steps + 1, device=device)
        ids[place >= counts[:, None]] = self.pad
        ids[rows[:, 0], counts] = self.eos
        return ids, score, misfits[rows[:, 0], best], certain

    def extra_repr(self) -> str:
        """The arguments that shape it."""
        gamma = f"snr={self.snr}" if self.gamma is None else f"gamma={self.gamma}"
        return (
            f"{self.num_embeddings}, {self.vector_size}, max_length={self.max_length}, {gamma}, "
            f"noise={self.noise}, beam={self.beam}, seed={self.seed}"
        )


def _fit(v: Tensor, sums: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scale b [B, K] of sums [B, K, D] that is nearest to v [B, D], what is left v - b sums,
    and its square."""
    scale = (sums * v[:, None]).sum(2) / sums.square().sum(2)
    residual = v[:, None] - scale[:, :, None] * sums
    return scale, residual, residual.square().sum(2)


def _nearest(queries: Tensor, vocabulary: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of vocabulary [V, D] of the largest dot product with each query [..., D]: values
    and indices [..., k]."""
    found = cosine_topk(queries, vocabulary, k, metric="dot")
    return found.values, found.indices


def _widened(x: Tensor, width: int) -> Tensor:
    """x [B, K, ...] with its first entry repeated to [B, width, ...], or cut to that."""
    if x.shape[1] >= width:
        return x[:, :width]
    return torch.cat([x, x[:, :1].expand(-1, width - x.shape[1], *x.shape[2:])], 1)


def _signs(bits: np.random.Philox, rows: int, columns: int) -> Tensor:
    """Random signs / sqrt(columns) [rows, columns]: rows of length 1."""
    words = bits.random_raw(-(-rows * columns // 64)).astype("<u8")
    flat = np.unpackbits(words.view(np.uint8), bitorder="little")[: rows * columns]
    return (torch.from_numpy(flat).float() * 2 - 1).view(rows, columns) / math.sqrt(columns)


def _unit_rows(name: str, embeddings: Tensor, shape: tuple[int, int]) -> Tensor:
    """embeddings in float32 with rows of length 1, or ValueError."""
    if tuple(embeddings.shape) != shape or not embeddings.is_floating_point():
        raise ValueError(
            f"{name}: expected embeddings {list(shape)} of floats; got {_described(embeddings)}"
        )
    rows = embeddings.detach().float()
    norms = rows.norm(dim=1, keepdim=True)
    wrong = ~(norms.isfinite() & (norms > 0))
    if bool(wrong.any()):
        raise ValueError(
            f"{name}: expected rows of embeddings that are finite and not 0; got row "
            f"{int(wrong.nonzero()[0, 0])}"
        )
    return rows / norms


def _within(name: str, argument: str, value: object, high: float) -> float:
    """A number in (0, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected {argument} to be a number; got {type(value).__name__}")
    number = float(value)
    if not 0 < number <= high or math.isinf(number):
        bound = "finite and > 0" if math.isinf(high) else f"in (0, {high:g}]"
        raise ValueError(f"{name}: expected {argument} {bound}; got {number}")
    return number


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {tensor.dtype}"
