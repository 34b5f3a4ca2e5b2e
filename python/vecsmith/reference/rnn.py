"""What the operator ``rnn`` computes, in plain PyTorch: one recurrent layer, one direction, a whole
sequence.

Rows are laid out by step, as in torch's PackedSequence: ``input`` [N, I] holds the x of step 0 of
all B sequences, then of step 1 of those that are longer than 1, and so on; ``batch_sizes`` [T] says
how many there are at each step, and does not increase. Sequence b has length
L_b = #{t: batch_sizes[t] > b} and is read from t = 0 to L_b - 1, or with ``reverse`` from L_b - 1
to 0. Outputs stand where their inputs stand; the last state is that after a row's last step.

With i = W_ih x + b_ih, j = W_hh h + b_hh, s the logistic function, * by element, and the gates of i
and j in torch's order, a step takes h (and c) to:

    lstm              i, f, o = s(i_i + j_i), s(i_f + j_f), s(i_o + j_o);  g = tanh(i_g + j_g)
                      c' = f * c + i * g,  clipped to [-clip, clip];  h' = o * tanh(c')
                      with a projection: h' = W_hr (o * tanh(c'))
    gru               r, z = s(i_r + j_r), s(i_z + j_z);  n = tanh(i_n + r * j_n)
                      h' = (1 - z) * n + z * h
    gru_reset_before  r, z the same;  n = tanh(i_n + W_hn (r * h) + b_hn);  h' = (1 - z) * n + z * h
    rnn_tanh          h' = tanh(i + j)
    rnn_relu          h' = max(i + j, 0)
    residual          h' = h + W_out tanh(W_ih x + b_ih + W_hh tanh(h) + b_hh) + b_out

``lstm``: Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000; the projection:
Sak et al. 2014. ``gru_reset_before``: Cho et al. 2014, with z for what they write 1 - z, as torch
does; ``gru`` applies the reset gate after the product, as torch and cuDNN do. ``rnn_*``: Elman
1990. ``residual``: Wilkerson 2023 (arXiv 2303.13570).

Layer normalization (Ba et al. 2016): with LN(v) = (v - mean(v)) / sqrt(var(v) + 1e-5) over all G H
entries together, i = LN(W_ih x) * g_ih + b_ih and j = LN(W_hh h) * g_hh + b_hh; an LSTM's output is
o * tanh(LN(c') * g_c + b_c), and its state c' is not normalized. ``gru_reset_before`` has two
products with a state, of which each is normalized by itself: that of r and z over 2 H entries, that
of n over H.

Zoneout (Krueger et al. 2017) keeps entries of the old state: h' becomes h + k_h (h' - h), c'
becomes c + k_c (c' - c), where k is 0 or 1 by element in training and 1 - z afterwards. h' is
computed from the c' that is not mixed, as in the paper.

    Cho et al. 2014: Learning phrase representations using RNN encoder-decoder. arXiv 1406.1078.
    Ba, Kiros, Hinton 2016: Layer normalization. arXiv 1607.06450.
    Elman 1990: Finding structure in time. Cognitive Science 14.
    Gers, Schmidhuber, Cummins 2000: Learning to forget. Neural Computation 12.
    Hochreiter, Schmidhuber 1997: Long short-term memory. Neural Computation 9.
    Krueger et al. 2017: Zoneout. arXiv 1606.01305.
    Sak, Senior, Beaufays 2014: Long short-term memory based recurrent neural network
        architectures. arXiv 1402.1128.
    Wilkerson 2023: Return of the RNN: residual recurrent networks for invertible sentence
        embeddings. arXiv 2303.13570.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

# The cells, and how many gates each has: the rows of its weights are gates * H.
CELLS = {"lstm": 4, "gru": 3, "gru_reset_before": 3, "rnn_tanh": 1, "rnn_relu": 1, "residual": 1}
EPSILON = 1e-5  # of layer normalization


def _affine(product: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
    """The product, normalized where there is a gain, plus the bias."""
    if gain is not None:
        return layer_norm(product, gain.shape, gain, bias, EPSILON)
    return product if bias is None else product + bias


def _mixed(old: Tensor, new: Tensor, zoneout: float, keep: Tensor | None) -> Tensor:
    """Zoneout: what is taken of the new state, by the mask or in expectation."""
    if keep is not None:
        return old + keep * (new - old)
    return old + (1.0 - zoneout) * (new - old) if zoneout else new


def rnn(
    input: Tensor,
    batch_sizes: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    *,
    cell: str,
    reverse: bool = False,
    w_hr: Tensor | None = None,
    w_out: Tensor | None = None,
    b_out: Tensor | None = None,
    norm: Sequence[Tensor] | None = None,
    zoneout: tuple[float, float] = (0.0, 0.0),
    keep: tuple[Tensor | None, Tensor | None] = (None, None),
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A recurrent layer over whole sequences, in one direction.

    G is the number of gates (``CELLS``), R the length of h: P with a projection, else H.

    Args:
        input: [N, I], rows by step.
        batch_sizes: [T] int64 on the CPU, not increasing, all >= 1; its sum is N.
        h0: [B, R], with B = batch_sizes[0].
        c0: [B, H] for "lstm", else None.
        w_ih: [G H, I].
        w_hh: [G H, R].
        b_ih, b_hh: [G H], or None.
        cell: a name of ``CELLS``.
        reverse: read every row from its own end.
        w_hr: [P, H], the projection ("lstm" only).
        w_out, b_out: [H, H] and [H] or None ("residual" only).
        norm: (g_ih [G H], g_hh [G H]), for "lstm" (g_ih, g_hh, g_c [H], b_c [H]).
        zoneout: (z_h, z_c), what is kept of the old states in expectation.
        keep: (k_h [N, R], k_c [N, H]) of zeros and ones, 1 where the new state is taken; they take
            the place of ``zoneout``, each for its state.
        clip: the bound of c ("lstm" only).

    Returns: (output [N, R], h_n [B, R], c_n [B, H], or None where there is no c).
    """
    hidden = w_hh.shape[0] // CELLS[cell]
    gates = [slice(n * hidden, (n + 1) * hidden) for n in range(CELLS[cell])]
    g_ih, g_hh = (None, None) if norm is None else norm[:2]

    def some(parameter: Tensor | None, rows: slice) -> Tensor | None:
        return None if parameter is None else parameter[rows]

    def recurrent(h: Tensor, rows: slice = slice(None)) -> Tensor:
        """These rows of j."""
        return _affine(linear(h, w_hh[rows]), some(g_hh, rows), some(b_hh, rows))

    def step(i: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(h', c') of some rows."""
        if cell == "lstm":
            assert c is not None
            a = i + recurrent(h)
            a_i, a_f, a_g, a_o = (a[:, gate] for gate in gates)
            c = a_f.sigmoid() * c + a_i.sigmoid() * a_g.tanh()
            if clip is not None:
                c = c.clamp(-clip, clip)
            seen = c if norm is None else _affine(c, norm[2], norm[3])
            h = a_o.sigmoid() * seen.tanh()
            return (h if w_hr is None else linear(h, w_hr)), c
        if cell == "gru":
            j = recurrent(h)
            a = i + j
            r, z = a[:, gates[0]].sigmoid(), a[:, gates[1]].sigmoid()
            n = (i[:, gates[2]] + r * j[:, gates[2]]).tanh()
            return (1 - z) * n + z * h, None
        if cell == "gru_reset_before":
            a = i[:, : 2 * hidden] + recurrent(h, slice(2 * hidden))
            r, z = a[:, gates[0]].sigmoid(), a[:, gates[1]].sigmoid()
            n = (i[:, gates[2]] + recurrent(r * h, gates[2])).tanh()
            return (1 - z) * n + z * h, None
        if cell == "residual":
            assert w_out is not None
            return h + linear((i + recurrent(h.tanh())).tanh(), w_out, b_out), None
        a = i + recurrent(h)
        return a.tanh() if cell == "rnn_tanh" else a.relu(), None

    sizes = [int(size) for size in batch_sizes.tolist()]
    starts = [0, *accumulate(sizes)]
    i_all = _affine(linear(input, w_ih), g_ih, b_ih)
    outputs = [input.new_zeros(0, h0.shape[1])] * len(sizes)
    h, c = h0, c0
    for t in reversed(range(len(sizes))) if reverse else range(len(sizes)):
        active, rows = sizes[t], slice(starts[t], starts[t + 1])
        old_h, old_c = h[:active], None if c is None else c[:active]
        new_h, new_c = step(i_all[rows], old_h, old_c)
        new_h = _mixed(old_h, new_h, zoneout[0], None if keep[0] is None else keep[0][rows])
        outputs[t] = new_h
        # The other rows have ended, or in reverse have not begun.
        h = torch.cat([new_h, h[active:]])
        if c is not None and old_c is not None and new_c is not None:
            new_c = _mixed(old_c, new_c, zoneout[1], None if keep[1] is None else keep[1][rows])
            c = torch.cat([new_c, c[active:]])
    output = torch.cat(outputs) if outputs else input.new_zeros(0, h0.shape[1])
    return output, h, c
