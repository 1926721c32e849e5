"""Training on one GPU: images/s by model and precision: `python benchmarks/gpu_train.py`.

Ours are the steps of `genai_ray.training.loop` without Ray or store, on pixels already decoded. The peer,
in the same run, is a plain eager loop of the same networks in float32, with a look at the loss
after every step, as most repositories write it. The share is of the matrix rate that the GPU gives
in that precision, measured here. `--device cpu --models dcgan --steps 2 --width 8` tries the
program.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from genai_ray import modalities
from genai_ray.families import Batch, Draws, Moment
from genai_ray.image.codec import ImageCodec
from genai_ray.image.source import ImageData
from genai_ray.spec import Spec
from genai_ray.training.loop import compile_networks, steps
from genai_ray.training.state import State

SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16": {"precision": "bf16"},
    "bf16 compiled": {"precision": "bf16", "compile": "default"},
    "bf16 graphs": {"precision": "bf16", "compile": "cuda_graphs"},
}
WARM = 10


def data() -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (8_192, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    classes = tuple(str(i) for i in range(10))
    return ImageData(ImageCodec(32, 3, classes), images, labels, images[:8], labels[:8])


def spec_of(model: str, options: argparse.Namespace, **train: Any) -> Spec:
    values: dict[str, Any] = {"preset": model, "conditional": True}
    if options.width:
        values["width"] = options.width
    return modalities.parse(
        {
            "name": "x",
            "model": values,
            "train": {
                "device": options.device,
                "global_batch": options.batch,
                "samples": (options.steps + WARM) * options.batch,
                **train,
            },
        }
    )


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ours(spec: Spec, images: ImageData) -> float:
    """images/s of our steps, after the first ones."""
    device = torch.device(spec.train.device)
    tf32 = spec.train.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    state = State(spec, images.codec, "", device)
    if spec.train.compile != "none":
        compile_networks(state.family, spec)
    started = 0.0
    for number, _ in enumerate(steps(spec, state, images, 0)):
        if number == WARM - 1:
            wait(device)
            started = time.perf_counter()
    wait(device)
    return (spec.train.samples - WARM * spec.train.global_batch) / (time.perf_counter() - started)


def eager(spec: Spec, images: ImageData) -> float:
    """images/s of a plain loop of the same networks in float32."""
    device = torch.device(spec.train.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    state = State(spec, images.codec, "", device)
    family, batch = state.family, spec.train.global_batch
    pixels = torch.from_numpy(images.train_images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(np.asarray(images.train_labels))
    count, started = spec.train.samples // batch, 0.0
    for number in range(count):
        if number == WARM:
            wait(device)
            started = time.perf_counter()
        index = torch.randint(len(pixels), (batch,))
        real = pixels[index].to(device).float() / 127.5 - 1
        given = Batch(real, labels[index].to(device))
        for phase in family.phases:
            if number % phase.interval:
                continue
            for name, net in family.nets.items():
                net.requires_grad_(name == phase.net)
            draws = Draws(
                torch.randn(batch, family.latent, device=device), torch.rand(batch, family.uniforms, device=device)
            )
            loss, _ = family.loss(phase, given, draws, Moment(number, number * batch))
            state.optimizers[phase.net].zero_grad()
            loss.backward()
            state.optimizers[phase.net].step()
            loss.item()
        state.update_average(batch, (number + 1) * batch)
    wait(device)
    return (count - WARM) * batch / (time.perf_counter() - started)


def work(spec: Spec, images: ImageData) -> float:
    """FLOP for each real image, both phases at their intervals, counted by torch."""
    state = State(spec, images.codec, "", torch.device(spec.train.device))
    family, n, total = state.family, 8, 0.0
    device = torch.device(spec.train.device)
    real = torch.zeros(n, 3, 32, 32, device=device)
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    for phase in family.phases:
        for name, net in family.nets.items():
            net.requires_grad_(name == phase.net)
        draws = Draws(torch.zeros(n, family.latent, device=device), torch.zeros(n, family.uniforms, device=device))
        with FlopCounterMode(display=False) as counter:
            family.loss(phase, Batch(real, labels), draws, Moment(0, 0))[0].backward()
        total += counter.get_total_flops() / n / phase.interval
    return total


def matrix_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large matrix product in a precision."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    size = 8_192 if device.type == "cuda" else 512
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(size, size, device=device, dtype=kind)
    times = []
    for _ in range(10):
        wait(device)
        started = time.perf_counter()
        torch.mm(a, a)
        wait(device)
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--models", nargs="+", default=["dcgan", "sngan", "biggan32"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--width", type=int, default=None)
    options = parser.parse_args()
    device, images = torch.device(options.device), data()
    cuda = device.type == "cuda"
    print(torch.cuda.get_device_name() if cuda else "cpu", f"torch {torch.__version__}")
    rates = {p: matrix_rate(device, p) for p in ("fp32", "tf32", "bf16")}
    for model in options.models:
        peer = eager(spec_of(model, options), images)
        flop = work(spec_of(model, options), images)
        print(f"{model:<10} {'eager loop':<14} {peer:10,.0f} images/s", flush=True)
        for name, values in SETTINGS.items():
            if not cuda and name not in ("fp32", "bf16"):
                continue
            rate = ours(spec_of(model, options, **values), images)
            share = rate * flop / rates[values["precision"]]
            print(
                f"{model:<10} {name:<14} {rate:10,.0f} images/s  {rate / peer:5.2f} x  "
                f"{share:6.1%} of {rates[values['precision']] / 1e12:,.1f} TFLOP/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
