"""Tables on Adult, beside the package `ctgan`: `python benchmarks/table.py ADULT [key=value ...]`.

ADULT is the folder with adult.data and adult.test (https://archive.ics.uci.edu/dataset/2/adult).
The package is a peer that is run, never imported by us: it is under the Business Source License,
so none of its code may get into ours. It lives in an environment of its own, made once by

    python3 -m venv ../peer && ../peer/bin/pip install ctgan pyarrow

and is given by --peer-python ../peer/bin/python. It runs with its default settings.

    ctgan    fit for --epochs of both, with their preparation (ours: start of the worker, training,
             export): seconds; F1, AUC and column shapes of as many synthetic rows as real ones
    tvae     the same of the other model
    sample   rows/s to finished Parquet: `generate` over `sample` and `to_parquet`, both models
    recipe   our presets as we advise them, from training to the report: seconds and scores
    memory   resident memory of a worker after 10^5 and after 10^7 rows
    prepare  1,000,000 training rows: seconds and memory until they are encoded

F1 of the class >50K and AUC are those of scikit-learn's HistGradientBoostingClassifier with its
default settings, trained on synthetic rows and tested on adult.test; column shapes (mean of the
KS and TV complements, as in SDMetrics) compare with adult.data. Both sides have the same two cores,
which nothing else may use: threads that wait for each other on a busy core can take ten times as
long. The peer may be faster with --peer-threads 1. Overrides apply to our side of every kind.
Shown are ours / the peer's, the median ratio of the rounds, and for scores the mean over --seeds
and their spread.
"""

import argparse
import contextlib
import io
import json
import multiprocessing as mp
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from genai_ray import modalities
from genai_ray.spec import Spec, dump

KINDS = ("ctgan", "tvae", "sample", "recipe", "memory", "prepare")
CORES = 2
NAMES = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
)
TARGET, POSITIVE = "income", ">50K"
#: What we advise for Adult on two cores, by preset.
RECIPES: dict[str, tuple[str, ...]] = {
    "table_ar": ("train.samples=1_500_000",),
    "tvae": ("train.samples=4_000_000",),
    "ctgan": ("train.samples=5_000_000",),
}


# --- data and scores -----------------------------------------------------------------------------


def adult(file: Path) -> pa.Table:
    """One of the published files; `?` in missing cells stays."""
    with file.open("rb") as lines:
        if file.suffix == ".test":
            lines.readline()  # is not a row
        text = lines.read().replace(b", ", b",").replace(b".\n", b"\n")
    return pacsv.read_csv(io.BytesIO(text), read_options=pacsv.ReadOptions(column_names=NAMES))


def read_parquet(files: Sequence[Path], like: pa.Table) -> pa.Table:
    """Columns and types of `like`, with `?` in missing cells: the peer knows no others."""
    table = pa.concat_tables([pq.read_table(file, columns=[*NAMES]) for file in files])
    columns = [
        column.fill_null("?") if pa.types.is_string(column.type) else column
        for column in table.cast(like.schema).columns
    ]
    return pa.table(columns, schema=like.schema)


@dataclass(frozen=True)
class Scores:
    f1: float
    auc: float
    shapes: float


def score(synthetic: pa.Table, train: pa.Table, test: pa.Table, seed: int) -> Scores:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import f1_score, roc_auc_score

    from genai_ray.table.matrix import encode
    from genai_ray.table.shapes import column_shapes

    sides = []
    fitted, unseen = encode([synthetic, test], skip=[TARGET])
    for columns, table in ((fitted, synthetic), (unseen, test)):
        x = np.concatenate([columns.numbers, columns.categories], axis=1)
        sides.append((x, table[TARGET].to_numpy() == POSITIVE))
    (x, y), (x_test, y_test) = sides
    categorical = np.arange(x.shape[1]) >= len(fitted.number_names)
    shapes = float(np.mean([*column_shapes(*encode([train, synthetic])).values()]))
    if y.all() or not y.any():
        return Scores(0.0, 0.5, shapes)  # nothing that can be learnt
    # The seed decides which rows end its training early, which is on by default.
    classifier = HistGradientBoostingClassifier(categorical_features=categorical, random_state=seed)
    chance = classifier.fit(x, y).predict_proba(x_test)[:, 1]
    return Scores(float(f1_score(y_test, chance > 0.5)), float(roc_auc_score(y_test, chance)), shapes)


# --- the peer ------------------------------------------------------------------------------------

PEER = """
import json, sys, time
import numpy, pandas, torch
from ctgan import CTGAN, TVAE
torch.set_num_threads(int(sys.argv[1]))
for line in sys.stdin:
    request = json.loads(line)
    started = time.perf_counter()
    if request["do"] == "fit":
        frame = pandas.read_csv(request["csv"], keep_default_na=False)
        numpy.random.seed(request["seed"])
        torch.manual_seed(request["seed"])
        started = time.perf_counter()
        model = {"ctgan": CTGAN, "tvae": TVAE}[request["model"]](epochs=request["epochs"], enable_gpu=False)
        model.fit(frame, [c for c in frame if not pandas.api.types.is_numeric_dtype(frame[c])])
    else:
        model.sample(request["rows"]).to_parquet(request["out"], index=False)
    print(json.dumps(time.perf_counter() - started), flush=True)
"""


class Peer:
    """The package in a process of its own; it does one thing at a time, and waits in between."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def ask(self, **what: Any) -> float:
        """Seconds that it took, without start, imports and reading of the CSV file."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit("the peer ended; its own message is above")
        return json.loads(answer)


@contextlib.contextmanager
def peer(python: str | None, threads: int) -> Iterator[Peer]:
    if python is None:
        raise SystemExit("this kind needs --peer-python; how to make it stands in --help")
    command = [python, "-W", "ignore", "-c", PEER, str(threads)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {f"{kind}_NUM_THREADS": str(threads) for kind in ("OMP", "OPENBLAS")},
    ) as process:
        yield Peer(process)
        assert process.stdin is not None
        process.stdin.close()


# --- our side ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """What all kinds need. The folder holds train.csv, test.csv and all that is written."""

    folder: Path
    train: pa.Table
    test: pa.Table
    overrides: tuple[str, ...]
    python: str | None
    peer_threads: int
    epochs: int
    seeds: tuple[int, ...]
    rows: int

    def spec(self, preset: str, *chosen: str, seed: int = 0) -> Spec:
        values = {
            "name": f"r{time.monotonic_ns()}",
            "seed": seed,
            "store": str(self.folder / "runs"),
            "data": {
                "source": "table",
                "root": str(self.folder / "train.csv"),
                "holdout_root": str(self.folder / "test.csv"),
            },
            "model": {"preset": preset},
            "train": {
                "global_batch": 500,
                # Two workers would spend more on each other than on steps as small as these.
                "workers": 1,
                "cpus_per_worker": CORES,
                "precision": "bf16",
                "checkpoint_every": 1_000_000,
                "log_seconds": 60,
            },
            "generate": {"samples": len(self.train), "workers": CORES},
        }
        file = self.folder / "spec.yaml"
        file.write_text(json.dumps(values))
        return modalities.load(file, [*chosen, *self.overrides])

    def fit(self, spec: Spec) -> float:
        """Seconds from the CSV file to a model that can be sampled from."""
        from genai_ray.export import export
        from genai_ray.training.train import train

        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            train(spec)
            export(spec)
        return time.perf_counter() - started

    def generate(self, spec: Spec) -> float:
        from genai_ray.dataset.generate import generate

        started = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            generate(spec)
        return time.perf_counter() - started

    def score(self, files: Sequence[Path], seed: int) -> Scores:
        return score(read_parquet(files, self.train), self.train, self.test, seed)


def files_of(spec: Spec) -> list[Path]:
    return sorted(Path(spec.run_uri, spec.generate.into).rglob("*.parquet"))


def in_turn(number: int, one: Callable[[], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """Both; which comes first changes from round to round."""
    if number % 2:
        b = other()
        return one(), b
    return one(), other()


def ratios(name: str, unit: str, pairs: Sequence[tuple[float, float]], *, less: bool) -> None:
    """Median of either side, and by how much ours is better."""
    quotients = sorted(b / a if less else a / b for a, b in pairs)
    a, b = (statistics.median(p[i] for p in pairs) for i in (0, 1))
    print(
        f"{name:<26} {a:11,.0f} / {b:11,.0f} {unit:<7}  {statistics.median(quotients):.2f} "
        f"({quotients[0]:.2f} to {quotients[-1]:.2f})",
        flush=True,
    )


def spread(scores: Sequence[Scores]) -> str:
    """Mean of each score over the seeds, and the least and greatest."""
    shown = []
    for name in ("f1", "auc", "shapes"):
        values = [getattr(s, name) for s in scores]
        shown.append(f"{name} {statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})")
    return "   ".join(shown)


# --- kinds ---------------------------------------------------------------------------------------


def fits(bench: Bench, model: str) -> None:
    seconds: list[tuple[float, float]] = []
    ours: list[Scores] = []
    theirs: list[Scores] = []
    csv, out = str(bench.folder / "train.csv"), bench.folder / "peer.parquet"
    with peer(bench.python, bench.peer_threads) as other:
        for number, seed in enumerate(bench.seeds):
            spec = bench.spec(model, f"train.samples={bench.epochs * len(bench.train)}", seed=seed)
            fit = partial(other.ask, do="fit", model=model, epochs=bench.epochs, seed=seed, csv=csv)
            seconds.append(in_turn(number, partial(bench.fit, spec), fit))
            bench.generate(spec)
            other.ask(do="sample", rows=len(bench.train), out=str(out))
            ours.append(bench.score(files_of(spec), seed))
            theirs.append(bench.score([out], seed))
    ratios(f"{model:<8} {bench.epochs} epochs", "s", seconds, less=True)
    print(f"{model:<8} ours: {spread(ours)}", flush=True)
    print(f"{model:<8} peer: {spread(theirs)}", flush=True)


def sample(bench: Bench) -> None:
    """Of models of one epoch: speed does not depend on what they learnt."""
    csv, out = str(bench.folder / "train.csv"), bench.folder / "peer.parquet"
    samples = f"generate.samples={bench.rows}"
    for model in ("ctgan", "tvae"):
        rates: list[tuple[float, float]] = []
        once = f"train.samples={len(bench.train)}"
        first = bench.spec(model, once, samples)
        bench.fit(first)
        with peer(bench.python, bench.peer_threads) as other:
            other.ask(do="fit", model=model, epochs=1, seed=0, csv=csv)
            for number in range(len(bench.seeds)):
                into, name = f"generate.into=d{number}", f"name={first.name}"
                spec = bench.spec(model, once, samples, into, name)
                took = in_turn(
                    number,
                    partial(bench.generate, spec),
                    partial(other.ask, do="sample", rows=bench.rows, out=str(out)),
                )
                rates.append((bench.rows / took[0], bench.rows / took[1]))
        ratios(f"sample   {model}, {bench.rows:,} rows", "rows/s", rates, less=False)


def recipe(bench: Bench) -> None:
    from genai_ray.pipeline import run

    for preset, chosen in RECIPES.items():
        seconds: list[float] = []
        scores: list[Scores] = []
        for seed in bench.seeds:
            spec = bench.spec(preset, *chosen, seed=seed)
            started = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                run(spec)
            seconds.append(time.perf_counter() - started)
            scores.append(bench.score(files_of(spec), seed))
        print(f"recipe   {preset:<8} {max(seconds):4.0f} s: {spread(scores)}", flush=True)
    real = [score(bench.train, bench.train, bench.test, seed) for seed in bench.seeds]
    print(f"recipe   real rows: {spread(real)}", flush=True)


def make_shards(values: dict[str, Any]) -> dict[int, float]:
    """Rows generated so far -> megabytes of this process."""
    import psutil

    from genai_ray.dataset.plan import open_plan
    from genai_ray.dataset.shards import ShardMaker

    maker, megabytes = ShardMaker(open_plan(modalities.parse(values))), {}
    rows, last = maker.plan.spec.shard_rows, maker.plan.shard_count - 1
    for index in range(last + 1):
        maker.make(maker.plan.shard(index))
        if index in (-(-100_000 // rows), last):
            megabytes[(index + 1) * rows] = psutil.Process().memory_info().rss / 1e6
    return megabytes


def memory(bench: Bench) -> None:
    for preset in RECIPES:
        few = f"train.samples={len(bench.train)}"
        spec = bench.spec(preset, few, "generate.samples=10_000_000")
        bench.fit(spec)
        started = time.perf_counter()
        with mp.get_context("spawn").Pool(1) as pool:
            megabytes = pool.apply(make_shards, (dump(spec),))
        took = time.perf_counter() - started
        before, after = megabytes.values()
        print(
            f"memory   {preset}: {before:,.0f} MB after {min(megabytes):,} rows, {after:,.0f} MB "
            f"after {max(megabytes):,} ({after / before - 1:+.1%}), {took:.0f} s on one core",
            flush=True,
        )


def load_once(values: dict[str, Any]) -> tuple[float, float]:
    """Seconds, and the most gigabytes this process had."""
    import resource

    spec = modalities.parse(values)
    started = time.perf_counter()
    modalities.of_spec(spec).load(spec)
    took = time.perf_counter() - started
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def prepare(bench: Bench) -> None:
    """Adult drawn with replacement; other weights and gains, so that numbers seldom repeat."""
    rows, random = 1_000_000, np.random.default_rng(0)
    table = bench.train.take(random.integers(0, len(bench.train), rows))
    for name, least, most in (("fnlwgt", -5_000, 5_000), ("capital-gain", 0, 100)):
        values = table[name].to_numpy()
        moved = np.maximum(values + random.integers(least, most, rows), 1)
        moved[values == 0] = 0  # as most gains are
        table = table.set_column(NAMES.index(name), name, pa.array(moved))
    file = bench.folder / "million.csv"
    pacsv.write_csv(table, file)
    for preset in RECIPES:
        values = dump(bench.spec(preset, f"data.root={file}"))
        with mp.get_context("spawn").Pool(1) as pool:
            took, most = pool.apply(load_once, (values,))
        print(f"prepare  {preset}: {rows:,} rows in {took:.0f} s, at most {most:.2f} GB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adult", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--peer-python", metavar="PATH")
    parser.add_argument("--peer-threads", type=int, default=CORES)
    parser.add_argument("--epochs", type=int, default=300, help="of the kinds ctgan and tvae")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one a round")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the kind sample")
    parser.add_argument("--only", choices=KINDS, nargs="+")
    options = parser.parse_intermixed_args()
    import ray

    if hasattr(os, "sched_setaffinity"):  # Ray and the peer inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    ray.init(address="local", num_cpus=CORES, include_dashboard=True, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            adult(options.adult / "adult.data"),
            adult(options.adult / "adult.test"),
            tuple(options.overrides),
            options.peer_python,
            options.peer_threads,
            options.epochs,
            tuple(options.seeds),
            options.rows,
        )
        pacsv.write_csv(bench.train, bench.folder / "train.csv")
        pacsv.write_csv(bench.test, bench.folder / "test.csv")
        calls: dict[str, Callable[[Bench], None]] = {
            "ctgan": partial(fits, model="ctgan"),
            "tvae": partial(fits, model="tvae"),
            "sample": sample,
            "recipe": recipe,
            "memory": memory,
            "prepare": prepare,
        }
        for kind in options.only or KINDS:
            calls[kind](bench)
    ray.shutdown()


if __name__ == "__main__":
    main()
