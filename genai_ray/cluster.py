"""The current Ray cluster: join it, and wait for the resources that a job needs."""

import logging
import os
import signal
import threading
from types import FrameType

from genai_ray.errors import IncompleteError, UserError


def connect() -> None:
    """Join the cluster that RAY_ADDRESS names (it is set in a submitted job), else start one in this process.

    SIGTERM then ends the process as incomplete; Ray would replace a handler that was set before.
    """
    import ray

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        quiet = {"logging_level": logging.WARNING, "log_to_driver": True}
        if address and not address.startswith("http"):
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=True, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def require(field: str, workers: int, bundle: dict[str, float], *, timeout_s: float, remedy: str) -> None:
    """Wait until the cluster can place `workers` bundles of resources at once.

    Raises:
        UserError: naming the field and what is missing, at the deadline; at once on a cluster that is too small and
            cannot grow.
    """
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    total = ray.cluster_resources()
    fits = all(total.get(kind, 0) >= amount * workers for kind, amount in bundle.items())
    placed = False
    if fits or _grows():
        # The group makes an autoscaler grow the cluster; it is removed to make room for the job itself.
        group = placement_group([bundle] * workers)
        placed = group.wait(timeout_s)
        remove_placement_group(group)
    if not placed:
        needs = ", ".join(f"{amount * workers:g} {kind}" for kind, amount in bundle.items())
        has = ", ".join(f"{total.get(kind, 0):g} {kind}" for kind in bundle)
        held = f", which others held for {timeout_s:g} s" if fits else ""
        raise UserError(field, workers, f"need {needs}, and the cluster has {has}{held}", remedy)


def _grows() -> bool:
    """Whether this cluster has an autoscaler, whose monitor then has reported."""
    from ray.experimental.internal_kv import _internal_kv_get

    return _internal_kv_get(b"__autoscaling_config") is not None


def _stop(signum: int, frame: FrameType | None) -> None:
    """End at once. An exception from here would be lost if Ray's C++ code is interrupted, and nothing needs cleaning
    up: what is incomplete in the store is generated again.
    """
    os.write(2, b"\nerror: stopped by SIGTERM; the same command resumes\n")
    os._exit(IncompleteError.exit_code)
