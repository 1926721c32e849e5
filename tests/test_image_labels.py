"""The ONNX file of an image model alone, without our runtime: labels are those of its classes, or an error."""

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from variants import variant

from genai_ray.export import to_onnx
from genai_ray.families import build
from genai_ray.image.codec import ImageCodec
from genai_ray.provenance import ModelCard

CODEC = ImageCodec(8, 1, ("cat", "dog"))
NARROW = {"width": 4, "latent": 8, "generator_widths": (8, 8), "discriminator_widths": (8, 8)}


def exported(preset: str) -> tuple[Any, ort.InferenceSession]:
    """The sampler of an untrained conditional model, and its graph in ONNX Runtime."""
    torch.manual_seed(0)
    family = build(variant(preset, NARROW), CODEC, 2)
    with torch.no_grad():
        for parameter in family.nets.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)  # class gains and biases begin equal
    sampler = family.sampler().eval()
    card = ModelCard(
        name="small",
        preset=preset,
        family="",
        latent=family.sampler_latent,
        conditional=True,
        codec=CODEC.to_json(),
        training={},
        precision="fp32",
        given=family.given,
        versions={},
    )
    return sampler, ort.InferenceSession(to_onnx(sampler, card), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("preset", ["mlp_gan", "vae_mixture"])
def test_an_unknown_label_is_an_error_and_never_a_picture(preset: str):
    sampler, session = exported(preset)
    noise = torch.randn(4, session.get_inputs()[0].shape[1], generator=torch.Generator().manual_seed(1))

    def images(labels: list[int]) -> Any:
        return session.run(None, {"noise": noise.numpy(), "label": np.array(labels)})[0]

    for label in (2, 99, -1, -2, -3, 2**40, -(2**40)):
        with pytest.raises(Exception, match=r"out of bounds|out of data bounds"):
            images([0, 1, label, 0])
    given = images([0, 1, 1, 0])
    with torch.no_grad():
        expected = sampler(noise, torch.tensor([0, 1, 1, 0])).numpy()
    assert abs(given.astype(int) - expected).max() <= 1
    assert (given != images([1, 1, 1, 0])).any()
    session.run(None, {"noise": noise[:0].numpy(), "label": np.zeros(0, np.int64)})
    with pytest.raises((IndexError, RuntimeError)):
        sampler(noise, torch.tensor([0, 1, -1, 0]))
