"""Generation against what it could be, and what it replaces: `python benchmarks/generate.py`.

    steady   two shard workers over two bare ONNX Runtime loops of one thread, in steady state. The
             bare loop computes images from one batch of noise, over and over, and keeps nothing;
             the worker draws noise, computes, encodes, writes the shard and its receipt
    s3       the same workers to an S3 server on this machine over to a local folder
    user     `generate` over what a user would write, from the call to the finished files: a Ray
             Data pipeline with ONNX Runtime and Pillow, and torch with Pillow in one process
    memory   resident memory of a worker after 10^4 and after 10^6 samples
    driver   shards/s and the driver's memory for 20,000 shards that do nothing
    page     what 10^9 images of 64x64 take, from a calibration of this machine

Both sides of a ratio run in turn in one call; the ratio is the median over the rounds.
"""

import argparse
import contextlib
import io
import json
import multiprocessing as mp
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

KINDS = ("steady", "s3", "user", "memory", "driver", "page")
WORKERS = 2


def worker(
    kind: str,
    values: dict[str, Any],
    turns: tuple[str, ...],
    seconds: float,
    rounds: int,
    barrier: Barrier,
    results: "Queue[tuple[str, int, float]]",
) -> None:
    """Run one kind in its turns; the barrier keeps the kinds from running at the same time."""
    from genai_ray import modalities, rng
    from genai_ray.dataset.plan import open_plan
    from genai_ray.dataset.shards import ShardMaker

    spec = modalities.parse(values)
    maker = ShardMaker(open_plan(spec))
    samples: Any = maker.samples
    sampler, plan, rows = samples.sampler, maker.plan, spec.generate.shard_rows
    batch = sampler.batch
    feed: dict[str, Any] = {"noise": rng.normal(0, 0, 0, batch, plan.card.latent)}
    index = 0
    for round_number in range(-1, rounds):  # round -1 warms up
        for turn in turns if round_number % 2 else turns[::-1]:
            barrier.wait(timeout=120)
            if turn != kind:
                barrier.wait(timeout=120)
                continue
            done, started = 0, time.perf_counter()
            while time.perf_counter() - started < seconds:
                if kind == "bare":
                    for _ in range(rows // batch):
                        sampler.session.run(None, feed)
                else:
                    maker.make(plan.shard(index))
                    index = (index + 1) % 64  # so that the disk does not fill
                done += rows
            rate = done / (time.perf_counter() - started)
            if round_number >= 0:
                results.put((kind, round_number, rate))
            barrier.wait(timeout=120)


def measure(name: str, kinds: dict[str, dict[str, Any]], seconds: float, rounds: int) -> float:
    """The median ratio of the first kind over the second, each in two processes."""
    context = mp.get_context("spawn")
    results, barrier = context.Queue(), context.Barrier(2 * WORKERS)
    turns = tuple(kinds)
    processes = [
        context.Process(target=worker, args=(kind, kinds[kind], turns, seconds, rounds, barrier, results))
        for kind in kinds
        for _ in range(WORKERS)
    ]
    for process in processes:
        process.start()
    rates: dict[tuple[str, int], float] = {}
    for _ in range(2 * WORKERS * rounds):
        kind, number, rate = results.get(timeout=300)
        rates[kind, number] = rates.get((kind, number), 0.0) + rate
    for process in processes:
        process.join(timeout=60)
    one, other = turns
    ratios = [rates[one, n] / rates[other, n] for n in range(rounds)]
    shown = [statistics.median(rates[kind, n] for n in range(rounds)) for kind in turns]
    print(
        f"{name:<34} {one} {shown[0]:>9,.0f}/s   {other} {shown[1]:>9,.0f}/s   "
        f"ratio {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )
    return statistics.median(ratios)


def prepare(store: str, size: int, channels: int, model: dict[str, Any], **generate: Any) -> dict[str, Any]:
    """A run with a model of random weights: speed does not depend on what it learnt."""
    import torch

    from genai_ray import modalities
    from genai_ray.export import card_of, to_onnx
    from genai_ray.families import build
    from genai_ray.image.codec import ImageCodec
    from genai_ray.provenance import MODEL_KEY, seal
    from genai_ray.spec import dump
    from genai_ray.storage import Store

    if size > 32 and "shard_bytes" not in generate:
        generate.setdefault("shard_rows", 2_048)  # a shard takes seconds as it is
    spec = modalities.parse(
        {
            "name": f"r{time.monotonic_ns()}",
            "store": store,
            "model": model,
            "generate": {"samples": 10**6, "batch": 64, "workers": WORKERS, **generate},
        }
    )
    codec = ImageCodec(size, channels, None)
    torch.manual_seed(0)
    family = build(spec.model, codec, 0)
    graph = to_onnx(family.sampler().eval(), card_of(spec, codec, family, {}))
    Store(spec.run_uri).put(MODEL_KEY, seal(graph)[0])
    return dump(spec)


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "mlp_gan, 28x28x1": (28, 1, {"preset": "mlp_gan"}),
    "dcgan 32, 32x32x3": (32, 3, {"preset": "dcgan", "width": 32}),
    "dcgan 32, 64x64x3": (64, 3, {"preset": "dcgan", "width": 32}),
}


def steady(folder: str, seconds: float, rounds: int) -> None:
    for name, (size, channels, model) in CASES.items():
        for encoding in ("raw", "png", "jpeg"):
            values = prepare(folder, size, channels, model, encoding=encoding)
            kinds = {"shards": values, "bare": values}
            measure(f"steady  {name}, {encoding}", kinds, seconds, rounds)


def s3(folder: str, seconds: float, rounds: int) -> None:
    from genai_ray import local

    with local.running(Path(folder) / "stack", with_ray=False) as stack, local.environment(stack.environment):
        for name, (size, channels, model) in CASES.items():
            kinds = {
                "s3": prepare(f"s3://{local.BUCKET}/runs", size, channels, model),
                "folder": prepare(folder, size, channels, model),
            }
            measure(f"s3      {name}, png", kinds, seconds, rounds)


# --- what a user would write ---------------------------------------------------------------------


class UserPipeline:
    """The step of a Ray Data pipeline as the documentation shows it: noise, model, Pillow."""

    def __init__(self, model: bytes, latent: int):
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self.session, self.latent = ort.InferenceSession(model, options), latent

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from PIL import Image

        n = len(batch["id"])
        noise = np.random.default_rng(int(batch["id"][0])).standard_normal((n, self.latent))
        images: Any = self.session.run(None, {"noise": noise.astype(np.float32)})[0]
        files = []
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image.squeeze()).save(buffer, "PNG")
            files.append(buffer.getvalue())
        return {"id": batch["id"], "image": np.array(files, dtype=object)}


def user_ray(values: dict[str, Any], out: str) -> None:
    import ray.data

    from genai_ray import modalities
    from genai_ray.dataset.plan import open_plan

    plan = open_plan(modalities.parse(values))
    data = ray.data.range(plan.spec.samples).map_batches(
        UserPipeline,
        fn_constructor_args=(plan.model, plan.card.latent),
        batch_size=1024,
        compute=ray.data.ActorPoolStrategy(size=1),  # with two, nothing is left to read and write
    )
    data.write_parquet(out)


def user_torch(values: dict[str, Any], size: int, channels: int, model: dict[str, Any]) -> None:
    """Eager torch and Pillow in one process with two threads; the files are thrown away."""
    import torch
    from PIL import Image

    from genai_ray import modalities
    from genai_ray.families import build
    from genai_ray.image.codec import ImageCodec

    torch.set_num_threads(WORKERS)
    spec = modalities.parse(values)
    family = build(spec.model, ImageCodec(size, channels, None), 0)
    sampler = family.sampler().eval()
    with torch.no_grad():
        for _ in range(0, spec.generate.samples, 256):
            for image in sampler(torch.randn(256, family.sampler_latent)).numpy():
                Image.fromarray(image.squeeze()).save(io.BytesIO(), "PNG")


def user(folder: str, samples: int) -> None:
    import ray

    from genai_ray import modalities
    from genai_ray.dataset.generate import generate

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=True, log_to_driver=False)
    size, channels, model = CASES["dcgan 32, 32x32x3"]
    values = prepare(folder, size, channels, model, samples=samples)

    def rate(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            call()
        return samples / (time.perf_counter() - started)

    ours = rate(lambda: generate(modalities.parse(values)))
    by_ray = rate(lambda: user_ray(values, f"{folder}/user"))
    few = values | {"generate": values["generate"] | {"samples": samples // 4}}
    by_torch = rate(lambda: user_torch(few, size, channels, model)) / 4
    ray.shutdown()
    print(
        f"user    {samples:,} images, PNG in Parquet: ours {ours:,.0f}/s; Ray Data, ONNX "
        f"Runtime, Pillow {by_ray:,.0f}/s, ratio {ours / by_ray:.2f}; torch, Pillow, 2 threads "
        f"{by_torch:,.0f}/s, ratio {ours / by_torch:.2f}",
        flush=True,
    )


# --- memory and many shards ----------------------------------------------------------------------


def memory(folder: str) -> None:
    import psutil

    from genai_ray import modalities
    from genai_ray.dataset.plan import open_plan
    from genai_ray.dataset.shards import ShardMaker

    size, channels, model = CASES["mlp_gan, 28x28x1"]
    maker = ShardMaker(open_plan(modalities.parse(prepare(folder, size, channels, model))))
    rows, megabytes = maker.plan.spec.shard_rows, {}
    for index in range(maker.plan.shard_count):
        maker.make(maker.plan.shard(index))
        if index in (1, maker.plan.shard_count - 1):
            megabytes[(index + 1) * rows] = psutil.Process().memory_info().rss / 1e6
    few, many = megabytes.values()
    print(
        f"memory  of a worker: {few:,.0f} MB after {min(megabytes):,} samples, {many:,.0f} MB after "
        f"{max(megabytes):,}: {many / few - 1:+.1%}",
        flush=True,
    )


DRIVER = """
import json, os, resource, sys, time
import psutil, ray
from genai_ray import modalities
from genai_ray.dataset.generate import generate
spec = modalities.parse(json.loads(sys.argv[1]))
ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
started = time.perf_counter()
generate(spec)
print(time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def driver(folder: str) -> None:
    tiny = {"preset": "mlp_gan", "latent": 4, "generator_widths": [4], "discriminator_widths": [4]}
    runs: dict[int, tuple[float, float]] = {}
    for shards in (2_000, 20_000):
        values = prepare(folder, 8, 1, tiny, sink="discard", shard_rows=1, samples=shards, batch=1)
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, json.dumps(values)], check=True, capture_output=True, text=True, timeout=580
        )
        seconds, peak = map(float, done.stdout.split()[-2:])
        runs[shards] = seconds, peak
    (few, (_, less)), (many, (seconds, more)) = runs.items()
    print(
        f"driver  {many:,} shards in {seconds:.0f} s, {many / seconds:,.0f}/s; "
        f"{(more - less) / (many - few):,.0f} bytes of the driver a shard",
        flush=True,
    )


def page(folder: str) -> None:
    from genai_ray import modalities
    from genai_ray.plan import estimate

    size, channels, model = CASES["dcgan 32, 64x64x3"]
    for encoding in ("png", "jpeg"):
        values = prepare(folder, size, channels, model, encoding=encoding, samples=10**9, shard_bytes=256_000_000)
        print(f"page    {encoding}", json.dumps(estimate(modalities.parse(values))), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=200_000, help="of the kind user")
    parser.add_argument("--only", choices=KINDS)
    options = parser.parse_args()
    calls: dict[str, Callable[[str], None]] = {
        "steady": lambda folder: steady(folder, options.seconds, options.rounds),
        "s3": lambda folder: s3(folder, options.seconds, options.rounds),
        "user": lambda folder: user(folder, options.samples),
        "memory": memory,
        "driver": driver,
        "page": page,
    }
    with tempfile.TemporaryDirectory() as folder:
        for kind in [options.only] if options.only else KINDS:
            calls[kind](folder)


if __name__ == "__main__":
    main()
