"""What real images cost: `python benchmarks/input.py [input | memory] [--old CHECKOUT]`.

input    images/s of training input from a folder of 512x384 JPEGs at data.size=64, in the first epoch
         (with the decoding) and in later ones, beside decoding each image in each epoch; with --old
         also beside the stream of a checkout that has one. Each kind in turn, rounds over all of them.
memory   peak memory while 300 photos of 6000x4000 are prepared: of this process, and with Ray the
         sum of its workers
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from genai_ray.image.codec import ImageCodec
from genai_ray.image.source import load_images
from genai_ray.image.spec import ImageDataSpec
from genai_ray.order import rows_at
from genai_ray.storage import Store

_BATCH = 128
_SIZE = 64
#: The stream of an earlier version, in a process of its own; prints images/s of the first epoch, and of the
#: next two together, as it decodes a little more than an epoch ahead.
_STREAM = """
import contextlib, itertools, json, sys, time
import ray
from genai_ray import ingest
from genai_ray.config import DataSpec
from genai_ray.data.image import load_images
root, size, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ray.init(address="local", include_dashboard=False, log_to_driver=False)
stream = load_images(DataSpec(source="folder", root=root, size=size, ingest="stream"))
steps, rates = stream.n // batch, []
arguments = dict(seed=0, global_batch=batch, first_step=0, lo=0, hi=batch)
with contextlib.closing(ingest.batches(stream, **arguments)) as batches:
    for count in (steps, 2 * steps):
        started = time.monotonic()
        shown = sum(len(images) for images, _ in itertools.islice(batches, count))
        rates.append(shown / (time.monotonic() - started))
print(json.dumps(rates))
"""


def photos(root: Path, count: int, width: int, height: int, distinct: int) -> None:
    """JPEGs of smooth shapes with noise, about as large as photographs; `distinct` of them differ."""
    random = np.random.default_rng(0)
    root.mkdir(parents=True)
    for i in range(count):
        if i >= distinct:
            os.link(root / f"{i % distinct:05d}.jpg", root / f"{i:05d}.jpg")
            continue
        coarse = random.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        noise = random.integers(-6, 7, (height, width, 1), np.int16)
        noisy = Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8))
        noisy.save(root / f"{i:05d}.jpg", quality=90)


def epochs(root: Path, run: Path, count: int) -> list[float]:
    """Images/s of some epochs of a run that begins; the first makes the spool."""
    rates = []
    started = time.monotonic()
    data = load_images(ImageDataSpec(source="folder", root=str(root), size=_SIZE), Store(str(run)))
    for epoch in range(count):
        for start in range(epoch * data.n, (epoch + 1) * data.n, _BATCH):
            data.at(0, start, min(start + _BATCH, (epoch + 1) * data.n))
        rates.append(data.n / (time.monotonic() - started))
        started = time.monotonic()
    return rates


def decoded_each_time(root: Path) -> float:
    """Images/s of an epoch in which threads decode what a batch asks for."""
    paths, codec = sorted(root.iterdir()), ImageCodec(_SIZE, 3, None)
    n = round(len(paths) * 0.8)
    started = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, n, _BATCH):
            rows = rows_at(0, start, min(start + _BATCH, n), n)
            np.stack(list(pool.map(lambda row: codec.encode(Image.open(paths[row])), rows)))
    return n / (time.monotonic() - started)


def streamed(checkout: Path, root: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", _STREAM, str(root), str(_SIZE), str(_BATCH)],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        timeout=600,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare_input(folder: Path, rounds: int, count: int, old: Path | None) -> None:
    photos(folder / "photos", count, 512, 384, distinct=min(count, 500))
    kinds: dict[str, list[float]] = {}
    for number in range(rounds):
        first, *later = epochs(folder / "photos", folder / f"run-{number}", 4)
        kinds.setdefault("first epoch", []).append(first)
        kinds.setdefault("later epochs", []).append(statistics.median(later))
        kinds.setdefault("decoding each epoch", []).append(decoded_each_time(folder / "photos"))
        if old:
            first, later = streamed(old, folder / "photos")
            kinds.setdefault("stream, first epoch", []).append(first)
            kinds.setdefault("stream, later epochs", []).append(later)
    base = "stream, later epochs" if old else "decoding each epoch"
    print(f"{count} JPEGs of 512x384 at data.size={_SIZE}, batches of {_BATCH}, {rounds} rounds")
    for kind, rates in kinds.items():
        ratios = sorted(rate / other for rate, other in zip(rates, kinds[base], strict=True))
        spread = f"{statistics.median(ratios):8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"  {kind:22} {statistics.median(rates):10,.0f} images/s   {spread} of {base}")


def peak(work: Callable[[], object]) -> float:
    """Largest private memory of this process and its children while it works, in MB."""
    process, most, done = psutil.Process(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            total = 0
            for one in (process, *process.children(recursive=True)):
                try:
                    memory = one.memory_info()
                except psutil.NoSuchProcess:
                    continue
                total += memory.rss - memory.shared
            most = max(most, total)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return most / 1e6


def measure_memory(folder: Path, count: int) -> None:
    photos(folder / "photos", count, 6000, 4000, distinct=min(count, 6))
    spec = ImageDataSpec(source="folder", root=str(folder / "photos"), size=_SIZE)
    print(f"{count} photos of 6000x4000 at data.size={_SIZE}")

    def prepare(run: str) -> Callable[[], object]:
        return lambda: load_images(spec, Store(str(folder / run)))

    before = peak(lambda: time.sleep(0.2))
    print(f"  by threads   {peak(prepare('threads')):7,.0f} MB, {before:,.0f} MB of it before")
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    before = peak(lambda: time.sleep(0.2))
    print(f"  by Ray       {peak(prepare('ray')):7,.0f} MB, {before:,.0f} MB of it before")
    ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("input", "memory"), default="input")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="default: 4000, or 300 photos")
    parser.add_argument("--old", type=Path, help="a checkout with genai_ray/ingest.py")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "input":
            compare_input(Path(folder), arguments.rounds, arguments.images or 4000, arguments.old)
        else:
            measure_memory(Path(folder), arguments.images or 300)


if __name__ == "__main__":
    main()
