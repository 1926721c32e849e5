"""Small tables for tests: written, loaded, encoded and decoded."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from genai_ray.table.codec import TableCodec
from genai_ray.table.nets import BusinessValues, Layout
from genai_ray.table.source import TableData, load_table
from genai_ray.table.spec import TableDataSpec

ADULT = tuple(
    "age workclass fnlwgt education education-num marital-status occupation relationship race sex "
    "capital-gain capital-loss hours-per-week native-country income".split()
)
ENGINES = ("unit", "cycle", *(f"setting{i}" for i in (1, 2, 3)), *(f"s{i}" for i in range(1, 22)))


def spec_of(
    root: Path | str, holdout: float = 0.2, holdout_root: Path | str | None = None, **table: Any
) -> TableDataSpec:
    judging: dict[str, Any] = {"holdout": holdout}
    if holdout_root is not None:
        judging = {"holdout_root": str(holdout_root)}
    return TableDataSpec(
        source="table",
        root=str(root),
        table=table,  # pyright: ignore[reportArgumentType]
        **judging,
    )


def load(table: pa.Table, conditional: bool = False, **spec: Any) -> TableData:
    """A table by way of a Parquet file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.parquet"
        pq.write_table(table, path)
        return load_table(spec_of(path, **spec), conditional=conditional)


def load_csv(path: Path, text: str | bytes, **spec: Any) -> TableData:
    """A table by way of a CSV file."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_table(spec_of(path, **spec))


def back(data: TableData, seed: int = 0) -> pa.Table:
    """Training rows encoded and decoded, by a codec that was JSON in between."""
    codec = TableCodec.from_json(json.loads(json.dumps(data.codec.to_json())))
    assert codec == data.codec
    return decoded(codec, data.codes, data.scalars, seed)


def decoded(codec: TableCodec, codes: NDArray[np.integer], scalars: NDArray[np.floating], seed: int) -> pa.Table:
    """Rows of codes (N, parts) and scalars (N, numeric parts), by the end of the graph that ships."""
    layout = Layout(codec)
    numbers = np.empty(scalars.shape)
    if layout.numeric:
        numeric = torch.from_numpy(codes[:, layout.numeric].astype(np.int64))
        numbers = BusinessValues(layout)(numeric, torch.from_numpy(scalars)).numpy()
    return codec.decode(codes[:, layout.discrete], numbers, np.arange(len(codes)), seed)


def invented(data: TableData, rows: int, seed: int = 0) -> pa.Table:
    """Rows of a model that knows nothing: codes and scalars drawn evenly."""
    rng = np.random.Generator(np.random.Philox(seed))
    codes = np.stack([rng.integers(0, p.size, rows) for p in data.codec.parts], 1)
    scalars = rng.uniform(-1, 1, (rows, len(data.codec.numeric)))
    return decoded(data.codec, codes, scalars, seed)
