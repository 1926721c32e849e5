"""All scores of a synthetic business table, each beside that of a real holdout in its stead.

The parts are in `table_fidelity` (columns, pairs, coverage), `table_learners` (efficacy, detection)
and `table_copies` (copies, duplicates, distances); they can be had one by one.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.table.copies import closest_share, duplicate_rate, exact_copy_rate
from genai_ray.table.matrix import sample
from genai_ray.table.shapes import category_coverage, column_shapes, pair_trends, range_coverage
from genai_ray.table.utility import FOLDS, detection, efficacy


@dataclass(frozen=True)
class TableScores:
    """fake and real: metric name -> value, for the synthetic rows and for a holdout in their stead.

    A metric that cannot be measured (a table without numbers, no target) is in neither. `details`
    is plain JSON: what the page shows beyond the scores.
    """

    fake: dict[str, float]
    real: dict[str, float]
    details: dict[str, Any]

    def add(self, name: str, fake: float, real: float) -> None:
        self.fake[name], self.real[name] = fake, real


def table_scores(
    train: pa.Table,
    holdout: pa.Table,
    table: pa.Table,
    *,
    target: str | None = None,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    seed: int = 0,
    rare: int = 1,
    valid: NDArray[np.bool_] | None = None,
    holdout_valid: NDArray[np.bool_] | None = None,
) -> TableScores:
    """Measure synthetic rows against the training rows, and the holdout in the same way.

    What depends on the number of rows (columns, pairs, detection, coverage, duplicates) is
    measured on equally many synthetic and holdout rows, a seeded choice of the larger table.
    The share of exact copies is that of all synthetic rows.

    - Efficacy is tested on the holdout; its real value is that of real training rows. The score is
      the mean of the models, where an R² below 0 counts as 0: no better than the mean.
    - `closest_share` compares with the holdout, so its real value is that of one half of the
      holdout against the other half and as many training rows.

    Args:
        target: column that is predicted; None: no efficacy.
        categorical: columns of numbers or dates to take for categories.
        skip: columns that take no part, such as ids.
        rare: coverage asks only for categories of at least so many training rows.
        valid, holdout_valid: which rows keep every constraint, (rows,); None: not measured.
    """
    n = min(len(holdout), len(table))
    fake, real = (side.take(sample(len(side), n, seed)) for side in (table, holdout))
    how: dict[str, Any] = {"categorical": categorical, "skip": skip}
    rows = {"train": len(train), "holdout": len(holdout), "table": len(table), "compared": n}
    scores = TableScores({}, {}, {"rows": rows})
    _add_columns(scores, train, fake, real, how, seed, rare)
    if target is not None:
        _add_efficacy(scores, train, holdout, table, target, how, seed)
    if min(n, len(train)) >= 2 * FOLDS and len(train.column_names) > len(set(skip)):
        area, scores.details["detection"] = detection(train, fake, seed=seed, **how)
        scores.add("detection_auc", area, detection(train, real, seed=seed, top=0, **how)[0])
    copies = (exact_copy_rate(train, side, skip=skip) for side in (table, holdout))
    scores.add("exact_copy_rate", *copies)
    scores.add("duplicate_rate", duplicate_rate(fake, skip=skip), duplicate_rate(real, skip=skip))
    if len(holdout) > 1:
        share, scores.details["distances"] = closest_share(train, holdout, table, seed=seed, **how)
        order = sample(len(holdout), len(holdout), seed)
        first, second = (holdout.take(order[start::2]) for start in (0, 1))
        scores.add("closest_share", share, closest_share(train, second, first, seed=seed, **how)[0])
    for into, mask in ((scores.fake, valid), (scores.real, holdout_valid)):
        if mask is not None:
            into["constraint_validity"] = float(np.mean(mask))
    return scores


def _add_columns(
    scores: TableScores, train: pa.Table, fake: pa.Table, real: pa.Table, how: dict[str, Any], seed: int, rare: int
) -> None:
    """Scores of columns and of pairs of them: the mean, and each in the details."""
    measures = {
        "column_shapes": partial(column_shapes, train, **how),
        "pair_trends": partial(pair_trends, train, seed=seed, **how),
        "category_coverage": partial(category_coverage, train, rare=rare, **how),
        "range_coverage": partial(range_coverage, train, **how),
    }
    for name, measure in measures.items():
        of_fake: Any = measure(fake)
        of_real: Any = measure(real)
        if of_fake:
            scores.add(name, float(np.mean([*of_fake.values()])), float(np.mean([*of_real.values()])))
            scores.details[name] = [{"of": of, "fake": s, "real": of_real[of]} for of, s in of_fake.items()]


def _add_efficacy(
    scores: TableScores,
    train: pa.Table,
    holdout: pa.Table,
    table: pa.Table,
    target: str,
    how: dict[str, Any],
    seed: int,
) -> None:
    reached = efficacy(train, holdout, table, target=target, seed=seed, **how)
    if reached is None:
        return
    scores.details["efficacy"] = {"target": target, **asdict(reached)}
    for into, by_model in ((scores.fake, reached.fake), (scores.real, reached.real)):
        for metric in next(iter(by_model.values())):
            into[f"efficacy_{metric}"] = float(np.mean([max(0.0, m[metric]) for m in by_model.values()]))
