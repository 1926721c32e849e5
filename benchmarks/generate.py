"""Generation against two bare ONNX Runtime loops, side by side: `python benchmarks/generate.py`.

Steady state: the shard worker of `genai_ray.generate` and the bare loop run in turn, each in two
processes of one thread, on the same model for the same number of seconds; the ratio is the median
over the rounds. The bare loop computes images from one batch of noise, over and over, and keeps
nothing. The shard worker draws noise, computes, encodes, writes the shard and its receipt.
"""

import argparse
import multiprocessing as mp
import statistics
import tempfile
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np

WORKERS = 2


def worker(kind: str, spec_values: dict[str, Any], seconds: float, rounds: int, barrier: Barrier,
           results: "Queue[tuple[str, int, float]]") -> None:  # fmt: skip
    """Run one kind in its rounds; the barrier keeps the kinds from running at the same time."""
    from genai_ray import config, rng
    from genai_ray.generate import ShardWorker, plan

    spec = config.parse(spec_values)
    shards = ShardWorker(spec_values, plan(spec).digest)
    sampler, made, rows = shards.sampler, shards.plan, spec.generate.shard_rows
    batch = spec.generate.batch
    feed: dict[str, Any] = {"noise": rng.normal(0, 0, 0, batch, made.card.latent)}
    index = 0
    for round_number in range(-1, rounds):  # round -1 warms up
        for turn in ("bare", "shards"):
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
                    start = index * rows
                    made_shard = shards({
                        "index": np.array([index]), "start": np.array([start]),
                        "stop": np.array([start + rows]),
                    })  # fmt: skip
                    assert not made_shard["error"][0], made_shard["error"][0]
                    index = (index + 1) % 64  # so that the disk does not fill
                done += rows
            rate = done / (time.perf_counter() - started)
            if round_number >= 0:
                results.put((kind, round_number, rate))
            barrier.wait(timeout=120)


def measure(name: str, spec_values: dict[str, Any], seconds: float, rounds: int) -> float:
    context = mp.get_context("spawn")
    results = context.Queue()
    barrier = context.Barrier(2 * WORKERS)
    processes = [
        context.Process(target=worker, args=(kind, spec_values, seconds, rounds, barrier, results))
        for kind in ("bare", "shards") for _ in range(WORKERS)
    ]  # fmt: skip
    for process in processes:
        process.start()
    rates: dict[tuple[str, int], float] = {}
    for _ in range(2 * WORKERS * rounds):
        kind, number, rate = results.get(timeout=300)
        rates[kind, number] = rates.get((kind, number), 0.0) + rate
    for process in processes:
        process.join(timeout=60)
    ratios = [rates["shards", n] / rates["bare", n] for n in range(rounds)]
    bare = statistics.median(rates["bare", n] for n in range(rounds))
    ours = statistics.median(rates["shards", n] for n in range(rounds))
    print(f"{name:<34} bare {bare:>9,.0f}/s   shards {ours:>9,.0f}/s   "
          f"ratio {statistics.median(ratios):.3f}  ({min(ratios):.3f} to {max(ratios):.3f})",
          flush=True)  # fmt: skip
    return statistics.median(ratios)


def prepare(
    store: str, size: int, channels: int, preset: str, width: int, encoding: str
) -> dict[str, Any]:
    """A model of random weights: speed does not depend on what it learnt."""
    import torch

    from genai_ray import config
    from genai_ray.data.image import ImageCodec
    from genai_ray.export import to_onnx
    from genai_ray.models import build
    from genai_ray.provenance import MODEL_KEY, ModelCard, seal
    from genai_ray.storage import Store

    name = f"{preset}-{width}-{size}-{channels}"
    spec = config.parse({
        "name": f"{name}-{encoding}", "store": store,
        "model": {"preset": preset, "width": width},
        "generate": {"samples": 10**6, "batch": 64, "encoding": encoding},
    })  # fmt: skip
    codec = ImageCodec(size, channels, None)
    torch.manual_seed(0)
    sampler = build(spec.model, codec, 0).sampler().eval()
    card = ModelCard(
        name=name, preset=preset, family="gan", latent=spec.model.latent, conditional=False,
        codec=codec.to_json(), training={}, versions={},
    )  # fmt: skip
    Store(spec.run_uri).put(MODEL_KEY, seal(to_onnx(sampler, card))[0])
    return config.dump(spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each kind in each round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    cases = [("mlp_gan", 64, 28, 1), ("dcgan", 32, 32, 3), ("dcgan", 64, 32, 3)]
    with tempfile.TemporaryDirectory() as folder:
        for preset, width, size, channels in cases:
            for encoding in ("raw", "png"):
                values = prepare(
                    str(Path(folder)), size, channels, preset, width,
                    encoding,
                )  # fmt: skip
                measure(f"{preset} {width}, {size}x{size}x{channels}, {encoding}", values,
                        options.seconds, options.rounds)  # fmt: skip


if __name__ == "__main__":
    main()
