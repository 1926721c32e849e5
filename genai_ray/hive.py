"""Folders that hold a column, as Hive and Spark write them: `year=2023/region=north/part-0.parquet`."""

from urllib.parse import unquote

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def columns_in_path(key: str) -> dict[str, str | None]:
    """The columns that the folders of a key name, in order; None is a missing value."""
    pairs = (folder.partition("=") for folder in key.split("/")[:-1])
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, equals, value in pairs if equals}
