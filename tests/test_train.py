"""Training resumes exactly, does not depend on the workers, and says what is wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import kill_when, small_spec

from genai_ray import checkpoint, config
from genai_ray.config import Spec
from genai_ray.data.image import load_images
from genai_ray.errors import UserError
from genai_ray.storage import Store
from genai_ray.train import DivergedError, _batch, read_metrics, train


def final_state(spec: Spec) -> dict:
    state = checkpoint.latest(Store(spec.run_uri))
    assert state is not None
    assert state["samples"] == spec.train.samples
    return state


def assert_bit_equal(a: dict, b: dict) -> None:
    for part in ("nets", "average"):
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), f"{part}.{name}"
    for phase, optimizer in a["optimizers"].items():
        for index, values in optimizer["state"].items():
            for name, tensor in values.items():
                assert torch.equal(tensor, b["optimizers"][phase]["state"][index][name])


@pytest.mark.parametrize("preset", ["dcgan", "mlp_gan", "vae"])
def test_killed_training_goes_on_to_the_same_weights(preset: str, tmp_path: Path) -> None:
    options = [f"model.preset={preset}", "train.samples=12800"]
    if preset == "mlp_gan":
        options += ["model.generator_widths=[32]", "model.discriminator_widths=[32]"]
    undisturbed = small_spec(tmp_path / "a", *options)
    train(undisturbed)

    killed = small_spec(tmp_path / "b", *options)
    arguments = f"{str(tmp_path / 'b')!r}, *{options!r}"
    kill_when(
        lambda: checkpoint.saved(Store(killed.run_uri)),
        f"from genai_ray.train import train; train(small_spec({arguments}))",
    )
    assert checkpoint.saved(Store(killed.run_uri))[-1] < 12800
    train(killed)

    assert_bit_equal(final_state(undisturbed), final_state(killed))
    losses = [[r["loss_" + k] for r in read_metrics(Store(s.run_uri)) for k in _losses(preset)]
              for s in (undisturbed, killed)]  # fmt: skip
    assert losses[0] == losses[1]


def _losses(preset: str) -> list[str]:
    return ["kl"] if preset == "vae" else ["discriminator"]


def test_damaged_newest_checkpoint_falls_back_to_the_same_weights(tmp_path: Path) -> None:
    whole, damaged = small_spec(tmp_path / "a"), small_spec(tmp_path / "b")
    train(whole)
    train(damaged)
    store = Store(damaged.run_uri)
    newest = checkpoint.key(checkpoint.saved(store)[-1])
    # As a run that died in its last step would leave it, with the end of the file lost.
    store.put(newest, store.read(newest)[:-1000])
    store.put(checkpoint.key(1279), store.read(newest))
    store.delete(newest)
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="going back"):
        train(damaged)
    assert_bit_equal(final_state(whole), final_state(damaged))


def test_workers_share_a_batch_without_changing_it() -> None:
    spec = small_spec("/nowhere")
    data = load_images(spec.data)
    device = torch.device("cpu")
    for step in (0, 21, 22, 23):  # the epoch of 1,438 images ends within step 22
        whole = _batch(spec, data.train_images, data.train_labels, step, 0, 1, device)
        parts = [_batch(spec, data.train_images, data.train_labels, step, rank, 4, device)
                 for rank in range(4)]  # fmt: skip
        assert torch.equal(whole.images, torch.cat([p.images for p in parts]))
    assert whole.images.min() == -1
    assert whole.images.max() <= 1


def test_an_epoch_shows_every_image_once() -> None:
    spec = small_spec("/nowhere", "train.global_batch=10")
    images = np.arange(70, dtype=np.uint8).reshape(70, 1, 1, 1)
    seen = [_batch(spec, images, None, s, 0, 1, torch.device("cpu")).images for s in range(14)]
    first, second = torch.cat(seen[:7]).flatten(), torch.cat(seen[7:]).flatten()
    assert first.unique().numel() == 70
    assert second.unique().numel() == 70
    assert not torch.equal(first, second)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    # Without batch statistics and dropout only the order of float additions differs.
    options = ["model.preset=mlp_gan", "model.dropout=0", "train.samples=640",
               "model.generator_widths=[32]", "model.discriminator_widths=[32]"]  # fmt: skip
    one = small_spec(tmp_path / "one", *options)
    two = small_spec(tmp_path / "two", *options, "train.workers=2")
    train(one)
    train(two)
    a, b = final_state(one), final_state(two)
    for name, tensor in a["average"].items():
        torch.testing.assert_close(tensor, b["average"][name], rtol=1e-3, atol=1e-5)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_has(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "train.workers=64")
    with pytest.raises(UserError, match=r"train.workers: got 64; need 64 CPU, and .* has 2 CPU"):
        train(spec)
    assert not list(tmp_path.iterdir())


def test_divergence_names_step_and_phase(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "model.learning_rate=1e30", "model.spectral_norm=false")
    with pytest.raises(DivergedError, match=r"step \d+, phase \w+: the loss is (nan|inf)"):
        train(spec)


def test_finished_run_refuses_another_fingerprint(tmp_path: Path) -> None:
    train(small_spec(tmp_path))
    with pytest.raises(UserError, match=r"model.width is 8 there and 16 here; seed is 0 .* 7 here"):
        train(small_spec(tmp_path, "model.width=16", "seed=7"))
    # What cannot change the result may change.
    assert train(small_spec(tmp_path, "train.log_seconds=1")).seconds == 0


def test_other_images_than_the_run_began_with(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    train(spec)
    store = Store(spec.run_uri)
    store.delete(checkpoint.key(1280))
    data = load_images(spec.data)
    data.train_images[0] ^= 255
    with pytest.raises(UserError, match="holds other images than the run was begun with"):
        train(spec, data)


def test_conditional_model_without_classes(tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), i * 12).save(pictures / f"{i}.png")
    spec = small_spec(tmp_path / "store", "data.source=folder", f"data.root={pictures}")
    with pytest.raises(UserError, match=r"model.conditional: got True; needs labels"):
        train(spec)
    assert not (tmp_path / "store").exists()


def test_what_training_leaves(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    result = train(spec)
    store = Store(spec.run_uri)
    assert result.samples == 1280
    assert checkpoint.saved(store) == [960, 1280]
    rows = read_metrics(store)
    assert rows[-1]["samples"] == 1280
    assert {"loss_discriminator", "loss_generator", "accuracy_discriminator"} <= set(rows[0])
    assert any("tfevents" in key for key in store.list("train/"))
    assert config.dump(spec)["train"]["samples"] == 1280
