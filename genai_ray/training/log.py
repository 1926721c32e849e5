"""What a training run writes: progress line, metrics.jsonl, TensorBoard, MLflow, checkpoints.

Slow writes run in one background thread beside training.
"""

import json
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from genai_ray.errors import IncompleteError, UserError
from genai_ray.progress import Progress
from genai_ray.runs import read_metrics
from genai_ray.spec import Spec, fingerprint
from genai_ray.storage import Store
from genai_ray.training import checkpoint

Row = dict[str, Any]  # of metrics.jsonl
Scalar = tuple[int, str, float]  # samples seen, name, value

_METRIC_ROWS = 400  # of a whole run; enough for a curve, little enough to keep
_GRIDS = 20  # of a whole run
_SATURATED = 0.995  # accuracy of a discriminator from which the generator learns nothing
_SATURATED_ROWS = 20
_FALLEN = 0.5  # of the best coverage so far


def is_due(spec: Spec, samples: int, every: int) -> bool:
    """Whether the last global batch reached or passed a multiple of `every` samples."""
    return samples // every > (samples - spec.train.global_batch) // every


def alarms(rows: Sequence[Row]) -> list[str]:
    """A message for each problem in the metrics so far: a discriminator that made no errors to learn from for 20 rows,
    and coverage below half of its best in two successive measurements.
    """
    messages = []
    accuracy = [r["accuracy_discriminator"] for r in rows if "accuracy_discriminator" in r][-_SATURATED_ROWS:]
    if len(accuracy) == _SATURATED_ROWS and min(accuracy) >= _SATURATED:
        messages.append(
            f"the discriminator was right in at least {min(accuracy):.1%} of its answers for {len(accuracy)} rows: "
            "the generator learns little; lower model.discriminator_learning_rate, or set model.augment or a "
            "model.penalty"
        )
    coverage = [r["coverage"] for r in rows if "coverage" in r]
    if len(coverage) > 2 and max(coverage[-2:]) < _FALLEN * max(coverage):
        messages.append(
            f"coverage fell from {max(coverage):.2f} to {coverage[-1]:.2f}: the generator makes fewer kinds of images "
            "than before; train.keep=best exports the state before that"
        )
    return messages


class Log:
    """Progress line, metrics.jsonl, event files and checkpoints.

    Uploads run in one background thread, in order; the error of one is raised at the next.
    """

    def __init__(self, store: Store, spec: Spec, *, done: int, workers: int):
        self.store, self.spec, self.workers = store, spec, workers
        self.rows = [r for r in read_metrics(store) if r["samples"] <= done]
        self.progress = Progress("train", spec.train.samples, done=done, every_s=spec.train.log_seconds)
        self._interval = max(1, spec.train.samples // _METRIC_ROWS)
        self._grid_interval = max(1, spec.train.samples // _GRIDS)
        self._grids = done // self._grid_interval
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._writers: list[Any] = [_TensorBoard(store)]
        if spec.train.mlflow:
            self._writers.append(_Mlflow(spec))
        self._written = done

    def closes_row(self, samples: int) -> bool:
        """Whether a row of metrics ends with the step that reaches this number of samples."""
        return is_due(self.spec, samples, self._interval)

    def step(self, samples: int, logs: dict[str, Tensor]) -> None:
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        if self.closes_row(samples):
            means = {k: float(v) / self._counts[k] for k, v in self._sums.items()}
            self._sums, self._counts = {}, {}
            rate = round(self.progress.rate, 1)
            self._add({"samples": samples, **means, "rate": rate, "workers": self.workers})
        last = self.rows[-1] if self.rows else {}
        note = "  ".join(
            f"{k.replace('discriminator', 'D').replace('generator', 'G')} {v:.3g}"
            for k, v in last.items()
            if k.startswith(("loss", "accuracy"))
        )
        self.progress.update(samples, note)

    def measured(self, samples: int, scores: dict[str, float]) -> None:
        self._add({"samples": samples, **scores})
        shown = "  ".join(f"{k} {v:.3g}" for k, v in scores.items())
        _say(f"train {samples:,}  {shown}")

    def wants_grid(self, samples: int) -> bool:
        return samples // self._grid_interval > self._grids or samples >= self.spec.train.samples

    def checkpoint(
        self, state: dict[str, Any], samples: int, grid: NDArray[np.uint8] | None, *, best: bool = False
    ) -> None:
        """Store a state, which must not be changed any more, as the newest and perhaps as the best."""
        self.wait()
        if grid is not None:
            self._grids = samples // self._grid_interval
        self._pending = self._pool.submit(self._publish, state, samples, list(self.rows), grid, best)

    def wait(self) -> None:
        """Wait until all is stored.

        Raises:
            IncompleteError: if the store did not take a checkpoint.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (OSError, UserError) as error:
            raise IncompleteError(
                f"{self.store.uri}: a checkpoint could not be stored: {error}. The one before is intact; make room, "
                "and the same command resumes from it"
            ) from error

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: Any, *error: object) -> None:
        try:
            self.wait()
        except IncompleteError:
            if kind is None:
                raise
        finally:
            self._pool.shutdown()
            for writer in self._writers:
                writer.close()

    def _add(self, row: Row) -> None:
        before = set(alarms(self.rows))
        self.rows.append(row)
        for alarm in alarms(self.rows):
            row["alarm"] = alarm
            if not before:
                _say(f"warning: at {row['samples']:,} samples {alarm}")

    def _publish(
        self, state: dict[str, Any], samples: int, rows: list[Row], grid: NDArray[np.uint8] | None, best: bool
    ) -> None:
        packed = checkpoint.pack(state)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.store.put("train/metrics.jsonl", lines.encode())
        new_rows = [r for r in rows if r["samples"] > self._written]
        scalars = [(r["samples"], k, v) for r in new_rows for k, v in r.items() if k not in ("samples", "alarm")]
        for writer in self._writers:
            writer.add(scalars, grid, samples)
        self._written = samples
        # Last, so that the files beside a checkpoint are never older than it.
        if best:
            self.store.put(checkpoint.BEST, packed)
        self.store.put(checkpoint.key(samples), packed)
        checkpoint.prune(self.store, self.spec.train.keep_checkpoints)


class _TensorBoard:
    """TensorBoard events: one file for each start of training."""

    def __init__(self, store: Store):
        self.store, self._writer = store, None
        self._folder = tempfile.TemporaryDirectory(prefix="genai_ray-events-")

    def add(self, scalars: list[Scalar], grid: NDArray[np.uint8] | None, samples: int) -> None:
        from tensorboardX import SummaryWriter  # slow to import: not before the first checkpoint

        if self._writer is None:
            self._writer = SummaryWriter(self._folder.name)
        for seen, name, value in scalars:
            self._writer.add_scalar(name, value, seen)
        if grid is not None:
            self._writer.add_image("samples", grid, samples, dataformats="HWC")
        self._writer.flush()
        for path in Path(self._folder.name).iterdir():
            self.store.put(f"train/{path.name}", path.read_bytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._folder.cleanup()


class _Mlflow:
    """Logs to MLflow; resumes the run with the same fingerprint and URI."""

    def __init__(self, spec: Spec):
        self._client = require_mlflow(spec.train.mlflow).MlflowClient(tracking_uri=spec.train.mlflow)
        existing = self._client.get_experiment_by_name("genai_ray")
        experiment = existing.experiment_id if existing else self._client.create_experiment("genai_ray")
        fields = fingerprint.fields(spec, "train")
        tags = {"fingerprint": fingerprint.digest(fields), "run_uri": spec.run_uri}
        runs = self._client.search_runs([experiment], f"tags.fingerprint = '{tags['fingerprint']}'")
        runs = [r for r in runs if r.data.tags.get("run_uri") == spec.run_uri]
        run = runs[0] if runs else self._client.create_run(experiment, run_name=spec.name, tags=tags)
        self._run_id = run.info.run_id
        if not runs:
            for name, value in fields.items():
                self._client.log_param(self._run_id, name, str(value)[:500])

    def add(self, scalars: list[Scalar], grid: NDArray[np.uint8] | None, samples: int) -> None:
        for seen, name, value in scalars:
            if math.isfinite(value):
                self._client.log_metric(self._run_id, name, value, step=seen)

    def close(self) -> None:
        self._client.set_terminated(self._run_id)


def require_mlflow(uri: str | None) -> Any:
    """The module mlflow; raises UserError if it is not installed."""
    # Its import asks git for a commit, and warns where there is no git.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import mlflow  # pyright: ignore[reportMissingImports]
    except ImportError:
        remedy = "pip install 'genai-ray[mlflow]', or drop train.mlflow."
        raise UserError("train.mlflow", uri, "needs a package that is not installed", remedy) from None
    return mlflow


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201
