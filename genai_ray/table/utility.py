"""What learners make of a synthetic table: can it teach them, and can they tell it from real rows?

The learners are scikit-learn's histogram gradient boosting with its default settings (but for the
early stopping, whose random split a class of one row would break) and a linear model on one-hot
categories and standardised numbers. `categorical` and `skip` are as in
`genai_ray.table.matrix`.

Everything runs on one thread: sums of floats, and so scores, do not depend on the number of cores,
and threads that wait for one another on a busy machine make boosting many times slower.
"""

import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score, r2_score, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from genai_ray import rng
from genai_ray.table.matrix import MISSING, Columns, encode, sample

#: Categories of a column that a learner tells apart; what boosting can split.
_CATEGORIES = 255
#: Classes of a target beyond which the less frequent count as one, since time grows with them.
CLASSES = 10
FOLDS = 3

Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Efficacy:
    """What learners reach on the holdout: learner -> metric -> value.

    metrics of a classification: f1, auc; of a regression: r2.
    fake: after training on synthetic rows; real: on as many real ones. `rows` is how many.
    """

    task: Literal["classification", "regression"]
    rows: int
    fake: Scores
    real: Scores


@threadpool_limits.wrap(limits=1)
def efficacy(
    train: pa.Table,
    holdout: pa.Table,
    table: pa.Table,
    *,
    target: str,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    seed: int = 0,
    rows: int = 50_000,
) -> Efficacy | None:
    """Train on synthetic, test on real: how well the holdout's `target` is predicted.

    A target of categories (text, boolean or named in `categorical`) makes a classification, scored
    by F1 (of two classes: of the one that is rarer in `train`; of more: the mean over the classes)
    and by the area under the ROC curve (of more than two classes: each against the rest, mean).
    Beyond the 10 most frequent training classes all count as one. A number or date makes a
    regression, scored by R². Both sides train on equally many rows, at most `rows`. Rows without
    target are left out; a class that the synthetic rows lack is never predicted, which the scores
    show; categories unknown to a learner count as none it knows.

    None if there is nothing to predict: a target that is constant in `train` or `holdout`, or no
    other column.

    Raises:
        ValueError: if the target is not a column or is skipped; and as `encode`.
    """
    if target not in train.column_names or target in skip:
        raise ValueError(f"target {target!r} must be a column that is not skipped")
    encoded = encode((train, holdout, table), categorical=categorical, skip=skip)
    ranks = _ranks(encoded[0])
    sets, numbers = [], 0
    for columns in encoded:
        y = _target(columns, target)
        x, numbers = _matrix(columns, ranks, leave=target)
        sets.append((x[~np.isnan(y)], y[~np.isnan(y)]))
    (x_train, y_train), (x_test, y_test), (x_fake, y_fake) = sets
    discrete = target in encoded[0].category_names
    if discrete and len(y_train):
        y_train, y_test, y_fake = _merged(y_train, y_test, y_fake)
    if not x_train.shape[1] or min(len(np.unique(y)) for y in (y_train, y_test)) < 2:
        return None
    n = min(len(y_train), len(y_fake) or len(y_train), rows)
    results: list[Scores] = []
    for x, y in ((x_fake, y_fake), (x_train, y_train)):
        chosen = sample(len(y), n, seed) if len(y) else np.zeros(0, np.int64)
        x, y = x[chosen], y[chosen]
        if discrete:
            rarer = int(np.argmin(np.bincount(y_train))) if len(np.unique(y_train)) == 2 else None
            results.append(_classify(x, y, x_test, y_test, numbers, rarer, seed))
        else:
            results.append(_regress(x, y, x_test, y_test, numbers, seed))
    return Efficacy("classification" if discrete else "regression", n, results[0], results[1])


@threadpool_limits.wrap(limits=1)
def detection(
    real: pa.Table,
    table: pa.Table,
    *,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    seed: int = 0,
    rows: int = 10_000,
    top: int = 5,
) -> tuple[float, dict[str, float]]:
    """How well boosted trees tell synthetic rows from real ones, and by which columns.

    The area under the ROC curve on rows not trained on, mean of 3 folds: 0.5 if they cannot, 1 if
    always (a classifier two-sample test; Lopez-Paz and Oquab 2017, arXiv 1610.06545). Somewhat
    below 0.5 if the same rows stand on both sides. As many synthetic as real rows, at most `rows`
    each; below some hundred the trees see little.

    Returns:
        The area, and the `top` columns with the greatest loss of area, mean of the folds, when
        the column is shuffled among the rows not trained on (Breiman 2001), greatest first.

    Raises:
        ValueError: with fewer than 2 * 3 rows in a table, without any column, and as `encode`.
    """
    sides = encode((real, table), categorical=categorical, skip=skip)
    n = min(rows, *map(len, sides))
    names = (*sides[0].number_names, *sides[0].category_names)
    if n < 2 * FOLDS or not names:
        raise ValueError(f"{n} rows of {len(names)} columns; need {2 * FOLDS} rows and a column")
    ranks = _ranks(sides[0])
    chosen = [_matrix(side.take(sample(len(side), n, seed)), ranks) for side in sides]
    x, numbers = np.concatenate([matrix for matrix, _ in chosen]), chosen[0][1]
    y = np.repeat([0, 1], n)
    areas: list[float] = []
    losses = np.zeros((FOLDS, len(names)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=_state(seed))
    for fold, (fit, test) in enumerate(folds.split(x, y)):
        judge = _boosted(HistGradientBoostingClassifier, x, numbers, seed)
        judge.fit(_splittable(x[fit]), y[fit])
        areas.append(float(roc_auc_score(y[test], judge.predict_proba(x[test])[:, 1])))
        order = sample(len(test), len(test), rng.fold(seed, fold))
        for j in range(len(names)):
            shuffled = x[test]
            shuffled[:, j] = shuffled[order, j]
            area = roc_auc_score(y[test], judge.predict_proba(shuffled)[:, 1])
            losses[fold, j] = areas[-1] - area
    loss = losses.mean(axis=0)
    best = np.argsort(-loss, kind="stable")[:top]
    return float(np.mean(areas)), {names[j]: float(loss[j]) for j in best}


# --- learners ------------------------------------------------------------------------------------


def _boosted(learner: Any, x: NDArray[np.float64], numbers: int, seed: int) -> Any:
    return learner(
        categorical_features=np.arange(x.shape[1]) >= numbers, early_stopping=False, random_state=_state(seed)
    )


def _linear(learner: Any, x: NDArray[np.float64], numbers: int) -> Any:
    columns = np.arange(x.shape[1])
    filled = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    encoder = ColumnTransformer(
        [
            ("numbers", make_pipeline(filled, StandardScaler()), columns[:numbers]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), columns[numbers:]),
        ]
    )
    return make_pipeline(encoder, learner)


def _classify(
    x: NDArray[np.float64],
    y: NDArray[Any],
    x_test: NDArray[np.float64],
    y_test: NDArray[Any],
    numbers: int,
    rarer: int | None,
    seed: int,
) -> Scores:
    classes = np.unique(y_test)
    scores: Scores = {}
    for name, learner in (
        ("boosted trees", _boosted(HistGradientBoostingClassifier, x, numbers, seed)),
        ("logistic regression", _linear(LogisticRegression(max_iter=300), x, numbers)),
    ):
        p = np.zeros((len(y_test), int(max(y_test.max(), y.max(initial=0))) + 1))
        if len(np.unique(y)) < 2:  # nothing to learn: the one class there is, or none
            p[:, y[:1]] = 1
        else:
            with warnings.catch_warnings():
                # A model short of its optimum is still a model, and its score a score.
                warnings.simplefilter("ignore", ConvergenceWarning)
                learner.fit(_splittable(x), y)
            p[:, learner.classes_] = learner.predict_proba(x_test)
        said = np.where(p.any(axis=1), p.argmax(axis=1), -1)
        asked = classes if rarer is None else [rarer]
        areas = [roc_auc_score(y_test == c, p[:, c]) for c in (classes if rarer is None else [1])]
        scores[name] = {
            "f1": float(f1_score(y_test, said, labels=asked, average="macro", zero_division=0)),  # pyright: ignore
            "auc": float(np.mean(areas)),
        }
    return scores


def _regress(
    x: NDArray[np.float64],
    y: NDArray[Any],
    x_test: NDArray[np.float64],
    y_test: NDArray[Any],
    numbers: int,
    seed: int,
) -> Scores:
    scores: Scores = {}
    for name, learner in (
        ("boosted trees", _boosted(HistGradientBoostingRegressor, x, numbers, seed)),
        ("ridge regression", _linear(Ridge(), x, numbers)),
    ):
        said = np.zeros(len(y_test))
        if len(y) > 1:
            # In units of the spread: the square of a date in nanoseconds would overflow the loss.
            centre, spread = y.mean(), y.std() or 1.0
            said = learner.fit(_splittable(x), (y - centre) / spread).predict(x_test)
            said = said * spread + centre
        scores[name] = {"r2": float(r2_score(y_test, said))}
    return scores


def _splittable(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Features where a column without any value is 0 throughout: boosting fails to bin nothing."""
    return np.where(np.isnan(x).all(axis=0), 0.0, x)


def _state(seed: int) -> int:
    """A seed of any size as one that scikit-learn takes."""
    return seed % 2**32


# --- from columns to matrices --------------------------------------------------------------------


def _ranks(train: Columns) -> list[NDArray[np.int64]]:
    """For each category column, code -> its rank by frequency; the rare ones share the last."""
    ranks = []
    for j, size in enumerate(train.sizes):
        counts = np.bincount(train.categories[:, j], minlength=size)
        rank = np.empty(size, np.int64)
        rank[np.argsort(-counts, kind="stable")] = np.arange(size)
        ranks.append(np.minimum(rank, _CATEGORIES - 1))
    return ranks


def _matrix(
    columns: Columns, ranks: list[NDArray[np.int64]], leave: str | None = None
) -> tuple[NDArray[np.float64], int]:
    """Features (N, numbers + categories) without the column `leave`, and how many are numbers."""
    numbers = [j for j, name in enumerate(columns.number_names) if name != leave]
    parts = [columns.numbers[:, numbers]] + [
        ranks[j][columns.categories[:, [j]]].astype(np.float64)
        for j, name in enumerate(columns.category_names)
        if name != leave
    ]
    return np.concatenate(parts, axis=1), len(numbers)


def _target(columns: Columns, name: str) -> NDArray[np.float64]:
    """The values of a number or the codes of a category, NaN where missing."""
    if name in columns.number_names:
        return columns.numbers[:, columns.number_names.index(name)]
    codes = columns.categories[:, columns.category_names.index(name)]
    return np.where(codes == MISSING, np.nan, codes)


def _merged(train: NDArray[Any], *others: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Classes by frequency in `train`: 0.. for the first 10, the next number for all the others."""
    classes, counts = np.unique(train, return_counts=True)
    kept = np.sort(classes[np.argsort(-counts, kind="stable")][:CLASSES])
    merged = []
    for y in (train, *others):
        place = np.searchsorted(kept, y)
        known = np.isin(y, kept)
        merged.append(np.where(known, place, len(kept)).astype(np.int64))
    return merged
