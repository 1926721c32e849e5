"""What classifiers and regressors learn from a synthetic table, and whether they tell it from real rows.

The models are scikit-learn's histogram gradient boosting with its default settings (but for early stopping, whose
random split a class of one row would break) and a linear model on one-hot categories and standardised numbers. The
tables of one call are encoded together (`genai_ray.table.matrix`).

Everything runs on one thread: sums of floats, and so scores, do not depend on the number of cores, and threads that
wait for one another on a busy machine make boosting many times slower.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
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
from genai_ray.table.matrix import MISSING, Columns, ranked, sample

#: Categories of a column that a model tells apart; what boosting can split.
_CATEGORIES = 255
#: Classes of a target beyond which the less frequent count as one, since time grows with them.
CLASSES = 10
FOLDS = 3
#: Rows of each side that models train on, and that the classifiers of a detection see, at most.
_EFFICACY_ROWS, _DETECTION_ROWS = 50_000, 10_000
#: Most revealing columns that a detection names.
_REVEALING = 5

Matrix = NDArray[np.float64]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Efficacy:
    """What models reach on the holdout: model -> metric -> value.

    metrics of a classification: f1, auc; of a regression: r2.
    fake: after training on synthetic rows; real: on as many real ones. `rows` is how many.
    """

    task: Literal["classification", "regression"]
    rows: int
    fake: Scores
    real: Scores


@threadpool_limits.wrap(limits=1)
def efficacy(train: Columns, holdout: Columns, table: Columns, *, target: str, seed: int = 0) -> Efficacy | None:
    """Train on synthetic, test on real: how well the holdout's `target` is predicted.

    A target of categories makes a classification, scored by F1 (of two classes: of the one that is rarer in `train`;
    of more: the mean over the classes) and by the area under the ROC curve (of more than two classes: each against
    the rest, mean). Beyond the 10 most frequent training classes all count as one. A number or date makes a
    regression, scored by R². Both sides train on equally many rows, at most 50,000. Rows without target are left
    out; a class that the synthetic rows lack is never predicted, which lowers the scores; a category that is unknown
    to a model counts as none.

    None if there is nothing to predict: a target that is constant in `train` or `holdout`, or no other column.
    """
    assert target in train.names
    ranks = _ranks(train)
    sets = []
    for columns in (train, holdout, table):
        x, y = _matrix(columns, ranks, leave=target), _target(columns, target)
        sets.append((x[~np.isnan(y)], y[~np.isnan(y)]))
    (x_train, y_train), (x_test, y_test), (x_fake, y_fake) = sets
    discrete = target in train.category_names
    numbers = len(train.number_names) - (not discrete)
    if discrete and len(y_train):
        y_train, y_test, y_fake = _merged(y_train, y_test, y_fake)
    if not x_train.shape[1] or min(len(np.unique(y)) for y in (y_train, y_test)) < 2:
        return None
    n = min(len(y_train), len(y_fake) or len(y_train), _EFFICACY_ROWS)
    rarer = int(np.argmin(np.bincount(y_train))) if discrete and len(np.unique(y_train)) == 2 else None
    results: list[Scores] = []
    for x, y in ((x_fake, y_fake), (x_train, y_train)):
        chosen = sample(len(y), n, seed) if len(y) else np.zeros(0, np.int64)
        x, y = x[chosen], y[chosen]
        if discrete:
            predict = partial(_classified, x, y, x_test)
            models = _models(HistGradientBoostingClassifier, LogisticRegression(max_iter=300), x, numbers, seed)
            results.append({n: _classification(y_test, predict(m), rarer) for n, m in models.items()})
        else:
            models = _models(HistGradientBoostingRegressor, Ridge(), x, numbers, seed)
            results.append({n: {"r2": _r2(m, x, y, x_test, y_test)} for n, m in models.items()})
    return Efficacy("classification" if discrete else "regression", n, results[0], results[1])


@threadpool_limits.wrap(limits=1)
def detection(real: Columns, table: Columns, *, seed: int = 0) -> tuple[float, dict[str, float]]:
    """How well boosted trees tell synthetic rows from real ones, and by which columns.

    The area under the ROC curve on rows not trained on, mean of 3 folds: 0.5 if they cannot, 1 if always (a classifier
    two-sample test; Lopez-Paz and Oquab 2017, arXiv 1610.06545). Somewhat below 0.5 if the same rows are on both
    sides. As many synthetic as real rows, 6 to 10,000 each; below some hundred the trees learn little.

    Returns:
        The area, and the 5 columns with the greatest loss of area, mean of the folds, when the column is shuffled
        among the rows not trained on (Breiman 2001), greatest first.
    """
    sides = (real, table)
    n = min(_DETECTION_ROWS, *map(len, sides))
    names = (*real.number_names, *real.category_names)
    assert n >= 2 * FOLDS
    assert names
    ranks, numbers = _ranks(real), len(real.number_names)
    x = np.concatenate([_matrix(side.take(sample(len(side), n, seed)), ranks) for side in sides])
    y = np.repeat([0, 1], n)
    areas: list[float] = []
    losses = np.zeros((FOLDS, len(names)))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=_state(seed))
    for fold, (fit, test) in enumerate(folds.split(x, y)):
        model = _boosted(HistGradientBoostingClassifier, x, numbers, seed)
        model.fit(_splittable(x[fit]), y[fit])
        areas.append(float(roc_auc_score(y[test], model.predict_proba(x[test])[:, 1])))
        order = sample(len(test), len(test), rng.fold(seed, fold))
        for j in range(len(names)):
            shuffled = x[test]
            shuffled[:, j] = shuffled[order, j]
            area = roc_auc_score(y[test], model.predict_proba(shuffled)[:, 1])
            losses[fold, j] = areas[-1] - area
    loss = losses.mean(axis=0)
    best = np.argsort(-loss, kind="stable")[:_REVEALING]
    return float(np.mean(areas)), {names[j]: float(loss[j]) for j in best}


# --- models --------------------------------------------------------------------------------------


def _models(boosted: Any, linear: Any, x: Matrix, numbers: int, seed: int) -> dict[str, Any]:
    """Untrained models for rows whose first columns are `numbers`."""
    columns = np.arange(x.shape[1])
    filled = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    encoder = ColumnTransformer(
        [
            ("numbers", make_pipeline(filled, StandardScaler()), columns[:numbers]),
            ("categories", OneHotEncoder(handle_unknown="ignore"), columns[numbers:]),
        ]
    )
    name = "ridge regression" if isinstance(linear, Ridge) else "logistic regression"
    return {"boosted trees": _boosted(boosted, x, numbers, seed), name: make_pipeline(encoder, linear)}


def _boosted(model: Any, x: Matrix, numbers: int, seed: int) -> Any:
    return model(categorical_features=np.arange(x.shape[1]) >= numbers, early_stopping=False, random_state=_state(seed))


def _classified(x: Matrix, y: NDArray[Any], x_test: Matrix, model: Any) -> Matrix:
    """Probabilities (test rows, classes) after training; none where there is nothing to learn from."""
    p = np.zeros((len(x_test), CLASSES + 1))
    if len(np.unique(y)) < 2:
        p[:, y[:1]] = 1
        return p
    with warnings.catch_warnings():
        # A model short of its optimum is still a model, and its score a score.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(_splittable(x), y)
    p[:, model.classes_] = model.predict_proba(x_test)
    return p


def _classification(y: NDArray[Any], p: Matrix, rarer: int | None) -> dict[str, float]:
    """Scores of probabilities (N, classes); rarer: the class of two that F1 is of."""
    predicted = np.where(p.any(axis=1), p.argmax(axis=1), -1)
    labels, ranked = ([rarer], [1]) if rarer is not None else (np.unique(y), np.unique(y))
    areas = [roc_auc_score(y == c, p[:, c]) for c in ranked]
    f1 = f1_score(y, predicted, labels=labels, average="macro", zero_division=0)  # pyright: ignore
    return {"f1": float(f1), "auc": float(np.mean(areas))}


def _r2(model: Any, x: Matrix, y: NDArray[Any], x_test: Matrix, y_test: NDArray[Any]) -> float:
    predicted = np.zeros(len(y_test))
    if len(y) > 1:
        # In units of the spread: the square of a date in nanoseconds would overflow the loss.
        centre, spread = y.mean(), y.std() or 1.0
        predicted = model.fit(_splittable(x), (y - centre) / spread).predict(x_test) * spread + centre
    return float(r2_score(y_test, predicted))


def _splittable(x: Matrix) -> Matrix:
    """Features where a column without any value is 0 throughout: boosting fails to bin nothing."""
    return np.where(np.isnan(x).all(axis=0), 0.0, x)


def _state(seed: int) -> int:
    """A seed of any size as one that scikit-learn takes."""
    return seed % 2**32


# --- from columns to matrices --------------------------------------------------------------------


def _ranks(train: Columns) -> list[NDArray[np.int64]]:
    """For each category column, code -> its rank by frequency; the rare ones share the last."""
    return [ranked(train.counts(j), _CATEGORIES) for j in range(len(train.category_names))]


def _matrix(columns: Columns, ranks: list[NDArray[np.int64]], leave: str | None = None) -> Matrix:
    """Features (N, numbers and then categories) without the column `leave`."""
    numbers = [j for j, name in enumerate(columns.number_names) if name != leave]
    codes = [
        ranks[j][columns.categories[:, [j]]].astype(np.float64)
        for j, name in enumerate(columns.category_names)
        if name != leave
    ]
    return np.concatenate([columns.numbers[:, numbers], *codes], axis=1)


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
        index = np.searchsorted(kept, y)
        merged.append(np.where(np.isin(y, kept), index, len(kept)).astype(np.int64))
    return merged
