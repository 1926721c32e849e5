"""Business tables: files of rows as codes and scalars for a network, and back.

files reads them, infer and metadata say what the columns are, constraints what every row keeps,
codec and modes encode, ids makes keys, source puts it together.
"""

from genai_ray.data.table.codec import TableCodec
from genai_ray.data.table.columns import Column, Part
from genai_ray.data.table.source import TableData, describe_file, load_table

__all__ = ["Column", "Part", "TableCodec", "TableData", "describe_file", "load_table"]
