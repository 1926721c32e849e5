"""Business tables: files of rows as codes and scalars for a network, and back.

files reads them, infer and metadata say what the columns are, constraints what every row keeps,
codec and modes encode, ids makes keys, source puts it together.
"""

from typing import Any

from genai_ray.modality import Modality, Sink, discard, named
from genai_ray.table.metrics import METRICS
from genai_ray.table.spec import BATCH, PRESETS, SOURCES, TableRun


def _iceberg() -> Sink[Any]:
    from genai_ray.sinks.iceberg import iceberg
    from genai_ray.table.sinks import PARQUET

    return iceberg(PARQUET)


MODALITY = Modality(
    name="table",
    noun="row",
    spec=TableRun,
    sources=SOURCES,
    presets=PRESETS,
    preset="table_ar",
    batch=BATCH,
    outputs=("codes", "values"),
    sinks={
        "parquet": named("genai_ray.table.sinks:PARQUET"),
        "csv": named("genai_ray.table.sinks:CSV"),
        "iceberg": _iceberg,
        "discard": discard,
    },
    metrics=METRICS,
    load=named("genai_ray.table.source:load"),
    codec=named("genai_ray.table.codec:from_json"),
    samples=named("genai_ray.table.samples:TableSamples"),
    difference=named("genai_ray.table.samples:cell_difference"),
    # A uniform may fall on the edge between two codes, which then are far apart.
    parity=1.0,
    unit="shares of a column's range",
    evaluator=named("genai_ray.table.evaluate:EVALUATOR"),
    describe=named("genai_ray.table.source:describe_file"),
    recognised=named("genai_ray.table.files:recognised"),
)
