"""What the docs say can be found: links, files, tests, commands, keys; presets.md is of the code.

`python tests/test_docs.py` writes docs/presets.md again.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from genai_ray import modalities
from genai_ray.cli import app
from genai_ray.spec import Spec

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(path for folder in (".", "docs", "cluster") for path in (ROOT / folder).glob("*.md"))
PRESETS_PAGE = ROOT / "docs" / "presets.md"

#: Keys that no longer exist may be named where changes are listed.
BY_KEY = [path for path in DOCS if path.name != "CHANGELOG.md"]

#: Words of our own, and what the field says.
PRIVATE = {
    r"(?<!model )\bcards?\b": "GPU",
    r"\b(is|are|was|be|also) told\b|\btells (also|that|whether)\b": "is reported, shows",
    r"\b(goes|go|going|went|gone) on\b": "resumes",
    r"\blearners?\b": "classifier, regressor",
    r"\bjudges?\b": "evaluate, evaluator",
    r"\b(stands|lies) (there|beside)\b": "is",
    r"\bso many\b": "a number",
    r"\bin vain\b|\brides? along\b|\broll call\b|\bsigns? of life\b": "heartbeat, rejected",
    r"\bthousand million\b": "10^9",
    r"\bis not to be had\b|\bcomes? to an? \b": "reaches",
}

named = pytest.mark.parametrize("path", DOCS, ids=lambda path: path.relative_to(ROOT).as_posix())


def prose(text: str) -> str:
    """The text with its code left out, blocks and spans."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^    .*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`", "`", text)


def code(text: str) -> str:
    """What `prose` leaves out."""
    blocks = re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"^    .*$", text, flags=re.MULTILINE), *re.findall(r"`[^`]*`", text)])


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    slugs: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        taken = [slug, *(f"{slug}-{i}" for i in range(1, 100))]
        slugs.add(next(name for name in taken if name not in slugs))
    return slugs


def broken_links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            yield target


@named
def test_links_and_anchors_resolve(path: Path):
    assert not list(broken_links(path))


def test_broken_links_are_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# One: two\n[a](#one-two) [b](#two) [c](gone.md) [d](https://x.org) `[e](f)`\n")
    assert list(broken_links(page)) == ["#two", "gone.md"]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200


@named
def test_files_that_are_named_exist(path: Path):
    folders = "jobs|cluster|docs|tests|benchmarks|genai_ray"
    names = re.findall(rf"(?<![\w/])(?:{folders})/[\w./-]*\.\w+", code(path.read_text(encoding="utf-8")))
    assert not [name for name in names if not (ROOT / name).is_file()]


@named
def test_tests_that_are_named_exist(path: Path):
    for file, functions in re.findall(r"`(test_\w+\.py)(?::\s*([\w,\s]+))?`", path.read_text(encoding="utf-8")):
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        for function in re.findall(r"\w+", functions):
            assert f"def {function}(" in text, f"{file}: {function}"


def commands() -> dict[str, dict[str, Any]]:
    """Each command of the CLI, with its own commands, if any."""
    root: Any = typer.main.get_command(app)
    return {name: getattr(command, "commands", {}) for name, command in root.commands.items()}


@named
def test_commands_that_are_named_exist(path: Path):
    known = commands()
    text = code(path.read_text(encoding="utf-8"))
    for verb, rest in re.findall(r"(?<![\w/-])genai-ray ([a-z]+)(?: ([a-z\\|]+))?", text):
        assert verb in known
        if known[verb] and rest:
            assert set(re.split(r"\\?\|", rest)) <= set(known[verb])


def test_the_readme_names_every_command():
    text = code((ROOT / "README.md").read_text(encoding="utf-8"))
    assert not [verb for verb in commands() if f"genai-ray {verb}" not in text]


def has_key(schema: dict[str, Any], path: list[str], definitions: Mapping[str, Any]) -> bool:
    """Whether a spec may have a key, in any of the forms that a section can take."""
    if "$ref" in schema:
        return has_key(definitions[schema["$ref"].rpartition("/")[2]], path, definitions)
    forms = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if any(has_key(form, path, definitions) for form in forms):
        return True
    if not path:
        return True
    # Gates and columns are keyed by names that no schema lists.
    inside = schema.get("properties", {}).get(path[0], schema.get("additionalProperties") or None)
    return inside is not None and has_key(inside, path[1:], definitions)


@pytest.mark.parametrize("path", BY_KEY, ids=lambda path: path.name)
def test_keys_that_are_named_exist(path: Path):
    schema = modalities.schema()
    sections = "|".join(Spec.model_fields.keys() - {"name", "seed", "store"})
    text = code(path.read_text("utf-8"))
    text = re.sub(r"^```python.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)  # attributes, not keys
    names = re.findall(rf"(?<![\w./-])(?:{sections})(?:\.[a-z_0-9]+)+(?!\.?\w)", text)
    keys = {name for name in names if not name.endswith(".py")}
    assert not sorted(key for key in keys if not has_key(schema, key.split("."), schema["$defs"]))


def presets_page() -> str:
    """docs/presets.md, from the code."""
    lines = [
        "# Presets",
        "",
        "A preset is a set of values of the section `model`; each can be changed by its name, such as",
        "`model.width=32`. This page is written from the code; `genai-ray presets` prints the same.",
        "",
        "| preset | makes | what | source |",
        "|---|---|---|---|",
    ]
    for kind in modalities.every():
        for name, preset in kind.presets.items():
            lines.append(f"| [`{name}`](#{name}) | {kind.noun}s | {preset.about} | {preset.source} |")
    for name, preset in modalities.presets().items():
        values = {key: list(v) if isinstance(v, tuple) else v for key, v in preset.values.items()}
        section = {"model": {"preset": name, **values}}
        lines += ["", f"## {name}", "", "```yaml"]
        lines += [yaml.safe_dump(section, sort_keys=False, default_flow_style=None, width=100).rstrip(), "```"]
    return "\n".join(lines) + "\n"


def test_the_page_of_presets_is_of_the_code():
    written = PRESETS_PAGE.read_text(encoding="utf-8")
    assert written == presets_page(), "write it again: python tests/test_docs.py"


@named
def test_no_word_is_private(path: Path):
    text = prose(path.read_text(encoding="utf-8")).lower()
    found = {match[0]: use for word, use in PRIVATE.items() if (match := re.search(word, text))}
    assert not found


def test_the_map_names_every_room():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    package = ROOT / "genai_ray"
    rooms = [p.parent for p in package.glob("*/__init__.py")] + list(package.glob("[a-z]*.py"))
    assert not sorted(room.stem for room in rooms if not re.search(rf"\b{room.stem}\b", text))


if __name__ == "__main__":
    PRESETS_PAGE.write_text(presets_page(), encoding="utf-8")
