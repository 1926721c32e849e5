"""What users write, read as they mean it: scalars, keys and overrides; and overrides that we print, read back."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray import modalities
from genai_ray.errors import UserError
from genai_ray.image.spec import ImageRun
from genai_ray.spec import assignment, override
from genai_ray.spec.notation import format_yaml, parse_yaml, read_yaml
from genai_ray.table.spec import TableRun

#: A scalar, and what it is in a file and in an override.
SCALARS: list[tuple[str, object]] = [
    ("true", True),
    ("False", False),
    ("null", None),
    ("~", None),
    ("7", 7),
    ("-0", 0),
    ("1_000", 1000),
    ("0x1f", 31),
    ("1e6", 1e6),
    ("1e-4", 1e-4),
    ("+1.5", 1.5),
    (".5", 0.5),
    ("-.inf", float("-inf")),
    *[(word, word) for word in ("no", "yes", "on", "off", "y", "n", "No", "NULLS", "tRUE", "=", "<<x")],
    *[(code, code) for code in ("010", "00", "-01", "007.5", "1:30", "12:30:45", "1.2.3", "1e", "0b11", "_1")],
    *[(day, day) for day in ("2024-12-31", "2024-12-31 10:00:00", "2024-12-31T10:00:00Z")],
    *[(path, path) for path in ("~/x", "C:\\new\\table", "C:/data", "s3://b/p", "a,b", "a#b", "-")],
]


def overridden(string: str) -> object:
    return override({}, [f"key={string}"])["key"]


@pytest.mark.parametrize(("scalar", "value"), SCALARS)
def test_a_scalar_is_the_same_in_an_override_and_in_a_file(scalar: str, value: object):
    for found in (overridden(scalar), overridden(f"[{scalar}]") if "," not in scalar else [value]):
        found = found[0] if isinstance(found, list) else found
        assert (found, type(found)) == (value, type(value))
    if scalar != "-":  # which begins a list there
        found = parse_yaml(f"key: {scalar}")["key"]
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "string",
    [
        *(
            "D/My Photos #2",
            "# x",
            "a: b",
            "a b",
            " x",
            "x ",
            " ",
            "\t",
            "!tag x",
            "&a",
            "*a",
            "|",
            ">",
            "%",
            "@x",
            "`x`",
        ),
        *("@x", "`x`", "- a", "? a", "it's", 'a "b"', "a]", "D:\\", "<<", "x=y", "\x00", "a\nb"),
    ],
)
def test_any_other_string_stays_as_it_is_typed(string: str):
    assert overridden(string) == string


@pytest.mark.parametrize(
    ("string", "value"),
    [
        ("'D/a #2'", "D/a #2"),
        ('"7"', "7"),
        ("'it''s'", "it's"),
        ("[1, no, 'a #b']", [1, "no", "a #b"]),
        ("{no: 250, 010: 1, 0.5: x, null: [y]}", {"no": 250, "010": 1, "0.5": "x", "null": ["y"]}),
        ("", None),
    ],
)
def test_quoted_strings_lists_and_mappings(string: str, value: object):
    assert overridden(string) == value


@pytest.mark.parametrize(
    "string", ["[1,", "{a", "'a", "[2020] Photos", "{x} #2", '"a": 1', "[1] # one", "{a: 1, a: 2}"]
)
def test_what_only_begins_like_a_value_is_an_error_whose_remedy_works(string: str):
    with pytest.raises(UserError, match="must hold a YAML value") as caught:
        overridden(string)
    (remedy,) = shlex.split(caught.value.remedy.partition("quote it: ")[2].removesuffix("."))
    assert override({}, [remedy]) == {"key": string}


def test_keys_of_a_file_are_what_is_written(tmp_path: Path):
    path = tmp_path / "spec.yaml"
    path.write_text("no: 1\n010: 2\n0.50: 3\n2024-12-31: 4\ntrue: {~: 5}\n'x y': &a {b: 1}\nz: {<<: *a, c: 2}")
    read = read_yaml(path)
    assert read.pop("z") == {"b": 1, "c": 2}
    assert read == {"no": 1, "010": 2, "0.50": 3, "2024-12-31": 4, "true": {"~": 5}, "x y": {"b": 1}}


@pytest.mark.parametrize("text", ["a: 1\na: 2", "1: a\n'1': b", "? [a]\n: 1", "? {a: 1}\n: 2"])
def test_keys_that_are_none_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"must be valid YAML \((a )?key"):
        read_yaml(path)


# --- keys of overrides ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "path", "value"),
    [
        ('a."note.text".b=drop', ["a", "note.text", "b"], "drop"),
        ('a."a=b".min=0', ["a", "a=b", "min"], 0),
        (r'a."say \"hi\"".b=1', ["a", 'say "hi"', "b"], 1),
        ('""=1', [""], 1),
        ("price (USD).x=1", ["price (USD)", "x"], 1),
        ('a"b"=1', ['a"b"'], 1),
        ('a="b.c"=1', ["a"], None),
    ],
)
def test_a_part_in_quotes_may_hold_dots_and_equals_signs(one: str, path: list[str], value: object):
    if value is None:
        with pytest.raises(UserError, match="must hold a YAML value"):
            override({}, [one])
        return
    for part in reversed(path):
        value = {part: value}
    assert override({}, [one]) == value


@pytest.mark.parametrize("one", ["a", "=1", "a..b=1", ".a=1", "a.=1", '"a=1', '"a"b=1', r'"\q"=1', ""])
def test_a_key_that_is_none_is_refused(one: str):
    with pytest.raises(UserError, match="must look like key=value") as caught:
        override({}, [one])
    assert caught.value.value == one


STRINGS = st.text() | st.sampled_from([string for string, _ in SCALARS])
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from([s for s, _ in SCALARS]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3), PLAIN)
def test_an_override_that_we_print_sets_what_it_says(path: list[str], value: Any):
    printed = assignment(path, value)
    for part in reversed(path):
        value = {part: value}
    assert override({}, shlex.split(printed)) == value


@settings(deadline=None)
@given(st.dictionaries(st.text(), PLAIN, max_size=3))
def test_what_we_save_is_the_same_to_both_versions_of_yaml(values: dict[str, Any]):
    saved = format_yaml(values)
    assert parse_yaml(saved) == values
    assert yaml.safe_load(saved) == values


@pytest.mark.parametrize(
    ("path", "value", "printed"),
    [
        (["train", "workers"], 2, "train.workers=2"),
        (["data", "root"], "D/x", "data.root=D/x"),
        (["data", "root"], "My Photos #2", "'data.root=My Photos #2'"),
        (["columns", "note.text"], "drop", """'columns."note.text"=drop'"""),
        (["model", "conditional"], True, "model.conditional=true"),
        (["data", "holdout"], None, "data.holdout=null"),
        (["classes"], {"no": 1, "010": 2}, """'classes={"no": 1, "010": 2}'"""),
        (["code"], "7", """'code="7"'"""),
    ],
)
def test_an_override_is_printed_as_simply_as_it_can_be(path: list[str], value: object, printed: str):
    assert assignment(path, value) == printed


# --- whole specs ---------------------------------------------------------------------------------


def loaded(*overrides: str) -> Any:
    digits = Path(__file__).resolve().parents[1] / "jobs" / "specs" / "digits.yaml"
    return modalities.load(digits, overrides)


def test_a_folder_with_a_hash_is_the_folder_that_was_named():
    spec = loaded("data.source=folder", "data.root=D/My Photos #2")
    assert spec.data.root == "D/My Photos #2"


def test_classes_keep_their_names():
    spec = loaded("model.conditional=true", "generate.classes={no: 250, yes: 250, 010: 1, 8: 2}")
    assert isinstance(spec, ImageRun)
    assert spec.generate.classes == {"no": 250, "yes": 250, "010": 1, "8": 2}


def test_columns_with_dots_and_equals_signs_can_be_named():
    text = {"name": "x", "data": {"source": "table", "root": "x.csv"}, "model": {"preset": "table_ar"}}
    given = ["a=b", "note.text", "price [USD]"]
    overrides = [shlex.split(assignment(["data", "table", "columns", name, "type"], "drop"))[0] for name in given]
    spec = modalities.parse(override(text, overrides))
    assert isinstance(spec, TableRun)
    assert list(spec.data.table.columns) == given


def test_an_error_names_the_column_as_an_override_does():
    text = {"name": "x", "data": {"source": "table", "root": "x.csv"}, "model": {"preset": "table_ar"}}
    with pytest.raises(UserError) as caught:
        modalities.parse(override(text, ['data.table.columns."price [USD].x".decimals=-1']))
    assert caught.value.field == 'data.table.columns."price [USD].x".decimals'


def test_a_name_that_was_split_at_its_dot_is_told_how_to_be_written():
    text = {"name": "x", "data": {"source": "table", "root": "x.csv"}, "model": {"preset": "table_ar"}}
    with pytest.raises(UserError, match="is not a key of the spec") as caught:
        modalities.parse(override(text, ["data.table.columns.note.text=drop"]))
    assert 'data.table.columns."note.text"' in caught.value.remedy
