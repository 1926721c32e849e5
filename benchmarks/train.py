"""Training against bare torch loops, side by side: `python benchmarks/train.py`.

    worker    one Ray worker of one thread over a bare loop of one thread, same step, same batch
    workers   two Ray workers of one thread over one bare loop of two threads, same global batch
    saves     one worker that stores a checkpoint every 50 steps over one that stores none
    article   the loop of the source article (DataLoader, two passes of the discriminator, eager
              Adam) against ours, one thread each: samples/s and the share of the measured GEMM rate
    settings  our step with channels_last off, bf16 on, compiled, each over our step as it is
    quality   with --mnist ROOT: FID, coverage and time of both after the same number of real images

Steady state: rates are of the steps after the first ones. Prints the median ratio of the rounds.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from genai_ray import modalities
from genai_ray.image.codec import ImageCodec
from genai_ray.image.source import ImageData
from genai_ray.spec import Spec

KINDS = ("worker", "workers", "saves", "article", "settings", "quality")
WARM = 10  # steps before the clock runs
AFTER_ONE = 60  # where the first checkpoint, which imports what all of them need, is not measured


def data(size: int, channels: int, n: int = 8_192) -> ImageData:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), dtype=np.uint8)
    labels = np.arange(n) % 10
    classes = tuple(str(i) for i in range(10))
    return ImageData(ImageCodec(size, channels, classes), images, labels, images[:8], labels[:8])


def spec(folder: str, steps: int, model: dict[str, Any], **train: Any) -> Spec:
    batch = train.pop("global_batch", 128)
    return modalities.parse(
        {
            "name": f"r{time.monotonic_ns()}",
            "store": folder,
            "model": model,
            "train": {
                "samples": steps * batch,
                "global_batch": batch,
                "checkpoint_every": 10**9,
                "log_seconds": 1e9,
                **train,
            },
        }
    )


def bare(run: Spec, images: ImageData, threads: int) -> float:
    """samples/s of the same networks, losses and steps in one loop that keeps nothing."""
    from genai_ray.families import Batch, Draws, Moment
    from genai_ray.training.state import State

    torch.set_num_threads(threads)
    state = State(run, images.codec, "", torch.device("cpu"))
    family, batch = state.family, run.train.global_batch
    pixels = torch.from_numpy(images.train_images).permute(0, 3, 1, 2)
    assert images.train_labels is not None
    labels = torch.from_numpy(images.train_labels)
    steps = run.train.samples // batch
    started = 0.0
    for step in range(steps):
        if step == WARM:
            started = time.perf_counter()
        index = torch.randint(len(pixels), (batch,))
        real = pixels[index].to(memory_format=torch.channels_last).float() / 127.5 - 1
        given = Batch(real, labels[index] if run.model.conditional else None)
        for phase in family.phases:
            for name, net in family.nets.items():
                net.requires_grad_(name == phase.net)
            draws = Draws(torch.randn(batch, family.latent), torch.rand(batch, family.uniforms))
            loss, _ = family.loss(phase, given, draws, Moment(step, step * batch))
            state.optimizers[phase.net].zero_grad(set_to_none=True)
            loss.backward()
            state.optimizers[phase.net].step()
        state.update_average(batch, (step + 1) * batch)
    return (steps - WARM) * batch / (time.perf_counter() - started)


def stepping(run: Spec, images: ImageData) -> float:
    """samples/s of `steps` of the training loop on one thread, without Ray and without a store."""
    from genai_ray.training.loop import compile_networks, steps
    from genai_ray.training.state import State

    torch.set_num_threads(1)
    state = State(run, images.codec, "", torch.device("cpu"))
    if run.train.compile != "none":
        compile_networks(state.family, run)
    started, seen = 0.0, 0
    for seen in steps(run, state, images, 0):
        if seen == WARM * run.train.global_batch:
            started = time.perf_counter()
    return (seen - WARM * run.train.global_batch) / (time.perf_counter() - started)


def ours(run: Spec, images: ImageData, warm: int = WARM) -> float:
    """samples/s of train(), between its first row of metrics after so many steps and its last."""
    from genai_ray.runs import read_metrics
    from genai_ray.storage import Store
    from genai_ray.training.train import train

    train(run, images)
    rows = read_metrics(Store(run.run_uri))
    first = next(r for r in rows if r["samples"] >= warm * run.train.global_batch)
    last = rows[-1]
    seconds = last["samples"] / last["rate"] - first["samples"] / first["rate"]
    return (last["samples"] - first["samples"]) / seconds


def article(images: ImageData, steps: int, batch: int) -> tuple[float, nn.Module]:
    """The article's loop: fully connected GAN, DataLoader, two passes of the discriminator.

    samples/s, and the generator.
    """
    torch.set_num_threads(1)

    def layers(*widths: int, drop: float) -> list[nn.Module]:
        stack: list[nn.Module] = []
        for a, b in pairwise(widths):
            stack += [nn.Linear(a, b), nn.LeakyReLU(0.2), nn.Dropout(drop)]
        return stack[:-2]

    generator = nn.Sequential(*layers(100, 256, 512, 1024, 1024, 784, drop=0.0), nn.Tanh())
    discriminator = nn.Sequential(*layers(784, 1024, 512, 256, 1, drop=0.3), nn.Sigmoid())
    adams = [torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (generator, discriminator)]
    pixels = torch.from_numpy(images.train_images).flatten(1).float() / 127.5 - 1
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(pixels), batch_size=batch, shuffle=True, drop_last=True
    )
    real_label, fake_label = torch.ones(batch, 1), torch.zeros(batch, 1)
    step, started = 0, 0.0
    while step < steps:
        for (real,) in loader:
            if step == WARM:
                started = time.perf_counter()
            adams[1].zero_grad()
            fake = generator(torch.randn(batch, 100))
            loss = F.binary_cross_entropy(discriminator(real), real_label)
            loss = loss + F.binary_cross_entropy(discriminator(fake.detach()), fake_label)
            loss.backward()
            adams[1].step()
            adams[0].zero_grad()
            loss = F.binary_cross_entropy(discriminator(generator(torch.randn(batch, 100))), real_label)
            loss.backward()
            adams[0].step()
            step += 1
            if step == steps:
                break
    return (steps - WARM) * batch / (time.perf_counter() - started), generator


def quality(root: str, steps: int, batch: int) -> None:
    """Both on MNIST with one thread, compared by one extractor beside the test images."""
    from genai_ray import rng
    from genai_ray.image.extractor import stored_extractor
    from genai_ray.image.source import load_images
    from genai_ray.image.spec import ImageDataSpec
    from genai_ray.metrics.fidelity import frechet_distance, prdc
    from genai_ray.storage import Store
    from genai_ray.training.loop import steps as take_steps
    from genai_ray.training.state import State

    count = 5_000
    with tempfile.TemporaryDirectory() as folder:
        images = load_images(ImageDataSpec(source="mnist", root=root, download=False), Store(folder))
        assert isinstance(images.train_images, np.ndarray)
        assert isinstance(images.holdout_images, np.ndarray)
        extractor = stored_extractor(Store(folder), images.digest, images.train_images, images.train_labels, 10)
        real = extractor.features(images.holdout_images[:count])
        noise = torch.from_numpy(rng.normal(0, rng.Stream.EVALUATE, 0, count, 100))
        samples: dict[str, tuple[float, torch.Tensor]] = {}
        started = time.perf_counter()
        _, generator = article(images, steps, batch)
        with torch.no_grad():
            outputs = generator.eval()(noise).reshape(count, 28, 28, 1)
        pixels = ((outputs + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        samples["article"] = time.perf_counter() - started, pixels
        run = spec(folder, steps, {"preset": "mlp_gan"}, precision="bf16", global_batch=batch)
        started = time.perf_counter()
        state = State(run, images.codec, "", torch.device("cpu"))
        for _ in take_steps(run, state, images, 0):
            pass
        with torch.no_grad():
            pixels = state.sampler()(noise)
        samples["ours, bf16"] = time.perf_counter() - started, pixels
        for name, (seconds, pixels) in samples.items():
            fake = extractor.features(pixels.numpy())
            scores = prdc(real, fake, k=5)
            print(
                f"quality  {name:<12} {steps * batch:,} images in {seconds:4.0f} s: FID "
                f"{frechet_distance(real, fake):.2f}, recall {scores['recall']:.2f}, coverage "
                f"{scores['coverage']:.2f}",
                flush=True,
            )


def gemm(kind: torch.dtype) -> float:
    """Measured GFLOP/s of a matrix product on one thread."""
    torch.set_num_threads(1)
    a, b = (torch.randn(1024, 1024).to(kind) for _ in range(2))
    times = []
    for _ in range(20):
        started = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - started)
    return 2 * 1024**3 / min(times) / 1e9


def flops(model: dict[str, Any], images: ImageData, folder: str) -> float:
    """FLOP of one step for each real sample, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    from genai_ray.families import Batch, Draws, Moment
    from genai_ray.training.state import State

    run = spec(folder, 1, model)
    state = State(run, images.codec, "", torch.device("cpu"))
    family, n = state.family, 8
    real = torch.from_numpy(images.train_images[:n]).permute(0, 3, 1, 2).float()
    assert images.train_labels is not None
    labels = torch.from_numpy(images.train_labels[:n]) if run.model.conditional else None
    with FlopCounterMode(display=False) as counter:
        for phase in family.phases:
            for name, net in family.nets.items():
                net.requires_grad_(name == phase.net)
            draws = Draws(torch.randn(n, family.latent), torch.rand(n, family.uniforms))
            loss, _ = family.loss(phase, Batch(real, labels), draws, Moment(0, 0))
            (loss / phase.interval).backward()
    return counter.get_total_flops() / n


def compare(name: str, rounds: int, one: Callable[[], float], other: Callable[[], float]) -> list[float]:
    """Both in turn; prints and returns the median rates."""
    pairs = []
    for number in range(rounds):
        # Which comes first changes from round to round.
        if number % 2:
            b = other()
            a = one()
        else:
            a = one()
            b = other()
        pairs.append((a, b))
    ratios = sorted(a / b for a, b in pairs)
    rates = [statistics.median(p[i] for p in pairs) for i in (0, 1)]
    spread = f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    print(f"{name:<32} {rates[0]:8,.0f} / {rates[1]:8,.0f} samples/s   {spread}", flush=True)
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--mnist", metavar="ROOT", help="folder with MNIST, as data.root")
    options = parser.parse_args()
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    grey, steps, rounds = data(28, 1), options.steps, options.rounds
    models: dict[str, dict[str, Any]] = {
        "dcgan width 16": {"preset": "dcgan", "conditional": True, "width": 16},
        "mlp_gan": {"preset": "mlp_gan"},
    }
    wanted = {options.only} if options.only else set(KINDS)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        for name, model in models.items():
            if "worker" in wanted:
                compare(
                    f"worker   {name}",
                    rounds,
                    lambda m=model: ours(spec(folder, steps, m), grey),
                    lambda m=model: bare(spec(folder, steps, m), grey, 1),
                )
            if "workers" in wanted:
                compare(
                    f"workers  {name}",
                    rounds,
                    lambda m=model: ours(spec(folder, steps, m, workers=2), grey),
                    lambda m=model: bare(spec(folder, steps, m), grey, 2),
                )
            if "saves" in wanted:
                compare(
                    f"saves    {name}",
                    rounds,
                    lambda m=model: ours(spec(folder, 2 * steps, m, checkpoint_every=50 * 128), grey, AFTER_ONE),
                    lambda m=model: ours(spec(folder, 2 * steps, m), grey, AFTER_ONE),
                )
            for setting in ({"channels_last": False}, {"precision": "bf16"}, {"compile": "default"}):
                if "settings" in wanted:
                    compare(
                        f"{next(iter(setting))} {name}",
                        rounds,
                        lambda m=model, s=setting: stepping(spec(folder, steps, m, **s), grey),
                        lambda m=model: stepping(spec(folder, steps, m), grey),
                    )
        if "article" in wanted:
            work = flops(models["mlp_gan"], grey, folder)
            for precision, batch in (("fp32", 128), ("bf16", 128), ("bf16", 512)):
                peak = gemm(torch.bfloat16 if precision == "bf16" else torch.float32)
                rate, _ = compare(
                    f"article  {precision}, batch {batch}",
                    rounds,
                    lambda b=batch, p=precision: stepping(
                        spec(folder, steps, models["mlp_gan"], global_batch=b, precision=p, workers=0), grey
                    ),
                    lambda: article(grey, steps, 128)[0],
                )
                print(f"         {rate * work / 1e9:.0f} of {peak:.0f} GFLOP/s of a matrix product")
        if "quality" in wanted and options.mnist:
            quality(options.mnist, 10 * steps, 128)
    ray.shutdown()


if __name__ == "__main__":
    main()
