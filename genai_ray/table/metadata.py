"""Types of columns from SDV metadata, as JSON of version SINGLE_TABLE_V1 or V1 (with `tables`).

Format: https://docs.sdv.dev/sdv/concepts/metadata/metadata-json
"""

import json
from collections.abc import Collection
from typing import Any

from genai_ray.errors import UserError, nearest
from genai_ray.storage import Store
from genai_ray.table.spec import ColumnSpec

FIELD = "data.table.metadata"
_PLAIN = {"numerical", "categorical", "boolean"}
_WHOLE = {"Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"}


def read_metadata(uri: str, columns: Collection[str], decided: Collection[str]) -> dict[str, ColumnSpec]:
    """What the metadata say of the columns; of type `unknown` they say nothing.

    Args:
        columns: of the table. decided: those that the spec has a type for.

    Raises:
        UserError: for a malformed file, for a column that is not in the table, and for
            personal data that the spec does not decide about.
    """
    table = _table(uri)
    specs: dict[str, ColumnSpec] = {}
    for name, what in table["columns"].items():
        if name not in columns:
            raise UserError(FIELD, name, "is a column of the metadata and not of the table", nearest(name, columns))
        if name not in decided:
            specs[name] = _column(name, what)
    keys, more = (table.get(k) or [] for k in ("primary_key", "alternate_keys"))
    for what in (keys, more):
        if not isinstance(what, list) and not (what is keys and isinstance(what, str)):
            raise UserError(FIELD, what, "is a key that is no name of a column", "Correct it.")
    for key in [*([keys] if isinstance(keys, str) else keys), *more]:
        if not isinstance(key, str):
            raise UserError(
                FIELD, key, "is a key of several columns, which is not supported", "Leave the key out of the metadata."
            )
        if isinstance(keys, list) and len(keys) > 1 and key in keys:
            continue  # unique together, so none of them need be
        if key not in columns:
            raise UserError(FIELD, key, "is a key and not a column of the table", nearest(key, columns))
        if key not in decided:
            pattern = specs[key].pattern if key in specs else None
            specs[key] = ColumnSpec(type="id", pattern=pattern)
    return specs


def _table(uri: str) -> dict[str, Any]:
    folder, _, name = uri.rpartition("/")
    try:
        content = json.loads(Store(folder or ".", FIELD).read(name))
    except FileNotFoundError:
        raise UserError(FIELD, uri, "must be a file that exists", "Check the path.") from None
    except UserError:
        raise
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(FIELD, uri, f"must be JSON ({error})", "Check the file.") from None
    tables = content.get("tables") if isinstance(content, dict) else None
    if isinstance(tables, dict):
        if len(tables) != 1:
            raise UserError(FIELD, sorted(tables), "must describe one table", "Keep the table that is learnt.")
        content = next(iter(tables.values()))
    if not isinstance(content, dict) or not isinstance(content.get("columns"), dict):
        raise UserError(
            FIELD,
            uri,
            "must have `columns`, or `tables` with one table that has them",
            "Save it by `metadata.save_to_json` of SDV 1.x.",
        )
    return content


def _column(name: str, what: Any) -> ColumnSpec:
    strings = ("sdtype", "datetime_format", "regex_format", "computer_representation")
    if not isinstance(what, dict) or not all(isinstance(what.get(k) or "", str) for k in strings):
        raise UserError(
            FIELD,
            f"{name}: {what}",
            "must be a mapping of strings that describes a column",
            'Write it as {"sdtype": "numerical"}.',
        )
    kind = what.get("sdtype")
    if kind in _PLAIN:
        whole = what.get("computer_representation") in _WHOLE
        return ColumnSpec(type=kind, decimals=0 if whole else None)
    if kind == "datetime":
        return ColumnSpec(type="datetime", datetime_format=what.get("datetime_format"))
    if kind == "id":
        return ColumnSpec(type="id", pattern=what.get("regex_format"))
    if kind == "unknown" and not what.get("pii"):
        return ColumnSpec()
    personal = "personal data" if kind and kind != "unknown" else "of unknown type and personal"
    raise UserError(
        FIELD,
        f"{name}: {kind}",
        f"is {personal}, which is not learnt and not invented here",
        f"Set data.table.columns.{name}=drop; or =id with a pattern, if it is one; or "
        "=categorical, if its frequent values may be shown.",
    )
