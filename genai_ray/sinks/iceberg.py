"""A data set as one snapshot of an Iceberg table.

The shards are Parquet files in the store; one commit adds all of them to the table, after the manifest. Address and
credentials of the catalog come from pyiceberg's own settings (environment or `.pyiceberg.yaml`); S3 settings that are
missing there come from the AWS environment, like the store's.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.errors import IncompleteError, UserError
from genai_ray.modality import R, Sink
from genai_ray.provenance import Manifest
from genai_ray.spec import GenerateSpec
from genai_ray.storage import Store

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

T = TypeVar("T")

_FINGERPRINT = "genai_ray.fingerprint"
_PROPERTIES = {
    # The newest that pyiceberg 0.12 writes and all engines read.
    "format-version": "2",
    # The files hold no statistics of blobs, and pyiceberg would warn of each.
    "write.metadata.metrics.column.image": "none",
    "write.metadata.metrics.column.image.bytes": "none",
    "write.metadata.metrics.column.image.path": "none",
}


def iceberg(parquet: Sink[R]) -> Sink[R]:
    """A sink that writes the files of `parquet` and commits them once."""
    return replace(parquet, check=check_iceberg, commit=commit_iceberg)


def check_iceberg(spec: GenerateSpec, store: Store, schema: pa.Schema) -> None:
    """Check, before anything is written, that `commit_iceberg` can work; changes nothing.

    Raises:
        UserError: if pyiceberg is missing, the store is a folder, the catalog does not answer or refuses, the table
            has other columns, or Iceberg has no type for a column.
    """
    catalog, table = spec.catalog, spec.table
    assert table is not None
    try:
        import pyiceberg  # noqa: F401
    except ImportError:
        raise UserError(
            "generate.sink", "iceberg", "needs pyiceberg, which is not installed", "pip install 'genai-ray[iceberg]'"
        ) from None
    if not store.uri.startswith("s3://"):
        raise UserError(
            "store",
            store.uri,
            "must be s3://… for generate.sink=iceberg, since the readers of a table find its files by their URI",
            "Set store=s3://bucket/prefix.",
        )
    columns = _columns(schema)
    existing = _find_table(_load(catalog), catalog, table)
    if existing is None:
        return
    if not existing.spec().is_unpartitioned():
        rule = "is partitioned, and the files of a data set are not"
        raise UserError("generate.table", table, rule, "Name another table, or one that does not exist yet.")
    stored = {field.name: _type_name(field.field_type) for field in existing.schema().fields}
    if stored != columns:
        names = sorted(n for n in stored | columns if stored.get(n) != columns.get(n))
        differences = "; ".join(f"{n}: {stored.get(n, 'absent')} there, {columns.get(n, 'absent')} here" for n in names)
        rule = f"exists with other columns ({differences})"
        raise UserError("generate.table", table, rule, "Name another table, or generate what this one holds.")


def commit_iceberg(spec: GenerateSpec, store: Store, manifest: Manifest) -> None:
    """Add all files of a finished data set to a table, in one snapshot; creates the table if need be.

    Nothing is done if the table's history has a snapshot of the same data set.

    Raises:
        UserError: if the catalog refuses.
        IncompleteError: if it does not answer; the same command tries again.
    """
    from pyiceberg.exceptions import CommitFailedException

    catalog, table = spec.catalog, spec.table
    assert table is not None
    if not manifest.files:
        return
    opened = _load(catalog)
    target = _find_table(opened, catalog, table)
    if target is None:
        first = pq.read_schema(pa.BufferReader(store.read(manifest.files[0]["path"])))
        target = _call(catalog, table, lambda: _create(opened, table, first))
    if any(s.summary and s.summary[_FINGERPRINT] == manifest.fingerprint for s in target.snapshots()):
        return
    about = {
        _FINGERPRINT: manifest.fingerprint,
        "genai_ray.model": manifest.model,
        "genai_ray.manifest": hashlib.sha256(manifest.to_json().encode()).hexdigest(),
        "digital-source-type": manifest.synthetic,
    }
    paths = [f"{store.uri}/{record['path']}" for record in manifest.files]
    try:
        _call(catalog, table, lambda: target.add_files(paths, about))
    except CommitFailedException as error:
        raise IncompleteError(
            f"generate.table: other writers keep changing {table} ({error}); the same command tries again"
        ) from None
    except OSError as error:
        raise IncompleteError(
            f"generate.table: pyiceberg cannot read the files of {store.uri} ({error}); the same command tries again"
        ) from None
    except ValueError as error:
        if "already referenced" not in str(error):
            raise
        raise UserError(
            "generate.table",
            table,
            f"holds files of {store.uri} already, of another data set that was stored there",
            "Generate into another folder by generate.into, or remove those files from the table.",
        ) from None


def _create(catalog: "Catalog", table: str, schema: pa.Schema) -> "Table":
    namespace = table.split(".")[:-1]
    for depth in range(1, len(namespace) + 1):
        catalog.create_namespace_if_not_exists(tuple(namespace[:depth]))
    # Without our metadata, which pyiceberg would turn into field ids or comments.
    plain = pa.schema([pa.field(f.name, f.type) for f in schema])
    return catalog.create_table_if_not_exists(table, plain, properties=_PROPERTIES)


def _load(name: str) -> "Catalog":
    from pyiceberg.catalog import load_catalog
    from pyiceberg.exceptions import NotInstalledError
    from pyiceberg.utils.config import Config

    # Read now: pyiceberg caches the settings of the time when it was imported.
    settings: dict[str, Any] = dict(Config().get_catalog_config(name) or {})
    if not settings:
        raise _catalog_error(name, "is no catalog that pyiceberg's settings name")
    defaults = {
        "s3.endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
        "s3.region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
    }
    settings = {k: v for k, v in defaults.items() if v} | settings
    try:
        return _call(name, "", lambda: load_catalog(name, **settings))
    except (ValueError, NotInstalledError) as error:
        if isinstance(error, UserError):
            raise
        raise _catalog_error(name, f"has settings that pyiceberg cannot use ({type(error).__name__})") from None


def _find_table(opened: "Catalog", name: str, table: str) -> "Table | None":
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    def load() -> "Table | None":
        try:
            return opened.load_table(table)
        except (NoSuchTableError, NoSuchNamespaceError):
            # Some catalogs raise the same for a warehouse that does not exist; then this call fails.
            opened.list_namespaces()
            return None

    return _call(name, table, load)


def _call(catalog: str, table: str, request: Callable[[], T]) -> T:
    """Make a request to a catalog; an error that a user can correct becomes a UserError.

    Only messages of the server itself are passed on, as others may hold settings.
    """
    from pyiceberg import exceptions as iceberg
    from requests.exceptions import RequestException

    refused = (iceberg.UnauthorizedError, iceberg.ForbiddenError, iceberg.OAuthError, iceberg.AuthorizationExpiredError)
    try:
        return request()
    except refused as error:
        raise _catalog_error(catalog, f"refuses the credentials ({error})") from None
    except (iceberg.NoSuchNamespaceError, iceberg.BadRequestError) as error:
        raise _catalog_error(catalog, f"does not have it ({error})", f" generate.table is {table!r}.") from None
    except RequestException as error:
        raise _catalog_error(catalog, f"must be reachable ({type(error).__name__})") from None
    except iceberg.RESTError as error:
        # A commit may have been done without an answer: the next attempt looks for it first.
        raise IncompleteError(
            f"generate.catalog: {catalog} fails ({type(error).__name__}: {error}); the same command tries again"
        ) from None


def _catalog_error(catalog: str, rule: str, note: str = "") -> UserError:
    name = f"PYICEBERG_CATALOG__{catalog.upper().replace('-', '_')}__"
    remedy = f"Set {name}URI, {name}CREDENTIAL and what else it needs, or write ~/.pyiceberg.yaml."
    return UserError("generate.catalog", catalog, rule, remedy + note)


def _columns(schema: pa.Schema) -> dict[str, str]:
    """Name and type of each column, as Iceberg has them."""
    from pyiceberg.catalog import Catalog
    from pyiceberg.io.pyarrow import UnsupportedPyArrowTypeException

    columns = {}
    for field in schema:
        try:
            if pa.types.is_unsigned_integer(field.type) and field.type.bit_width >= 32:
                # pyiceberg maps them to signed types, and large numbers would turn negative.
                raise UnsupportedPyArrowTypeException(field, "unsigned")
            converted = Catalog._convert_schema_if_needed(pa.schema([pa.field(field.name, field.type)]))
        except UnsupportedPyArrowTypeException:
            raise UserError(
                "generate.sink",
                "iceberg",
                f"cannot hold column {field.name!r}: Iceberg does not have {field.type}",
                "Save it in the source or the table of conditions as another type, such as int64 or timestamp[us].",
            ) from None
        columns[field.name] = _type_name(converted.fields[0].field_type)
    return columns


def _type_name(kind: Any) -> str:
    """A type without the field ids that a table assigns."""
    from pyiceberg.types import ListType, MapType, StructType

    if isinstance(kind, StructType):
        return f"struct<{', '.join(f'{f.name}: {_type_name(f.field_type)}' for f in kind.fields)}>"
    if isinstance(kind, ListType):
        return f"list<{_type_name(kind.element_type)}>"
    if isinstance(kind, MapType):
        return f"map<{_type_name(kind.key_type)}, {_type_name(kind.value_type)}>"
    return str(kind)
