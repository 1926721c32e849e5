"""The command line: exit codes, errors that help, and nothing written after a mistake."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import small_spec
from PIL import Image

from genai_ray.cli import main

ROOT = Path(__file__).resolve().parents[1]
DIGITS = str(ROOT / "jobs" / "specs" / "digits.yaml")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom genai_ray.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy', 'boto3', 'pydantic', 'onnxruntime'}\n"
        "loaded = heavy & set(sys.modules)\nassert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "generate" in done.stdout


def test_public_names() -> None:
    import genai_ray

    spec = genai_ray.load(DIGITS, ["seed=3"])
    assert isinstance(spec, genai_ray.Spec)
    assert all(hasattr(genai_ray, name) for name in genai_ray.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = genai_ray.nothing


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian.samples=5"], "trian: got {'samples': 5}; is not a key of the spec. Did you mean"),
        (["train.sampels=5"], "train.sampels: got 5; is not a key of the spec. Did you mean"),
        (["train.samples=many"], "train.samples: got 'many'; input should be a valid integer"),
        (["train.workers=3"], "train.global_batch: got 128; must be divisible by train.workers=3"),
        (["model.preset=dcgna"], "model.preset: got 'dcgna'; must name a preset"),
        (["data.source=digit"], "data.source: got 'digit'; must be one of"),
        (["data.source=folder"], "data.root: got None; must say where the folder lies"),
        (["data.source=folder", "data.root=/not/there"], "must be a folder that exists"),
        (["model.conditional=false"], "agreement_min: got 0.9; needs a model with classes"),
        (["store=ftp://x"], "store: got 'ftp://x/digits'; must be a folder or start with s3://"),
        (["data.source=folder", "data.root=hf://u/x"], "data.root: got 'hf://u/x'; must be a folder or start with s3"),
        (["store=file://runs"], "store: got 'file://runs'; must be an absolute path"),
        (["train.workers"], "must look like key=value"),
        (["name=../up"], "name: got '../up'"),
        (["generate.classes={1: 0.5}", "model.conditional=false"], "Set model.conditional=true"),
    ],
)
def test_mistakes_exit_2_and_write_nothing(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    code, out, err = call(capsys, "train", DIGITS, f"store={store}", *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert not store.exists()


def test_store_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = call(capsys, "train", DIGITS, f"store={tmp_path}/file/x", "train.workers=0")
    assert code == 2
    assert "must be a folder that can be written" in err


def test_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "train")[0] == 2
    assert call(capsys, "tarin", DIGITS)[0] == 2
    assert call(capsys, "train", "no/such.yaml")[0] == 2


def test_incomplete_exits_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = call(capsys, "export", DIGITS, f"store={tmp_path}")
    assert code == 3
    assert "run `genai-ray train` first" in err


def test_presets_and_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "presets", "--json")
    assert code == 0
    assert json.loads(out)["dcgan"]["source"].startswith("Radford")
    _, out, _ = call(capsys, "schema")
    image, table = json.loads(out)["anyOf"]
    assert image["properties"]["train"] == table["properties"]["train"]


def overrides(store: Path) -> list[str]:
    spec = small_spec(store)
    return [
        DIGITS,
        f"store={store}",
        "name=small",
        f"model.width={spec.model.width}",
        "model.latent=16",
        "train.workers=0",
        "train.samples=1280",
        "train.global_batch=64",
        "train.checkpoint_every=320",
        "generate.samples=1000",
        "generate.shard_rows=256",
        "generate.workers=1",
        "evaluate.gates={}",
    ]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_verbs_one_by_one_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = overrides(tmp_path)
    for verb, expected in [
        ("train", "trained on 1,280 samples"),
        ("export", "generator.onnx"),
        ("plan", "shards         4"),
        ("generate", "1,000 rows in 4 files"),
        ("evaluate", "published: yes"),
        ("run", "published: yes"),
    ]:
        code, out, err = call(capsys, verb, *arguments)
        assert code == 0, err
        assert expected in out
        # What was read is said where the real data are read before the work, and not again by a finished training.
        assert ("holdout        359" in out + err) == (verb in ("train", "plan")), verb
    assert "359" in (tmp_path / "small" / "report" / "report.html").read_text().partition("Real data")[2]
    code, out, _ = call(capsys, "inspect", str(tmp_path / "small"), "--json")
    found = json.loads(out)
    assert found["trained"] == 1280
    assert found["published"] is True
    assert found["dataset"]["rows"] == 1000
    _, out, _ = call(capsys, "inspect", str(tmp_path / "small" / "model" / "generator.onnx"))
    assert "standard_normal" in out
    assert call(capsys, "inspect", str(tmp_path))[0] == 2
    failing = [*arguments, "evaluate.gates={agreement_min: 1.0}"]
    code, _, err = call(capsys, "evaluate", *failing)
    assert code == 4
    assert "agreement_min" in err


@pytest.mark.parametrize(
    ("number", "workers"),
    [
        pytest.param(signal.SIGINT, 0, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, 1, id="SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_training_as_incomplete(number: signal.Signals, workers: int, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "genai_ray.cli",
        "train",
        DIGITS,
        f"store={tmp_path}",
        f"train.workers={workers}",
        "train.samples=10_000_000",
        "train.log_seconds=0.5",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 90
    while "ETA" not in (tmp_path / "log").read_text():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(number)
    assert process.wait(30) == 3
    assert (tmp_path / "log").read_text().endswith("the same command resumes\n")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_finished_run_with_another_fingerprint(run_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*overrides(run_store), "model.latent=20"]
    code, _, err = call(capsys, "run", *arguments)
    assert code == 2
    assert "model.latent is 16 in the store and 20 here" in err


@pytest.mark.s3
@pytest.mark.usefixtures("s3_stack")
def test_s3_mistakes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", DIGITS, "train.workers=0"]
    code, _, err = call(capsys, *arguments, "store=s3://no-such-bucket/x")
    assert code == 2
    assert "bucket 'no-such-bucket' does not exist" in err
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    code, _, err = call(capsys, *arguments, "store=s3://genai/x")
    assert code == 2
    assert "the server refuses the credentials (SignatureDoesNotMatch)" in err
    assert "wrong" not in err


def test_plan_says_what_is_read_before_there_is_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "plan", DIGITS, f"store={tmp_path}")
    assert (code, out) == (3, "")
    assert "holdout        359, a share of 0.2\n" in err
    assert "run `genai-ray train`" in err


def test_inspect_says_what_is_read_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("photos/cat/1.png", "photos/cat/2.png", "photos/dog/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "photos" / "notes.txt").write_text("x")
    code, out, _ = call(capsys, "inspect", str(tmp_path / "photos"), "--json")
    assert code == 0
    about = json.loads(out)
    assert about["classes"] == {"cat": 2, "dog": 1}
    assert about["left out"] == {"suffix .txt": 1}
    (tmp_path / "rows").mkdir()
    for name in ("a", "b"):
        (tmp_path / "rows" / f"{name}.csv").write_text("x;k\n" + "1.5;a\n2.5;b\n" * 20)
    code, out, _ = call(capsys, "inspect", str(tmp_path / "rows"), "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 80


def test_inspect_tells_what_it_takes_the_columns_of_a_table_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "orders.csv"
    lines = [f"O-{i:04d};{'ab'[i % 2]};{i % 7}.5;2026-01-{i % 28 + 1:02d}" for i in range(60)]
    path.write_text("\n".join(["key;kind;price;day", *lines]))
    code, out, _ = call(capsys, "inspect", str(path), 'data.table.delimiter=";"', "--json")
    assert code == 0
    columns = json.loads(out)["columns"]
    kinds = {name: column["type"] for name, column in columns.items()}
    assert kinds == {"key": "id", "kind": "categorical", "price": "numerical", "day": "datetime"}
    code, out, error = call(capsys, "inspect", str(path), "data.table.columns={pric: drop}")
    assert (code, out) == (2, "")
    assert "pric" in error
