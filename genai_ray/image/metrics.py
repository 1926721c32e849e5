"""METRICS: what is measured of generated images, by name."""

from genai_ray.modality import Metric

_IN = "genai_ray.image.compared:"
_ANY = float("inf")

METRICS: dict[str, Metric] = {
    "fid": Metric(
        "lower",
        "Fréchet distance of the feature distributions (Heusel et al. 2017)",
        _IN + "fid",
        most=_ANY,
        of_features=True,
    ),
    "kid": Metric(
        "lower",
        "Kernel distance, unbiased: right for small samples (Binkowski et al. 2018)",
        _IN + "kid",
        least=-_ANY,
        most=_ANY,
        of_features=True,
    ),
    "precision": Metric("higher", "Share of generated images that lie where real ones do", _IN + "precision"),
    "recall": Metric("higher", "Share of real images that lie where generated ones do", _IN + "recall"),
    "density": Metric(
        "higher", "Precision that single outliers cannot raise (Naeem et al. 2020)", _IN + "density", most=_ANY
    ),
    "coverage": Metric("higher", "Share of real images with a generated one near by", _IN + "coverage"),
    "fid_inception": Metric(
        "lower", "FID against the training set, in features of published figures", _IN + "fid_inception", most=_ANY
    ),
    "agreement": Metric("higher", "A classifier trained on real images sees the requested class", _IN + "agreement"),
    "duplicate_rate": Metric("lower", "Share of images that repeat an earlier one, byte for byte", _IN + "duplicates"),
    "exact_copy_rate": Metric("lower", "Share that equals a training image, pixel for pixel", _IN + "exact_copies"),
    "near_copy_rate": Metric(
        "lower", "Share as close to a training image as 1 % of unseen real ones", _IN + "near_copies"
    ),
}
