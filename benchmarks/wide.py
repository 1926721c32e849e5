"""Export of wide tables, with its parity check, beside one of 30 columns: `python benchmarks/wide.py`."""

import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.export import export
from genai_ray.modalities import parse
from genai_ray.training.train import train

WIDTHS = (30, 300, 1_000)
ROWS = 500


def table(columns: int) -> pa.Table:
    """Numbers and categories in turn."""
    draw = np.random.default_rng(0)
    kinds = (lambda: draw.normal(size=ROWS), lambda: draw.choice(["a", "b", "c"], ROWS))
    return pa.table({f"c{i}": kinds[i % 2]() for i in range(columns)})


def seconds(folder: Path, columns: int) -> float:
    """How long the export takes after a short training."""
    pq.write_table(table(columns), folder / "rows.parquet")
    spec = parse(
        {
            "name": f"wide-{columns}",
            "store": str(folder),
            "data": {"source": "table", "root": str(folder / "rows.parquet")},
            "train": {"workers": 0, "samples": 1_280},
        }
    )
    train(spec)
    started = time.perf_counter()
    export(spec)
    return time.perf_counter() - started


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds(Path(folder), 10)  # imports
        took = [seconds(Path(folder), columns) for columns in WIDTHS]
    for columns, one in zip(WIDTHS, took, strict=True):
        print(f"{columns:>5} columns   export {one:6.2f} s   {one / took[0]:5.1f} times that of {WIDTHS[0]}")


if __name__ == "__main__":
    main()
