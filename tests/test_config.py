"""The Spec: what it accepts, how it refuses the rest, and which fields a result hangs on."""

import pickle
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from variants import presets_of

from genai_ray import modalities
from genai_ray.errors import UserError
from genai_ray.image.spec import ImageDataSpec, ImageRun
from genai_ray.modalities import parse
from genai_ray.runs import save_spec, saved_spec
from genai_ray.spec import Spec, dump, fingerprint
from genai_ray.spec.sections import TrainSpec
from genai_ray.storage import Store

SPECS = sorted((Path(__file__).resolve().parents[1] / "jobs" / "specs").glob("*.yaml"))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def loaded(tmp_path: Path, *overrides: str, text: str = "name: run") -> Spec:
    return modalities.load(written(tmp_path, text), overrides)


def refusal(tmp_path: Path, *overrides: str, text: str = "name: run") -> UserError:
    """The error, after the checks that hold for every one."""
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, *overrides, text=text)
    error = caught.value
    assert error.exit_code == 2
    assert error.field
    assert error.rule
    assert error.remedy
    assert error.field in str(error)
    assert error.remedy in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert str(copy) == str(error)
    assert repr(copy.__reduce__()) == repr(error.__reduce__())  # as text, since nan is not nan
    return error


# --- what is accepted ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", SPECS, ids=lambda p: p.name)
def test_every_spec_of_the_tree_loads_and_dumps(path: Path):
    spec = modalities.load(path)
    assert parse(dump(spec)) == spec
    assert parse(yaml.safe_load(yaml.safe_dump(dump(spec)))) == spec


def test_there_are_specs_to_load():
    assert SPECS


@pytest.mark.parametrize("preset", modalities.presets())
def test_a_preset_fills_in_the_model_and_gives_way_to_the_spec(tmp_path: Path, preset: str):
    source = "breast_cancer" if preset in presets_of("table") else "digits"
    data = [f"data.source={source}", "train.global_batch=100"]
    spec = loaded(tmp_path, f"model.preset={preset}", *data)
    values = modalities.presets()[preset].values
    assert dump(spec)["model"] == dump(spec)["model"] | values
    changed = loaded(tmp_path, f"model.preset={preset}", "model.learning_rate=7", *data)
    assert changed.model == spec.model.model_copy(update={"learning_rate": 7})
    assert parse(dump(changed)) == changed


@pytest.mark.parametrize(
    ("override", "section", "expected"),
    [
        ("seed=7", "", 7),
        ("train.samples=1_000", "train", 1000),
        ("train.samples=1e6", "train", 1_000_000),
        ("model.learning_rate=1e-4", "model", 1e-4),
        ("model.conditional=true", "model", True),
        ("model.betas=[0, 0.9]", "model", (0, 0.9)),
        ("model.ema_half_life=0", "model", 0),
        ("data.root=", "data", None),
        ("data.holdout=0.25", "data", 0.25),
        ("name=other", "", "other"),
    ],
)
def test_overrides_are_yaml_values(tmp_path: Path, override: str, section: str, expected: Any):
    value: Any = loaded(tmp_path, override)
    for part in filter(None, section.split(".")):
        value = getattr(value, part)
    assert getattr(value, override.partition("=")[0].rpartition(".")[2]) == expected


def test_an_override_wins_over_the_file_and_the_last_one_over_the_others(tmp_path: Path):
    text = "name: run\nseed: 1\ntrain: {samples: 5, workers: 2}"
    spec = loaded(tmp_path, "seed=2", "train.samples=6", "seed=3", text=text)
    assert (spec.seed, spec.train.samples, spec.train.workers) == (3, 6, 2)


def test_a_number_of_the_file_can_be_the_name_of_a_class(tmp_path: Path):
    text = "name: run\nmodel: {conditional: true}\ngenerate: {classes: {0: 10, 3: 5}}"
    spec = loaded(tmp_path, text=text)
    assert isinstance(spec, ImageRun)
    assert spec.generate.classes == {"0": 10, "3": 5}


def test_stores_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert loaded(tmp_path).run_uri == f"{tmp_path}/runs/run"
    assert loaded(tmp_path, "store=runs").run_uri == f"{tmp_path}/runs/run"
    assert loaded(tmp_path, "store=s3://bucket/prefix/").run_uri == "s3://bucket/prefix/run"


@pytest.mark.parametrize("store", ["s3:/bucket/x", "file:/runs", "C:\\runs", "$HOME/runs", "${STORE}"])
def test_a_store_that_would_be_a_folder_by_mistake_is_refused(tmp_path: Path, store: str):
    with pytest.raises(UserError, match=r"names a variable|begins with") as caught:
        loaded(tmp_path, f"store={store}")
    assert caught.value.field == "store"


@pytest.mark.parametrize("typed", ["name=2024", "name=true", "data.root=10", "data.root=[x]", "data.root={a: 1}"])
def test_a_string_that_looks_like_another_value_is_quoted_by_the_remedy(tmp_path: Path, typed: str):
    with pytest.raises(UserError, match="must be a string") as caught:
        loaded(tmp_path, "data.source=folder", "data.root=x", typed)
    (quoted,) = shlex.split(caught.value.remedy.partition("as in ")[2].removesuffix("."))
    field, _, value = typed.partition("=")
    try:
        spec = loaded(tmp_path, "data.source=folder", "data.root=x", quoted)
    except UserError as error:
        pytest.fail(str(error))
    assert isinstance(spec.data, ImageDataSpec)
    assert {"name": spec.name, "data.root": spec.data.root}[field] == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_spec_may_be_of_windows(tmp_path: Path, encoding: str):
    (tmp_path / "spec.yaml").write_bytes("name: run\r\nseed: 7\r\n".encode(encoding))
    assert modalities.load(tmp_path / "spec.yaml").seed == 7


@pytest.mark.parametrize(("overrides", "expected"), [([], 5), (["generate.seed=0"], 0), (["generate.seed=9"], 9)])
def test_generation_takes_the_seed_of_the_run_unless_it_has_its_own(
    tmp_path: Path, overrides: list[str], expected: int
):
    spec = loaded(tmp_path, "seed=5", *overrides)
    assert spec.generation_seed == expected
    assert fingerprint.fields(spec, "generate")["seed"] == expected
    assert fingerprint.fields(spec, "train")["seed"] == 5


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("sed", "seed"),
        ("data.sources", "source"),
        ("model.latend", "latent"),
        ("train.worker", "workers"),
        ("generate.shard_row", "shard_rows"),
        ("evaluate.gate", "gates"),
        ("evaluate.gates.fid_mx", "fid_max"),
    ],
)
def test_an_unknown_key_names_the_nearest(tmp_path: Path, key: str, near: str):
    error = refusal(tmp_path, f"{key}=1")
    assert error.field == key
    assert repr(near) in error.remedy


def test_an_unknown_key_far_from_all_lists_them(tmp_path: Path):
    remedy = refusal(tmp_path, "train.zzzzzz=1").remedy
    assert all(name in remedy for name in TrainSpec.effective({}))


@pytest.mark.parametrize(
    ("override", "field", "remedy"),
    [
        ("data.source=digit", "data.source", "'digits'"),
        ("data.channels=2", "data.channels", "Known: 1, 3."),
        ("train.device=accelerator", "train.device", "cpu, cuda"),
        ("model.loss=hing", "model.loss", "'hinge'"),
        ("model.preset=dcgam", "model.preset", "'dcgan'"),
        ("generate.sink=parket", "generate.sink", "'parquet'"),
    ],
)
def test_a_wrong_choice_names_the_choices(tmp_path: Path, override: str, field: str, remedy: str):
    error = refusal(tmp_path, override)
    assert error.field == field
    assert remedy in error.remedy


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("seed=one", "seed"),
        ("seed=-1", "seed"),
        (f"seed={2**63}", "seed"),
        ("seed=1.5", "seed"),
        ("train.samples=0", "train.samples"),
        ("train.samples=many", "train.samples"),
        ("model.conditional=perhaps", "model.conditional"),
        ("model.learning_rate=-1e-4", "model.learning_rate"),
        ("model.betas=[0.5, 1.0]", "model.betas"),
        ("data.size=7", "data.size"),
        ("data.holdout=1", "data.holdout"),
        ("evaluate.gates.precision_min=1.5", "evaluate.gates.precision_min"),
        ("evaluate.gates.coverage_ratio_min=.nan", "evaluate.gates.coverage_ratio_min"),
        ("train=3", "train"),
        ("model=[1]", "model"),
        ("name=../up", "name"),
        ("store=s3://", "store"),
    ],
)
def test_a_wrong_value_names_its_field(tmp_path: Path, override: str, field: str):
    error = refusal(tmp_path, override)
    assert error.field == field
    assert f"{field}=" in error.remedy


@pytest.mark.parametrize(("batch", "use"), [(7, 6), (1, 2), (9, 8)])
def test_workers_must_divide_the_batch(tmp_path: Path, batch: int, use: int):
    error = refusal(tmp_path, f"train.global_batch={batch}", "train.workers=2")
    assert error.field == "train.global_batch"
    assert error.value == batch
    assert "must be divisible by train.workers=2" in error.rule
    assert f"train.global_batch={use}," in error.remedy
    assert loaded(tmp_path, f"train.global_batch={use}", "train.workers=2").train.workers == 2


def test_no_worker_takes_any_batch(tmp_path: Path):
    assert loaded(tmp_path, "train.global_batch=7", "train.workers=0").train.global_batch == 7


@pytest.mark.parametrize(
    ("overrides", "field", "rule"),
    [
        (["generate.encoding=raw", "generate.sink=images"], "generate.encoding", "no file format"),
        (["generate.encoding=raw", "generate.sink=webdataset"], "generate.encoding", "no file"),
        (["generate.sink=iceberg"], "generate.table", "names the table"),
        (["generate.table=a.b"], "generate.table", "it needs sink=iceberg"),
        (["generate.sink=iceberg", "generate.table=digits"], "generate.table", "pattern"),
        (
            ["generate.conditions=a.csv", "generate.classes={a: 1}"],
            "generate.conditions",
            "and so does generate.classes",
        ),
        (["generate.into=../x"], "generate.into", "pattern"),
        (["provenance.producer=two words"], "provenance.producer", "pattern"),
        (["generate.device=cuda", "generate.gpus_per_worker=2"], "generate.gpus_per_worker", "less than or equal to 1"),
        (["generate.shard_bytes=10"], "generate.shard_bytes", "greater than or equal to 1024"),
    ],
)
def test_what_does_not_go_together_is_named(tmp_path: Path, overrides: list[str], field: str, rule: str):
    error = refusal(tmp_path, "model.conditional=true", *overrides)
    assert error.field == field
    assert rule in error.rule


@pytest.mark.parametrize(
    "override", ["generate.classes={a: 1}", "generate.conditions=a.csv", "evaluate.gates.agreement_min=1"]
)
def test_classes_need_a_conditional_model(tmp_path: Path, override: str):
    error = refusal(tmp_path, override)
    assert error.field == override.partition("=")[0]
    assert "model.conditional=true" in error.remedy
    assert loaded(tmp_path, override, "model.conditional=true").model.conditional


@pytest.mark.parametrize(
    ("overrides", "field", "remedy"),
    [
        (["evaluate.gates.fid_inception_max=9"], "evaluate.gates.fid_inception_max", "evaluate.inception"),
        (["evaluate.inception=x.pth"], "evaluate.inception_samples", "generate.samples=50000"),
    ],
)
def test_published_figures_have_conditions(tmp_path: Path, overrides: list[str], field: str, remedy: str):
    error = refusal(tmp_path, *overrides)
    assert error.field == field
    assert remedy in error.remedy


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_sources_of_the_user_need_a_root(tmp_path: Path, source: str):
    assert refusal(tmp_path, f"data.source={source}").field == "data.root"
    assert loaded(tmp_path, f"data.source={source}", "data.root=x").data.root == "x"


@pytest.mark.parametrize("preset", ["dcgan", "vae"])
def test_an_mlp_needs_hidden_layers(tmp_path: Path, preset: str):
    overrides = [f"model.preset={preset}", "model.network=mlp"]
    assert refusal(tmp_path, *overrides).field == "model.discriminator_widths"
    spec = loaded(tmp_path, *overrides, "model.discriminator_widths=[8]")
    assert dump(spec)["model"]["discriminator_widths"] == [8]


@pytest.mark.parametrize("override", ["seed", "=1", "seed.x.y=1", "seed=[1,", "seed={"])
def test_a_malformed_override_is_shown(tmp_path: Path, override: str):
    text = "name: run\nseed: 1"
    error = refusal(tmp_path, override, text=text)
    assert error.field == "override"
    assert error.value == override


@pytest.mark.parametrize("text", ["", "seed: 1", "{}"])
def test_a_name_is_required(tmp_path: Path, text: str):
    error = refusal(tmp_path, text=text)
    assert (error.field, error.rule) == ("name", "is required")


@pytest.mark.parametrize("text", ["- a", "run", "7", "name: [", "a: b: c", "name: a\0"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str):
    error = refusal(tmp_path, text=text)
    assert error.field == "spec"
    assert error.value == str(tmp_path / "spec.yaml")


def test_keys_are_words(tmp_path: Path):
    assert refusal(tmp_path, text="name: run\n1: 2").field == "1"


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, kind: str):
    path = tmp_path / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="readable YAML") as caught:
        modalities.load(path)
    assert caught.value.value == str(path)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_a_saved_spec_is_read_as_it_was(path: Path, tmp_path: Path):
    spec = modalities.load(path, [f"store={tmp_path}"])
    save_spec(Store(str(tmp_path)), spec)
    assert yaml.safe_load((tmp_path / "spec.yaml").read_text())["format"] == 1
    assert saved_spec(Store(str(tmp_path))) == spec


def test_a_gate_without_a_space_behind_its_colon_is_no_gate():
    with pytest.raises(UserError, match=r"evaluate\.gates: got .fid_max:1.; is no name of a gate"):
        modalities.load(SPECS[0], ["evaluate.gates={fid_max:1}"])
