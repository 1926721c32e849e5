"""How the samples of a modality are judged: while training, and as a finished data set.

Every score stands beside the same score of real data, since a bare number says little.
"""

from genai_ray.judges import image, table
from genai_ray.judges.verdict import Judge, Measured, Monitor

__all__ = ["JUDGES", "METRICS", "Judge", "Measured", "Monitor"]

JUDGES: dict[str, Judge] = {"image": image.JUDGE, "table": table.JUDGE}

#: name -> (which way is better, one line on what it says)
METRICS: dict[str, tuple[str, str]] = image.METRICS | table.METRICS
