"""What is compared of tables, and the metrics of it: one function each, which `metrics.py` names."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.table import copies, shapes, utility
from genai_ray.table.matrix import Columns, encode, sample
from genai_ray.table.utility import Efficacy


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Training rows, a holdout and synthetic rows: tables of the same columns.

    target: column that is predicted; None: no efficacy. categorical: columns of numbers or dates to take for
    categories. skip: columns that take no part, such as ids. rare: coverage asks only for categories of at least
    as many training rows.
    """

    train: pa.Table
    holdout: pa.Table
    table: pa.Table
    target: str | None = None
    categorical: Collection[str] = ()
    skip: Collection[str] = ()
    rare: int = 1
    seed: int = 0

    @property
    def n(self) -> int:
        """Rows of each side, where a score depends on their number."""
        return min(len(self.holdout), len(self.table))

    def encode(self, *others: pa.Table) -> list[Columns]:
        """The training rows and others, encoded together."""
        return encode((self.train, *others), categorical=self.categorical, skip=self.skip)

    @cached_property
    def encoded(self) -> list[Columns]:
        """Training rows, holdout and synthetic rows."""
        return self.encode(self.holdout, self.table)

    @cached_property
    def efficacy(self) -> Efficacy | None:
        """Of both sides at once, since they train on equally many rows."""
        if self.target is None:
            return None
        return utility.efficacy(*self.encoded, target=self.target, seed=self.seed)


@dataclass(frozen=True)
class Compared:
    """What metrics are computed from: the synthetic rows (fake), or the holdout in their place (real).

    valid: which rows of the side keep every constraint (rows,); None: not measured.
    """

    tables: Tables
    side: Literal["fake", "real"]
    valid: NDArray[np.bool_] | None = None

    @property
    def rows(self) -> pa.Table:
        return self.tables.table if self.side == "fake" else self.tables.holdout

    @cached_property
    def chosen(self) -> pa.Table:
        """As many rows as of the other side, a seeded choice of the larger one."""
        return self.rows.take(sample(len(self.rows), self.tables.n, self.tables.seed))

    @cached_property
    def pair(self) -> list[Columns]:
        """Training rows and the chosen ones."""
        return self.tables.encode(self.chosen)

    @cached_property
    def by_column(self) -> Mapping[str, Mapping[Any, float]]:
        """Metric -> column or pair of columns -> score."""
        train, chosen = self.pair
        return {
            "column_shapes": shapes.column_shapes(train, chosen),
            "pair_trends": shapes.pair_trends(train, chosen, seed=self.tables.seed),
            "category_coverage": shapes.category_coverage(train, chosen, rare=self.tables.rare),
            "range_coverage": shapes.range_coverage(train, chosen),
            "tail_error": shapes.tail_errors(train, chosen),
        }

    @cached_property
    def detection(self) -> tuple[float, dict[str, float]] | None:
        """See `utility.detection`; None for too few rows, or no columns."""
        train, chosen = self.pair
        if min(len(train), len(chosen)) < 2 * utility.FOLDS or not train.names:
            return None
        return utility.detection(train, chosen, seed=self.tables.seed)

    @cached_property
    def closest(self) -> tuple[float, dict[str, float]] | None:
        """See `copies.closest_share`, which compares with the holdout. So for real rows it is that of one half of the
        holdout, compared with the other half and as many training rows.
        """
        holdout, seed = self.tables.holdout, self.tables.seed
        if len(holdout) < 2:
            return None
        encoded = self.tables.encoded
        if self.side == "real":
            order = sample(len(holdout), len(holdout), seed)
            encoded = self.tables.encode(holdout.take(order[1::2]), holdout.take(order[::2]))
        return copies.closest_share(*encoded, seed=seed)


def details(fake: Compared, real: Compared) -> dict[str, Any]:
    """What the page shows beside the scores, as plain JSON."""
    tables = fake.tables
    out: dict[str, Any] = {
        "rows": {
            "train": len(tables.train),
            "holdout": len(tables.holdout),
            "table": len(tables.table),
            "compared": tables.n,
        }
    }
    for metric, scores in fake.by_column.items():
        if scores:
            out[metric] = [{"of": of, "fake": s, "real": real.by_column[metric][of]} for of, s in scores.items()]
    if tables.efficacy is not None:
        out["efficacy"] = {"target": tables.target, **asdict(tables.efficacy)}
    if fake.detection is not None:
        out["detection"] = fake.detection[1]
    if fake.closest is not None:
        out["distances"] = fake.closest[1]
    return out


# --- the metrics ---------------------------------------------------------------------------------


def column_shapes(compared: Compared) -> float | None:
    return _mean(compared.by_column["column_shapes"])


def pair_trends(compared: Compared) -> float | None:
    return _mean(compared.by_column["pair_trends"])


def category_coverage(compared: Compared) -> float | None:
    return _mean(compared.by_column["category_coverage"])


def range_coverage(compared: Compared) -> float | None:
    return _mean(compared.by_column["range_coverage"])


def tail_error(compared: Compared) -> float | None:
    return _mean(compared.by_column["tail_error"])


def efficacy_f1(compared: Compared) -> float | None:
    return _efficacy(compared, "f1")


def efficacy_auc(compared: Compared) -> float | None:
    return _efficacy(compared, "auc")


def efficacy_r2(compared: Compared) -> float | None:
    return _efficacy(compared, "r2")


def detection_auc(compared: Compared) -> float | None:
    return None if compared.detection is None else compared.detection[0]


def exact_copy_rate(compared: Compared) -> float:
    """Of all rows of the side, since it does not depend on their number."""
    return copies.exact_copy_rate(compared.tables.train, compared.rows, skip=compared.tables.skip)


def duplicate_rate(compared: Compared) -> float:
    return copies.duplicate_rate(compared.chosen, skip=compared.tables.skip)


def closest_share(compared: Compared) -> float | None:
    return None if compared.closest is None else compared.closest[0]


def constraint_validity(compared: Compared) -> float | None:
    return None if compared.valid is None else float(np.mean(compared.valid))


def _mean(scores: Mapping[Any, float]) -> float | None:
    return float(np.mean([*scores.values()])) if scores else None


def _efficacy(compared: Compared, score: str) -> float | None:
    """The mean of the models, where an R² below 0 counts as 0: no better than the mean."""
    efficacy = compared.tables.efficacy
    if efficacy is None:
        return None
    values = [m[score] for m in getattr(efficacy, compared.side).values() if score in m]
    return float(np.mean([max(0.0, v) for v in values])) if values else None
