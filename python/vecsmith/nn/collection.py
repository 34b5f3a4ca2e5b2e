"""Many embedding tables in one call, with torchrec's names."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vecsmith.nn.embedding import EmbeddingBag
from vecsmith.nn.table import Table
from vecsmith.optim import in_backward

_POOLINGS = ("sum", "mean", "max")
_DTYPES = {
    "FP32": torch.float32,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP64": torch.float64,
}


def _name_of(value: Any) -> Any:
    """A string from a string or from an enumeration of torchrec's (PoolingType, DataType)."""
    return getattr(value, "value", value)


@dataclass
class EmbeddingBagConfig:
    """One table of an :class:`EmbeddingBagCollection`, in the words of torchrec's.

    num_embeddings: V, the number of rows.
    embedding_dim: D, the length of a row.
    name: of the table; unique in a collection.
    data_type: a torch dtype, or torchrec's "FP32", "FP16" or "BF16".
    feature_names: the features that are looked up in this table.
    weight_init_max, weight_init_min: rows begin uniform between them (default +- 1 / sqrt(V)).
    init_fn: fills the weight in place, instead.
    pooling: "sum", "mean" or "max" (torchrec's PoolingType too).
    table, storage, path, cache_rows: as in :class:`vecsmith.nn.EmbeddingBag`.

    Raises: ValueError for a shape, name, pooling or dtype that there is not.
    """

    num_embeddings: int
    embedding_dim: int
    name: str = ""
    data_type: Any = torch.float32
    feature_names: Sequence[str] = field(default_factory=list)
    weight_init_max: float | None = None
    weight_init_min: float | None = None
    init_fn: Callable[[Tensor], Any] | None = None
    pooling: Any = "sum"
    table: Table | None = None
    storage: str = "device"
    path: str | os.PathLike[str] | None = None
    cache_rows: int | None = None

    def __post_init__(self) -> None:
        if self.num_embeddings < 1 or self.embedding_dim < 1:
            raise ValueError(
                f"EmbeddingBagConfig: expected num_embeddings >= 1 and embedding_dim >= 1; "
                f"got {self.num_embeddings} and {self.embedding_dim}"
            )
        pooling = _name_of(self.pooling)
        if not isinstance(pooling, str) or pooling.lower() not in _POOLINGS:
            raise ValueError(
                "EmbeddingBagConfig: expected pooling to be 'sum', 'mean' or 'max'; "
                f"got {self.pooling!r}"
            )
        self.pooling = pooling.lower()
        dtype = _name_of(self.data_type)
        dtype = _DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
        if dtype not in _DTYPES.values():
            raise ValueError(
                f"EmbeddingBagConfig: expected data_type to be one of {', '.join(_DTYPES)}; "
                f"got {self.data_type!r}"
            )
        self.data_type = dtype
        if isinstance(self.feature_names, str):
            raise ValueError(
                "EmbeddingBagConfig: expected feature_names to be a list of names; "
                f"got {self.feature_names!r}"
            )
        self.feature_names = list(self.feature_names)

    def initialize(self, weight: Tensor) -> None:
        """First numbers for ``weight`` [V, D], in place."""
        bound = 1 / math.sqrt(self.num_embeddings)
        low = -bound if self.weight_init_min is None else self.weight_init_min
        high = bound if self.weight_init_max is None else self.weight_init_max
        with torch.no_grad():
            if self.init_fn is not None:
                self.init_fn(weight)
            else:
                weight.uniform_(low, high)


@dataclass
class _Request:
    """One look-up: a table, and bags given by the ends of all of them."""

    layer: EmbeddingBag
    values: Tensor
    offsets: Tensor  # [B + 1]
    weights: Tensor | None


class EmbeddingBagCollection(nn.Module):
    """Pooled embeddings of many features from many tables, with torchrec's interface.

        ebc = EmbeddingBagCollection(tables=[
            EmbeddingBagConfig(name="t1", embedding_dim=64, num_embeddings=10_000,
                               feature_names=["user"], pooling="sum"),
            EmbeddingBagConfig(name="t2", embedding_dim=64, num_embeddings=1_000_000,
                               feature_names=["item", "basket"], pooling="mean"),
        ])
        pooled = ebc({"user": (values, offsets), "item": ..., "basket": ...})
        pooled["item"]  # [B, 64]

    Several features may share a table: their gradients are added up, and a step of the table is
    one. A feature may be looked up in several tables: its results are named "feature@table".

    Args:
        tables: the tables. Their weights are ``embedding_bags.<name>.weight`` in the state_dict, as
            in torchrec.
        is_weighted: every feature comes with weights of its entries ("sum" alone).
        device: of all tables.
        sparse: the gradients of the weights are sparse.
        include_last_offset: ``offsets`` of a mapping are [B + 1] and end with the end of the last
            bag (torchrec's way), not [B] (torch.nn.EmbeddingBag's).

    Raises: ValueError for no table, names that are missing or not unique, and what
    :class:`EmbeddingBag` refuses.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingBagConfig],
        is_weighted: bool = False,
        device: torch.device | str | None = None,
        *,
        sparse: bool = False,
        include_last_offset: bool = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not tables:
            raise ValueError(f"{name}: expected at least one table; got none")
        self._configs = list(tables)
        self._is_weighted = bool(is_weighted)
        self.include_last_offset = bool(include_last_offset)
        self.embedding_bags = nn.ModuleDict()
        for config in self._configs:
            if not config.name or config.name in self.embedding_bags:
                raise ValueError(
                    f"{name}: expected tables with names of their own; got {config.name!r}"
                )
            if "." in config.name or hasattr(self.embedding_bags, config.name):
                raise ValueError(
                    f"{name}: expected names without dots that torch.nn.ModuleDict does not use "
                    f"itself; got {config.name!r}"
                )
            if not config.feature_names:
                raise ValueError(f"{name}: expected feature_names for table {config.name!r}")
            if len(set(config.feature_names)) != len(config.feature_names):
                raise ValueError(
                    f"{name}: expected each feature once in table {config.name!r}; "
                    f"got {config.feature_names}"
                )
            if self._is_weighted and config.pooling != "sum":
                raise ValueError(
                    f"{name}: expected pooling 'sum' with is_weighted; got {config.pooling!r} "
                    f"in table {config.name!r}"
                )
            self.embedding_bags[config.name] = self._make_layer(config, device, sparse)
        features = [feature for config in self._configs for feature in config.feature_names]
        # (feature, table, name of the result), in torchrec's order: by table.
        self._lookups = [
            (
                feature,
                config.name,
                feature if features.count(feature) == 1 else f"{feature}@{config.name}",
            )
            for config in self._configs
            for feature in config.feature_names
        ]

    @staticmethod
    def _make_layer(
        config: EmbeddingBagConfig, device: torch.device | str | None, sparse: bool
    ) -> EmbeddingBag:
        own = config.table is None and config.storage == "device"
        layer = EmbeddingBag(
            config.num_embeddings,
            config.embedding_dim,
            mode=config.pooling,
            sparse=sparse,
            include_last_offset=True,
            device=None if config.table is not None else device,
            dtype=None if config.table is not None else config.data_type,
            table=config.table,
            storage=config.storage,
            path=config.path,
            cache_rows=config.cache_rows,
        )
        if own:
            config.initialize(layer.weight)
        return layer

    @property
    def is_weighted(self) -> bool:
        """Whether every feature comes with weights."""
        return self._is_weighted

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        """The tables."""
        return list(self._configs)

    def embedding_names(self) -> list[str]:
        """The names of the results, in the order in which they are concatenated."""
        return [name for _, _, name in self._lookups]

    def length_per_key(self) -> list[int]:
        """The lengths D of the results, in the order of :meth:`embedding_names`."""
        dims = {config.name: config.embedding_dim for config in self._configs}
        return [dims[table] for _, table, _ in self._lookups]

    def reset_parameters(self) -> None:
        """First numbers for the weights that the collection keeps, as each table's config says."""
        for config in self._configs:
            weight = self.embedding_bags[config.name]._parameters.get("weight")
            if weight is not None:
                config.initialize(weight)

    def forward(self, features: Any, *, concatenated: bool = False) -> Any:
        """Looks up every feature in its tables.

        Args:
            features: either a mapping from feature to (values [N], offsets [B]), with
                ``is_weighted`` (values, offsets, weights [N]), or to indices [B, L] (weights with
                them as a pair), or to an object like torchrec's JaggedTensor; or an object like
                torchrec's KeyedJaggedTensor (``keys()``, ``values()``, ``offsets()`` or
                ``lengths()``, ``weights()``). Features without a table are ignored.
            concatenated: return one tensor.

        Returns:
            {name: [B, D]} in the order of :meth:`embedding_names`; or, with ``concatenated``,
            [B, sum of all D] in that order.

        Raises:
            KeyError: a feature that is missing.
            TypeError, ValueError, IndexError: as :func:`vecsmith.ops.embedding_bag`, before any
                table is looked up where it can be seen from shapes.
        """
        bags = self._bags(features)
        requests, batch = [], None
        for feature, table, _ in self._lookups:
            if feature not in bags:
                raise KeyError(f"expected feature {feature!r}; got {', '.join(map(repr, bags))}")
            values, offsets, weights = bags[feature]
            if batch is not None and offsets.numel() != batch:
                raise ValueError(
                    f"{type(self).__name__}: expected {batch - 1} bags for every feature; "
                    f"got {offsets.numel() - 1} for {feature!r}"
                )
            batch = offsets.numel()
            if (weights is not None) != self._is_weighted:
                raise ValueError(
                    f"{type(self).__name__}: expected {'' if self._is_weighted else 'no '}weights "
                    f"for {feature!r} with is_weighted={self._is_weighted}"
                )
            layer = self.embedding_bags[table]
            assert isinstance(layer, EmbeddingBag)
            requests.append(_Request(layer, values, offsets, weights))
        pooled = _look_up(requests)
        if concatenated:
            return torch.cat(pooled, dim=1)
        return dict(zip(self.embedding_names(), pooled, strict=True))

    def _bags(self, features: Any) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
        """{feature: (values [N], offsets [B + 1], weights [N] or None)}."""
        if isinstance(features, Mapping):
            wanted = {feature for feature, _, _ in self._lookups}
            return {
                feature: self._one(feature, given)
                for feature, given in features.items()
                if feature in wanted
            }
        if all(hasattr(features, name) for name in ("keys", "values")):
            return self._keyed(features)
        raise TypeError(
            f"{type(self).__name__}: expected a mapping or a KeyedJaggedTensor; "
            f"got {type(features).__name__}"
        )

    def _one(self, feature: str, given: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        if isinstance(given, Tensor):
            given = (given,)
        elif hasattr(given, "values") and hasattr(given, "offsets"):  # torchrec's JaggedTensor
            return given.values(), given.offsets(), _weights_of(given)
        if not isinstance(given, (tuple, list)) or not all(
            isinstance(part, Tensor) for part in given
        ):
            raise TypeError(
                f"{type(self).__name__}: expected (values, offsets), indices [B, L] or a "
                f"JaggedTensor for {feature!r}; got {type(given).__name__}"
            )
        values, *rest = given
        if values.dim() == 2 and len(rest) <= 1:
            count, length = values.shape
            ends = torch.arange(count + 1, dtype=values.dtype, device=values.device) * length
            return values.reshape(-1), ends, rest[0].reshape(-1) if rest else None
        if values.dim() != 1 or not 1 <= len(rest) <= 2:
            raise ValueError(
                f"{type(self).__name__}: expected (values [N], offsets) or indices [B, L] for "
                f"{feature!r}; got {len(given)} tensors, the first of shape {list(values.shape)}"
            )
        offsets = rest[0]
        if not self.include_last_offset:
            end = torch.full((1,), values.numel(), dtype=offsets.dtype, device=offsets.device)
            offsets = torch.cat([offsets, end])
        return values, offsets, rest[1] if len(rest) == 2 else None

    def _keyed(self, features: Any) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
        """Of a KeyedJaggedTensor: all values of the first key, then of the second, and so on."""
        keys, values = list(features.keys()), features.values()
        if hasattr(features, "offsets"):
            offsets = features.offsets()
        else:
            offsets = torch.nn.functional.pad(features.lengths().cumsum(0), (1, 0))
        weights = _weights_of(features)
        count, left = divmod(offsets.numel() - 1, max(len(keys), 1))
        if left or not keys:
            raise ValueError(
                f"{type(self).__name__}: expected as many bags for each of {len(keys)} keys; "
                f"got {offsets.numel() - 1} bags in all"
            )
        # Where each key's values begin and end: known on the host, once for all keys.
        cuts = offsets[::count].tolist() if count else [0] * (len(keys) + 1)
        found = {}
        for n, key in enumerate(keys):
            first, last = cuts[n], cuts[n + 1]
            found[key] = (
                values[first:last],
                offsets[n * count : (n + 1) * count + 1] - first,
                None if weights is None else weights[first:last],
            )
        return found

    def extra_repr(self) -> str:
        """What is not in the tables."""
        return f"is_weighted={self._is_weighted}"


def _weights_of(features: Any) -> Tensor | None:
    """The weights of a JaggedTensor or KeyedJaggedTensor, or None."""
    for name in ("weights_or_none", "weights"):
        if hasattr(features, name):
            return getattr(features, name)()
    return None


def _look_up(requests: list[_Request]) -> list[Tensor]:
    """All look-ups: [B, D] each. Those that the operator takes are one call."""
    given = [(r.layer, (r.values, r.offsets, r.weights)) for r in requests]
    fast = [layer._is_fast(*tensors) for layer, tensors in given]
    together = iter(
        in_backward.embedding_bags(
            [
                {"weight": layer.weight, **layer._arguments(*tensors)}
                for (layer, tensors), is_fast in zip(given, fast, strict=True)
                if is_fast
            ]
        )
    )
    return [
        next(together) if is_fast else layer(*tensors)
        for (layer, tensors), is_fast in zip(given, fast, strict=True)
    ]
