"""LinearAutoencoder: two linear layers trained by gradient, which find the plane of PCA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vecsmith.models import _options as check

_OPTIMIZERS = ("lbfgs", "adam", "sgd")


class LinearAutoencoder(nn.Module):
    """x -> (x - mean) E^T -> (x - mean) E^T D^T + mean, without anything in between that bends.

    The loss |x - x'|^2 has no local minima but the global ones, and saddles (Baldi and Hornik
    1989): at a minimum D E projects onto the plane of the first k principal components, with any
    basis of it. So gradients find the subspace of :class:`vecsmith.PCA`, and
    :meth:`principal_axes` turns its basis into the components.

    Args:
        in_features: d, of a row.
        n_components: k <= d.
        tied: the decoder is the transpose of the encoder (k d numbers in place of 2 k d).
        seed: of the first weights.
        dtype, device: of the weights.

    Attributes:
        encoder: ``nn.Linear`` d -> k without bias, weight E [k, d].
        decoder: ``nn.Linear`` k -> d without bias, weight D [d, k]; None where it is tied.
        mean: [d], a buffer; :meth:`fit` sets it to the mean of its rows.

    Raises:
        TypeError, ValueError: wrong sizes.

    Source: Baldi and Hornik 1989, "Neural Networks and Principal Component Analysis: Learning from
    Examples Without Local Minima".
    """

    mean: Tensor

    def __init__(
        self,
        in_features: int,
        n_components: int,
        *,
        tied: bool = False,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check.integer("in_features", in_features, 1)
        self.n_components = check.integer("n_components", n_components, 1, self.in_features)
        options: dict[str, Any] = {"bias": False, "dtype": dtype, "device": device}
        self.encoder = nn.Linear(self.in_features, self.n_components, **options)
        self.decoder = None if tied else nn.Linear(self.n_components, self.in_features, **options)
        weight = self.encoder.weight
        self.register_buffer("mean", weight.new_zeros(self.in_features))
        # Orthonormal rows, and the decoder their transpose: a projection from the first step on.
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(self.in_features, self.n_components, generator=generator)
        with torch.no_grad():
            weight.copy_(torch.linalg.qr(start)[0].T)
            if self.decoder is not None:
                self.decoder.weight.copy_(weight.T)

    def encode(self, x: Tensor) -> Tensor:
        """The codes (x - mean) E^T, [..., k] of [..., d]."""
        return self.encoder(x - self.mean)

    def decode(self, codes: Tensor) -> Tensor:
        """codes D^T + mean, [..., d] of [..., k]."""
        weight = self.encoder.weight.T if self.decoder is None else self.decoder.weight
        return nn.functional.linear(codes, weight) + self.mean

    def forward(self, x: Tensor) -> Tensor:
        """What comes back of x [..., d]."""
        return self.decode(self.encode(x))

    def fit(
        self,
        X: Tensor | np.ndarray,
        *,
        optimizer: str = "lbfgs",
        max_iter: int = 500,
        lr: float | None = None,
        batch_size: int | None = None,
        tol: float = 1e-10,
        seed: int = 0,
    ) -> LinearAutoencoder:
        """Minimize the mean over rows of |x - x'|^2 by gradient.

        Args:
            X: [n, d] rows, finite.
            optimizer: "lbfgs": ``torch.optim.LBFGS`` with a strong Wolfe line search on all rows,
                which is a matter of some dozens of steps; "adam", "sgd": those of torch.optim, on
                shuffled batches.
            max_iter: steps of L-BFGS, or epochs.
            lr: default 1 for L-BFGS, 0.01 for Adam, and for SGD 0.1 / the greatest mean square of
                a feature.
            batch_size: rows in a batch of Adam and SGD; None: all.
            tol: stop where a step of L-BFGS, or an epoch, lowers the loss by less than that part
                of it. 0: all ``max_iter``.
            seed: of the order of the rows.

        Raises:
            TypeError, ValueError: wrong options; rows that are not [n, d] or not finite; a loss
                that runs off to infinity, as at too high a learning rate. The model is then what
                it was before.
        """
        rows = self._rows(X)
        max_iter = check.integer("max_iter", max_iter, 1)
        size = len(rows) if batch_size is None else check.integer("batch_size", batch_size, 1)
        if optimizer not in _OPTIMIZERS:
            raise ValueError(f"expected optimizer to be one of {_OPTIMIZERS}; got {optimizer!r}")
        if lr is not None and not lr > 0:
            raise ValueError(f"expected lr > 0; got {lr}")
        if not tol >= 0:
            raise ValueError(f"expected tol >= 0; got {tol}")
        before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        with torch.no_grad():
            self.mean.copy_(rows.mean(0, dtype=torch.float64))
        last = float("inf")
        step = self._lbfgs(rows, lr) if optimizer == "lbfgs" else None
        if step is None:
            step = self._batches(rows, optimizer, lr, size, seed)
        for iteration in range(1, max_iter + 1):
            now = step()
            # An epoch's loss is that from before its last step.
            if not math.isfinite(now) or not self._finite():
                self.load_state_dict(before)
                given = "its default" if lr is None else f"{lr:g}"
                raise ValueError(
                    f"expected an lr at which the loss of {optimizer!r} stays finite; "
                    f"got {given}: a loss of {now:g} in iteration {iteration}"
                )
            if last - now <= tol * now and now <= last and tol > 0:
                break
            last = now
        return self

    def _rows(self, X: Any) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(X)) if isinstance(X, np.ndarray) else X
        if not isinstance(rows, Tensor):
            raise TypeError(f"expected X to be a tensor or an array; got {type(X).__name__}")
        if rows.dim() != 2 or rows.shape[1] != self.in_features or not len(rows):
            raise ValueError(
                f"expected X of shape [n >= 1, {self.in_features}]; got {list(rows.shape)}"
            )
        rows = rows.detach().to(self.mean)
        if not bool(rows.isfinite().all()):
            raise ValueError("expected finite rows; got nan or infinity")
        return rows

    def _finite(self) -> bool:
        return all(bool(weight.isfinite().all()) for weight in self.parameters())

    def _loss(self, rows: Tensor) -> Tensor:
        return (rows - self(rows)).square().sum() / len(rows)

    def _lbfgs(self, rows: Tensor, lr: float | None):
        optimizer = torch.optim.LBFGS(
            self.parameters(),
            lr=1.0 if lr is None else lr,
            max_iter=1,
            max_eval=25,
            history_size=20,
            tolerance_grad=0,
            tolerance_change=0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self._loss(rows)
            loss.backward()
            return loss

        def step() -> float:
            optimizer.step(closure)  # returns the loss before it
            with torch.no_grad():
                return float(self._loss(rows))

        return step

    def _batches(self, rows: Tensor, name: str, lr: float | None, size: int, seed: int):
        if name == "adam":
            optimizer: Any = torch.optim.Adam(self.parameters(), lr=0.01 if lr is None else lr)
        else:
            square = float((rows - self.mean).square().mean(0).max())
            rate = 0.1 / max(square, torch.finfo(rows.dtype).tiny) if lr is None else lr
            optimizer = torch.optim.SGD(self.parameters(), lr=rate)
        generator = torch.Generator().manual_seed(seed)

        def epoch() -> float:
            total = 0.0
            for part in torch.randperm(len(rows), generator=generator).split(size):
                optimizer.zero_grad()
                loss = self._loss(rows[part.to(rows.device)])
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(part)
            return total / len(rows)

        return epoch

    @torch.no_grad()
    def principal_axes(self, X: Tensor | np.ndarray) -> Tensor:
        """The basis of the plane that is decoded to, [k, d], turned so that the coordinates of the
        rows X [n, d] are uncorrelated and of falling variance: the components of PCA, where the
        plane is PCA's. The greatest number of each by magnitude is positive."""
        rows = self._rows(X) - self.mean
        weight = self.encoder.weight.T if self.decoder is None else self.decoder.weight
        basis = torch.linalg.qr(weight)[0]  # [d, k]
        turn = torch.linalg.svd(rows @ basis, full_matrices=False)[2]
        if len(turn) < self.n_components:  # fewer rows than axes
            turn = torch.linalg.qr(turn.T, mode="complete")[0].T
        axes = turn @ basis.T
        greatest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        return axes * torch.where(greatest < 0, -1.0, 1.0).to(axes.dtype)
