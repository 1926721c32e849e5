"""A module imports from the rows below its own; few know Ray; generation does not need torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "genai_ray"

#: From the bottom to the top. A name is a module or a whole package.
ROWS = [
    {"errors", "labels"},
    {"presets", "rng", "progress"},
    {"config"},
    {"storage", "provenance"},
    {"runs"},
    {"data"},
    {"models"},
    {"checkpoint", "sinks", "metrics", "cluster", "ingest", "state"},
    {"feed", "sampler", "lease"},
    {"samples"},
    {"dataset"},
    {"judges"},
    {"watch"},
    {"train", "generate", "local", "verify"},
    {"export", "evaluate"},
    {"pipeline"},
    {"cli"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
#: May name Ray, and only inside a function: importing them must not start or load it.
KNOW_RAY = {"cluster", "ingest", "train", "generate", "local"}

FILES = sorted(PACKAGE.rglob("*.py"))


def layer(path: Path) -> str:
    """The module or package that a file belongs to; empty for the root of the package."""
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if part == "__init__" else part


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = ("genai_ray", *path.relative_to(PACKAGE).parts)[: -node.level]
                module = ".".join([*package, *filter(None, [module])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def ours(path: Path) -> Iterator[tuple[int, str]]:
    """Line and layer of what a file imports from this package."""
    for line, name in imports(path):
        parts = name.split(".")
        if parts[0] == "genai_ray" and len(parts) > 1 and not parts[1].startswith("__"):
            yield line, parts[1]


def test_every_file_has_a_row():
    assert {layer(path) for path in FILES} - {""} == set(ROW)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_come_from_lower_rows(path: Path):
    own = layer(path)
    row = ROW.get(own, len(ROWS))  # the root of the package re-exports, and is above all
    wrong = [
        f"{path.name}:{line} imports {other}"
        for line, other in ours(path)
        if other != own and ROW[other] >= row
    ]
    assert not wrong


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_only_few_know_ray(path: Path):
    lines = [line for line, name in imports(path) if name.split(".")[0] == "ray"]
    assert not lines or layer(path) in KNOW_RAY


def test_the_reading_of_imports_sees_all_kinds():
    """What the other tests stand on, at places where the answer is known."""
    assert {"config", "storage"} <= {name for _, name in ours(PACKAGE / "runs.py")}
    assert {name for _, name in ours(PACKAGE / "metrics" / "report.py")} == {"metrics"}
    assert {"models", "data", "presets"} <= {name for _, name in ours(PACKAGE / "models" / "gan.py")}
    assert any(name == "ray" for _, name in imports(PACKAGE / "cluster.py"))


def loaded_by(module: str) -> set[str]:
    """Top-level names in `sys.modules` of a fresh interpreter after one import."""
    code = f"import sys, {module}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("genai_ray.dataset.generate", {"ray", "torch", "torchvision", "sklearn"}),
        ("genai_ray.dataset.verify", {"ray", "torch", "torchvision", "sklearn"}),
        ("genai_ray.training.train", {"ray"}),
        ("genai_ray.local", {"ray", "torch"}),
        ("genai_ray.config", {"ray", "torch", "numpy", "boto3", "pyarrow"}),
        ("genai_ray.storage", {"ray", "torch", "numpy", "boto3"}),
        ("genai_ray.cli", {"ray", "torch", "numpy", "boto3", "pyarrow"}),
    ],
)
def test_an_import_leaves_out_what_is_slow(module: str, without: set[str]):
    loaded = loaded_by(module)
    assert "genai_ray" in loaded
    assert not loaded & without
