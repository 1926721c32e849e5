"""All scores of a synthetic business table, each beside that of a real holdout in its place.

The parts are in `table_fidelity` (columns, pairs, coverage), `table_learners` (efficacy,
detection) and `table_copies` (copies, duplicates, distances); they can be had one by one.
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass
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
    """fake and real: metric name -> value, for the synthetic rows and for a holdout in their place.

    A metric that cannot be measured (a table without numbers, no target) is in neither. `details`
    is plain JSON: what the page shows beyond the scores.
    """

    fake: dict[str, float]
    real: dict[str, float]
    details: dict[str, Any]


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
      the mean of the learners, where an R² below 0 counts as 0: no better than the mean.
    - `closest_share` compares with the holdout, so its real value is that of one half of the
      holdout against the other half and as many training rows.

    Args:
        target: column that learners predict; None: no efficacy.
        categorical: columns of numbers or dates to take for categories.
        skip: columns that take no part, such as ids.
        rare: coverage asks only for categories of at least so many training rows.
        valid, holdout_valid: which rows keep every constraint, (rows,); None: not measured.

    Raises:
        ValueError: for a table without rows, columns that do not agree, or an unknown name.
    """
    n = min(len(holdout), len(table))
    made, unseen = (side.take(sample(len(side), n, seed)) for side in (table, holdout))
    how: dict[str, Any] = {"categorical": categorical, "skip": skip}
    fake: dict[str, float] = {}
    real: dict[str, float] = {}
    details: dict[str, Any] = {
        "rows": {"train": len(train), "holdout": len(holdout), "table": len(table), "compared": n}
    }
    per_column = (
        ("column_shapes", column_shapes, how),
        ("pair_trends", pair_trends, {**how, "seed": seed}),
        ("category_coverage", category_coverage, {**how, "rare": rare}),
        ("range_coverage", range_coverage, how),
    )
    for name, measure, arguments in per_column:
        each: Any = measure(train, made, **arguments), measure(train, unseen, **arguments)
        if each[0]:
            fake[name], real[name] = (float(np.mean([*scores.values()])) for scores in each)
            details[name] = [{"of": of, "fake": score, "real": each[1][of]} for of, score in each[0].items()]
    if target is not None:
        learnt = efficacy(train, holdout, table, target=target, seed=seed, **how)
        if learnt is not None:
            details["efficacy"] = {"target": target, **asdict(learnt)}
            for into, scores in ((fake, learnt.fake), (real, learnt.real)):
                for metric in next(iter(scores.values())):
                    values = [max(0.0, score[metric]) for score in scores.values()]
                    into[f"efficacy_{metric}"] = float(np.mean(values))
    if min(n, len(train)) >= 2 * FOLDS and len(train.column_names) > len(set(skip)):
        fake["detection_auc"], gave_away = detection(train, made, seed=seed, **how)
        real["detection_auc"], _ = detection(train, unseen, seed=seed, top=0, **how)
        details["detection"] = gave_away
    fake["exact_copy_rate"] = exact_copy_rate(train, table, skip=skip)
    real["exact_copy_rate"] = exact_copy_rate(train, holdout, skip=skip)
    fake["duplicate_rate"] = duplicate_rate(made, skip=skip)
    real["duplicate_rate"] = duplicate_rate(unseen, skip=skip)
    if len(holdout) > 1:
        fake["closest_share"], distances = closest_share(train, holdout, table, seed=seed, **how)
        details["distances"] = distances
        order = sample(len(holdout), len(holdout), seed)
        first, second = (holdout.take(order[start::2]) for start in (0, 1))
        real["closest_share"], _ = closest_share(train, second, first, seed=seed, **how)
    for into, mask in ((fake, valid), (real, holdout_valid)):
        if mask is not None:
            into["constraint_validity"] = constraint_validity(mask)
    return TableScores(fake, real, details)


def constraint_validity(valid: NDArray[np.bool_]) -> float:
    """Share of rows, 0..1, that keep every rule; `valid` (rows,) says which do."""
    if not len(valid):
        raise ValueError("no rows: a share of nothing is undefined")
    return float(np.mean(valid))
