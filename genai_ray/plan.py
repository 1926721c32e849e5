"""What a data set will take, by a short trial: `estimate(spec)`."""

import math
import time
from typing import Any

from genai_ray import modalities
from genai_ray.dataset.plan import Plan, Shard, open_plan
from genai_ray.dataset.shards import ForgetfulStore, ShardMaker, with_settled_rows
from genai_ray.progress import SHOWN, duration, outline, show
from genai_ray.spec import Spec
from genai_ray.storage import Store

_CALIBRATION_S = 2.0
_FIRST_TRIAL = 64  # samples


def estimate(spec: Spec) -> dict[str, Any]:
    """Shards, files, bytes, requests, time and cost of the data set of a run, by a short trial on one core of this
    machine.

    Raises:
        IncompleteError: if the run has no model yet.
    """
    Store(spec.run_uri).check(write=False)
    describe = modalities.of_spec(spec).describe
    data = {} if describe is None else describe(spec.data)
    show(outline(data, most=SHOWN))  # also where there is no model yet
    plan = with_settled_rows(open_plan(spec))
    shards, rows, shard_rows = plan.shard_count, spec.generate.samples, plan.spec.shard_rows
    done = len(plan.store.list("_receipts/"))
    rate, size = _calibrate(plan)
    rate *= spec.generate.workers
    files = (shards - 1) * plan.sink.files(shard_rows) + plan.sink.files(rows - (shards - 1) * shard_rows)
    seconds = rows * (1 - min(done / shards, 1)) / rate
    puts, prices = files + shards + 3, spec.prices  # the files, their receipts, and the manifest
    nodes = math.ceil(spec.generate.workers / prices.workers_per_node)
    return {
        "data": data,
        "uri": plan.store.uri,
        "model": plan.digest,
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
        "counts": plan.samples().counts(),
    }


def _calibrate(plan: Plan) -> tuple[float, float]:
    """(rows per second of one worker, bytes per row), measured on the first samples; nothing is kept.

    The code is that of a real shard, with a store that discards.
    """
    maker, forgetful = ShardMaker(plan), ForgetfulStore()
    limit = min(plan.spec.samples, plan.spec.shard_rows)
    count = min(plan.spec.batch or _FIRST_TRIAL, limit)
    maker.files(Shard(0, 0, count), ForgetfulStore())  # the first call also plans the graph
    rows, started = 0, time.monotonic()
    while time.monotonic() - started < _CALIBRATION_S:
        maker.files(Shard(0, 0, count), forgetful)
        rows, count = rows + count, min(2 * count, limit)
    return rows / (time.monotonic() - started), forgetful.bytes / rows
