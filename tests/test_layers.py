"""Contract below, registry above, wings between: who imports whom, read from the files themselves.

Everything counts as an import, wherever it stands in a file: at its head, inside a function, for type
checkers only, or as the name "package.module:function" of what is imported on use.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "genai_ray"

#: From the bottom to the top: a file imports from its own row or from lower ones.
ROWS = {
    "ground": {"errors", "progress", "rng", "labels", "hive", "s3", "storage"},
    "values": {"provenance", "spec", "metrics", "report"},
    "contract": {
        "modality",
        "families",
        "losses",
        "penalties",
        "order",
        "quotas",
        "onnx_session",
        "precision",
        "cluster",
        "lease",
        "sinks",
    },
    "wings": {"image", "table"},
    "registry": {"modalities"},
    "engines": {"runs", "training", "export", "dataset", "evaluate", "local"},
    "verbs": {"pipeline", "plan", "inspect"},
    "command": {"cli"},
}
ROW = {name: row for row, names in enumerate(ROWS.values()) for name in names}
#: The only files that name Ray, and only inside functions: importing them must not start or load it.
KNOW_RAY = {"cluster.py", "local.py", "training/group.py", "dataset/generate.py", "image/spool.py"}

FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
INNER = [name for name in FILES if name != "__init__.py"]  # the root re-exports, and is above all


def room(name: str) -> str:
    """The module or package at the top level that a file belongs to."""
    return name.split("/")[0].removesuffix(".py")


def names(path: Path, *, on_use: bool = True) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports; `on_use`: or names as a string."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif on_use and isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(r"genai_ray(\.\w+)*:\w*", node.value):
                yield node.lineno, node.value.partition(":")[0]
            elif re.fullmatch(r"genai_ray(\.\w+)+", node.value):
                yield node.lineno, node.value


def ours(path: Path, *, on_use: bool = True) -> Iterator[tuple[int, str]]:
    """Line and file of what a file imports from this package."""
    for line, name in names(path, on_use=on_use):
        parts = name.split(".")
        if parts[0] != "genai_ray" or parts[1:2] == ["__version__"]:
            continue
        for end in range(len(parts), 1, -1):
            stem = "/".join(parts[1:end])
            match = next((f for f in (f"{stem}.py", f"{stem}/__init__.py") if f in FILES), None)
            if match is not None:
                yield line, match
                break


def test_every_file_has_a_row():
    assert {room(name) for name in INNER} == set(ROW)


@pytest.mark.parametrize("name", INNER)
def test_imports_come_from_the_same_row_or_lower(name: str):
    row = ROW[room(name)]
    wrong = [f"{name}:{line} imports {other}" for line, other in ours(FILES[name]) if ROW[room(other)] > row]
    assert not wrong


@pytest.mark.parametrize("name", [n for n in INNER if room(n) in ROWS["wings"]])
def test_a_wing_never_imports_another(name: str):
    others = ROWS["wings"] - {room(name)}
    assert not [line for line, other in ours(FILES[name]) if room(other) in others]


@pytest.mark.parametrize("name", [n for n in INNER if ROW[room(n)] > ROW["modalities"]])
def test_an_engine_names_no_modality(name: str):
    assert not [line for line, other in ours(FILES[name]) if room(other) in ROWS["wings"]]
    words = {w for _, w in strings(FILES[name])}
    assert not words & ROWS["wings"]


def strings(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def test_there_is_no_circle():
    """A value may name what is built from it (a section its family), which is no import of either."""
    graph = {name: {other for _, other in ours(FILES[name], on_use=False) if other != name} for name in INNER}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("name", INNER)
def test_only_few_know_ray(name: str):
    lines = [line for line, other in names(FILES[name]) if other.split(".")[0] == "ray"]
    assert not lines or name in KNOW_RAY


def test_the_reading_of_imports_sees_all_kinds():
    """What the other tests stand on, where the answer is known."""
    image = {other for _, other in ours(FILES["image/__init__.py"])}
    assert {"image/spec.py", "image/source.py", "sinks/iceberg.py", "image/folder.py"} <= image
    assert "report/page.py" in {other for _, other in ours(FILES["modality.py"])}
    assert "image/gan.py" in {other for _, other in ours(FILES["image/spec.py"])}
    assert any(name == "ray" for _, name in names(FILES["cluster.py"]))


# --- budgets -------------------------------------------------------------------------------------


def lines_of(*rooms: str) -> int:
    texts = [path.read_text(encoding="utf-8") for name, path in FILES.items() if room(name) in rooms]
    return sum(text.count("\n") for text in texts)


@pytest.mark.parametrize(
    ("rooms", "limit"),
    [
        (("training", "dataset", "export", "evaluate"), 2_500),
        (("image",), 5_500),
        (("table",), 8_900),
        (("spec", "cli", "plan", "inspect"), 1_400),
    ],
)
def test_a_room_keeps_its_budget(rooms: tuple[str, ...], limit: int):
    assert lines_of(*rooms) <= limit


@pytest.mark.parametrize("name", FILES)
def test_files_classes_and_functions_are_short(name: str):
    text = FILES[name].read_text(encoding="utf-8")
    assert text.count("\n") <= 500
    limits = {ast.ClassDef: 300, ast.FunctionDef: 90 if name == "training/loop.py" else 60}
    for node in ast.walk(ast.parse(text)):
        limit = limits.get(type(node))
        if limit is not None and isinstance(node, ast.ClassDef | ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < limit, f"{name}:{node.lineno} {node.name}"


def test_the_package_has_no_exception_from_the_formatter():
    assert not [n for n, path in FILES.items() if re.search(r"# fmt: (off|skip)", path.read_text("utf-8"))]


# --- what an import costs ------------------------------------------------------------------------


def loaded_by(module: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after one import."""
    code = f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("genai_ray.dataset.generate", {"ray", "torch", "torchvision", "sklearn"}),
        ("genai_ray.dataset.verify", {"ray", "torch", "torchvision", "sklearn"}),
        ("genai_ray.training.train", {"ray"}),
        ("genai_ray.local", {"ray", "torch"}),
        ("genai_ray.modalities", {"ray", "torch", "numpy", "boto3", "pyarrow"}),
        ("genai_ray.image, genai_ray.table", {"ray", "torch", "boto3", "pyarrow"}),
        ("genai_ray.storage", {"ray", "torch", "numpy", "boto3"}),
        ("genai_ray.cli", {"ray", "torch", "numpy", "boto3", "pyarrow"}),
    ],
)
def test_an_import_leaves_out_what_is_slow(module: str, without: set[str]):
    loaded = loaded_by(module)
    assert "genai_ray" in loaded
    assert not loaded & without
