"""What a data set will be, by a short trial: `estimate(spec)`."""

import math
import time
from typing import Any

from genai_ray.dataset.plan import Plan, Shard, open_plan
from genai_ray.dataset.shards import ForgetfulStore, ShardMaker, with_settled_rows
from genai_ray.progress import duration
from genai_ray.spec import Spec
from genai_ray.storage import Store

_CALIBRATION_S = 2.0
_FIRST_TRIAL = 64  # samples


def estimate(spec: Spec) -> dict[str, Any]:
    """Shards, files, bytes, requests, time and money of the data set of a run, by a short trial on
    one core of this machine.

    Raises:
        IncompleteError: if the run has no model yet.
    """
    Store(spec.run_uri).check(write=False)
    made = with_settled_rows(open_plan(spec))
    shards, rows = made.shard_count, spec.generate.samples
    done = len(made.store.list("_receipts/"))
    rate, size = _calibrate(made)
    rate *= spec.generate.workers
    count = made.sink.files
    files = (shards - 1) * count(made.spec.shard_rows) + count(rows - (shards - 1) * made.spec.shard_rows)
    seconds = rows * (1 - min(done / shards, 1)) / rate
    puts, prices = files + shards + 3, spec.prices  # the files, their receipts, and the manifest
    nodes = math.ceil(spec.generate.workers / prices.workers_per_node)
    return {
        "uri": made.store.uri,
        "model": made.digest,
        "rows": rows,
        "shards": shards,
        "shards_done": done,
        "files": files,
        "bytes": round(size * rows),
        "put_requests": puts,
        "rows_per_s": round(rate),
        "time": duration(seconds),
        "cost": {
            "computing": round(nodes * seconds / 3600 * prices.node_hour, 2),
            "requests": round(puts / 1000 * prices.put_1000, 2),
            "a_month_of_storage": round(size * rows / 1e9 * prices.gb_month, 2),
        },
        "counts": made.samples().counts(),
    }


def _calibrate(made: Plan) -> tuple[float, float]:
    """(rows per second of one worker, bytes per row), tried on the first samples; nothing is kept.

    Encoding goes through the same code as a real shard, into a store that forgets.
    """
    maker, forgetful = ShardMaker(made), ForgetfulStore()
    limit = min(made.spec.samples, made.spec.shard_rows)
    count = min(made.spec.batch or _FIRST_TRIAL, limit)
    maker.files(Shard(0, 0, count), ForgetfulStore())  # the first call also plans the graph
    rows, started = 0, time.monotonic()
    while time.monotonic() - started < _CALIBRATION_S:
        maker.files(Shard(0, 0, count), forgetful)
        rows, count = rows + count, min(2 * count, limit)
    return rows / (time.monotonic() - started), forgetful.bytes / rows
