"""The worked examples of docs/extending.md, copied into the package and taken from data to a report.

Run as a program, with the package on the path: `test_extending.py SPEC [key=value ...]` is the whole way of a
run in one process, without a cluster.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SMALL

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "extending.md"
_DEADLINE_S = 100
DIGITS = str(ROOT / "jobs" / "specs" / "digits.yaml")


def blocks(section: str) -> Iterator[tuple[str, str, str]]:
    """Language, file and content of each code block of a section that begins with the name of a file."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    yield from re.findall(r"^```(\w+)\n# (\S+)\n(.*?)^```$", text, re.M | re.S)


def changed(text: str, diff: str) -> str:
    """The text with a diff applied, whose lines must be found exactly once."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] or "\n" for line in lines if line[0] in " -\n")
    after = "".join(line[1:] or "\n" for line in lines if line[0] in " +\n")
    assert text.count(before) == 1, before
    return text.replace(before, after)


class Copy:
    """A copy of the package with the example of a section; added and edited: its files."""

    def __init__(self, folder: Path, section: str):
        self.folder, self.package = folder, folder / "genai_ray"
        shutil.copytree(ROOT / "genai_ray", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self.added: list[str] = []
        self.edited: list[str] = []
        for language, file, content in blocks(section):
            path = self.package / file if language != "yaml" else folder / file
            if language == "diff":
                content = changed(path.read_text(encoding="utf-8"), content)
            else:
                assert not path.exists()
            if language != "yaml":
                (self.edited if language == "diff" else self.added).append(file)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(self.folder)}
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=_DEADLINE_S
        )

    def whole_way(self, *arguments: str) -> dict[str, Any]:
        """What a run in the store of this copy gave, see `main`."""
        done = self.run(__file__, *arguments, f"store={self.folder}/runs")
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    def refusal(self, *arguments: str) -> str:
        """What is said of a spec that cannot be loaded."""
        done = self.run("-c", "import sys; from genai_ray import load; load(sys.argv[1], sys.argv[2:])", *arguments)
        assert done.returncode
        return done.stderr.splitlines()[-1]


@pytest.fixture
def copy(request: pytest.FixtureRequest, tmp_path: Path) -> Copy:
    return Copy(tmp_path, request.param)


@pytest.fixture
def small(copy: Copy, trained_store: Path) -> Path:
    """The small run of the session, trained and exported, in the store of the copy."""
    return Path(shutil.copytree(trained_store / "small", copy.folder / "runs" / "small"))


def example(section: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("copy", [section], indirect=True, ids=[""])


@example("A sink")
def test_a_sink(copy: Copy, small: Path):
    assert (len(copy.added), len(set(copy.edited))) == (1, 1)
    found = copy.whole_way(DIGITS, *SMALL, "generate.sink=zip")
    assert not found["faults"]
    assert found["files"] == [f"data/part-{i:06d}.zip" for i in range(4)]
    assert found["counts"]["generated"] == 1000
    assert "sink=zip" in copy.refusal(DIGITS, "generate.sink=zip", "generate.encoding=raw")


@example("A metric")
def test_a_metric(copy: Copy, small: Path):
    assert not copy.added
    assert len(set(copy.edited)) <= 2
    found = copy.whole_way(DIGITS, *SMALL, "evaluate.gates={brightness_gap_max: 0.99}")
    assert 0 < found["real"]["brightness_gap"] < found["fake"]["brightness_gap"] < 0.99
    assert found["gates"] == {"brightness_gap_max": True}
    assert "brightness_gap" in (small / "report/report.html").read_text(encoding="utf-8")
    assert "between 0 and 1" in copy.refusal(DIGITS, "evaluate.gates={brightness_gap_max: 2}")


@pytest.mark.slow
@example("A family")
def test_a_family(copy: Copy, small: Path):
    assert (len(copy.added), len(set(copy.edited))) == (1, 1)
    shutil.copytree(small / "report", copy.folder / "runs/flow/report")  # the features of the same images
    small_flow = [*SMALL[3:], "name=flow", "model.preset=flow", "train.samples=32_000"]
    found = copy.whole_way(DIGITS, *small_flow, "train.checkpoint_every=32_000")
    assert not found["faults"]
    assert found["fake"]["agreement"] > 0.5
    assert "steps" in copy.refusal(DIGITS, "model.preset=flow", "model.step=3")


@pytest.mark.slow
@example("A modality")
def test_a_modality(copy: Copy):
    assert {Path(file).parent for file in copy.added} == {Path("signal")}
    assert copy.edited == ["modalities.py"]
    lines = (diff.splitlines() for language, _, diff in blocks("A modality") if language == "diff")
    assert [line[0] for diff in lines for line in diff] == ["-", "+"]
    np.save(copy.folder / "recording.npy", recording(32_000))
    found = copy.whole_way("signal.yaml", "train.workers=0")
    assert not found["faults"]
    assert found["gates"] == {"spectrum_gap_max": True, "coverage_ratio_min": True}
    assert "window" in copy.refusal("signal.yaml", "data.windows=8")


def recording(count: int) -> np.ndarray:
    """A sine of slowly varying strength, with a little noise."""
    time, noise = np.arange(count), np.random.default_rng(0).normal(size=count)
    return (1 + 0.5 * np.sin(time / 1000)) * np.sin(time / 3) + 0.05 * noise


@pytest.mark.parametrize("section", ["A sink", "A metric", "A family", "A modality"])
def test_examples_are_of_the_style_of_the_house(section: str, tmp_path: Path):
    copy = Copy(tmp_path, section)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    files = [f"genai_ray/{file}" for file in [*copy.added, *set(copy.edited)]]
    assert not copy.run("-m", "ruff", "check", "--quiet", *files).stdout
    assert not copy.run("-m", "ruff", "format", "--diff", "--quiet", *files).stdout


def main(path: str, overrides: list[str]) -> None:
    """Train, export, generate, evaluate and verify in this process; the last line of the output is JSON."""
    from genai_ray import modalities
    from genai_ray.dataset.manifest import read_receipts, write_manifest
    from genai_ray.dataset.plan import open_plan, write_fields
    from genai_ray.dataset.shards import ShardMaker
    from genai_ray.dataset.verify import verify
    from genai_ray.evaluate import evaluate
    from genai_ray.export import export
    from genai_ray.training.train import train

    spec = modalities.load(path, overrides)
    data = modalities.of_spec(spec).load(spec)
    train(spec, data)
    export(spec)
    plan = open_plan(spec)
    write_fields(plan)
    maker = ShardMaker(plan)
    for index in range(plan.shard_count):
        maker.make(plan.shard(index))
    write_manifest(plan, read_receipts(plan))
    result = evaluate(spec, data)
    checked = verify(spec.run_uri, regenerate=1)
    found = {
        "fake": result.fake,
        "real": result.real,
        "gates": {gate.name: gate.passed for gate in result.gates},
        "counts": json.loads(Path(result.uri, "quality.json").read_text())["counts"],
        "files": plan.store.list("data/"),
        "faults": checked.faults,
    }
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
