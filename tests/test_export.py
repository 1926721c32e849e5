"""What an export refuses: nothing is published, and the command says why in one line."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL, small_spec

from genai_ray import export
from genai_ray.cli import main
from genai_ray.errors import ParityError
from genai_ray.modalities import codec_from_json
from genai_ray.onnx_session import read_model
from genai_ray.provenance import MODEL_KEY
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.state import new_family

SPEC = str(Path(__file__).resolve().parents[1] / "jobs" / "specs" / "digits.yaml")


def refused(store: Path, capsys: pytest.CaptureFixture[str], *overrides: str) -> tuple[int, str]:
    """Exit code and errors of an export that leaves the model in the store alone."""
    before = Store(str(store)).read(f"small/{MODEL_KEY}")
    with pytest.raises(SystemExit) as ended:
        main(["export", SPEC, f"store={store}", *SMALL, *overrides])
    assert Store(str(store)).read(f"small/{MODEL_KEY}") == before
    return int(ended.value.code or 0), capsys.readouterr().err


def test_a_precision_that_is_too_low_is_a_user_error(run_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = refused(run_store, capsys, "export.precision=int8", "export.difference_max=1e-6")
    assert code == 2
    assert error.startswith("error: export.precision: got 'int8'; differs from fp32 by ")
    assert "more than export.difference_max=1e-06. Use another precision, or raise export." in error
    assert error.count("\n") == 1


def test_a_graph_that_differs_from_torch_is_one_line_and_exit_code_1(
    run_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_PARITY_SHARE", -1.0)  # not even no difference is few enough
    code, error = refused(run_store, capsys, "export.precision=fp16")
    assert code == 1
    assert error.startswith("error: ONNX Runtime and torch differ by up to ")
    assert error.count("\n") == 1


def test_a_graph_with_other_weights_differs_from_torch(run_store: Path) -> None:
    spec = small_spec(run_store)
    store = Store(spec.run_uri)
    state = checkpoint.latest(store)
    assert state is not None
    family = new_family(spec, codec_from_json(state["codec"]))
    family.nets[family.averaged].load_state_dict(state["average"])
    sampler = family.sampler().eval()
    model = store.read(MODEL_KEY)
    card, _ = read_model(model, where=MODEL_KEY)
    assert export.check_parity(sampler, model, card) <= 1
    with torch.no_grad():
        for weights in sampler.parameters():
            weights *= 1.1
    with pytest.raises(ParityError, match="differ by up to"):
        export.check_parity(sampler, model, card)
