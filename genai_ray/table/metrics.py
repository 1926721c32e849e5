"""METRICS: what is measured of generated rows, by name."""

from genai_ray.modality import Metric

_IN = "genai_ray.table.compared:"

METRICS: dict[str, Metric] = {
    "column_shapes": Metric(
        "higher", "Similarity of each column alone, mean (KS and TV complements)", _IN + "column_shapes"
    ),
    "pair_trends": Metric("higher", "Similarity of the relation of each pair of columns, mean", _IN + "pair_trends"),
    "category_coverage": Metric("higher", "Share of the real categories that occur, mean", _IN + "category_coverage"),
    "range_coverage": Metric("higher", "Share of the real range that is reached, mean", _IN + "range_coverage"),
    "tail_error": Metric(
        "lower",
        "Error of sums, of the share of the top 1 % and of outer quantiles of numbers, mean",
        _IN + "tail_error",
        most=float("inf"),
    ),
    "efficacy_f1": Metric(
        "higher", "F1 of classifiers trained on these rows, tested on the holdout", _IN + "efficacy_f1"
    ),
    "efficacy_auc": Metric(
        "higher", "ROC AUC of classifiers trained on these rows, tested on the holdout", _IN + "efficacy_auc"
    ),
    "efficacy_r2": Metric(
        "higher",
        "R² of regressors trained on these rows, tested on the holdout",
        _IN + "efficacy_r2",
        least=-float("inf"),
    ),
    "detection_auc": Metric(
        "lower", "ROC AUC of a classifier of these rows against training rows; 0.5: chance", _IN + "detection_auc"
    ),
    "exact_copy_rate": Metric("lower", "Share that equals a training row in every column", _IN + "exact_copy_rate"),
    "duplicate_rate": Metric("lower", "Share of rows that repeat an earlier one", _IN + "duplicate_rate"),
    "closest_share": Metric(
        "lower", "Share nearer to a training row than to unseen ones; 0.5: expected", _IN + "closest_share"
    ),
    "constraint_validity": Metric(
        "higher", "Share of rows that keep every rule of the spec", _IN + "constraint_validity"
    ),
}
