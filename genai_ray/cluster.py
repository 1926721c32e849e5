"""The current Ray cluster: join it, and wait for the resources that a job needs."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Set
from types import FrameType

from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store

_ANSWER_S = 10.0  # for a connection to the head


def connect(store: Store) -> None:
    """Join the cluster that RAY_ADDRESS names (it is set in a submitted job), else start one in this process.

    SIGTERM then ends the process as incomplete; Ray would replace a handler that was set before.

    Raises:
        UserError: for an address without a cluster, or a cluster whose nodes do not share the store.
    """
    import ray
    from ray.exceptions import RayError

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        require_answer(address)
        dashboard = True if address == "local" else None
        try:
            ray.init(address=address, include_dashboard=dashboard, logging_level=logging.WARNING, log_to_driver=True)
        except (ConnectionError, RuntimeError, ValueError, RayError) as error:
            if address == "local":
                raise
            raise _no_cluster(address, f"must be the address of a Ray cluster that can be joined ({error})") from error
    if not store.shared:
        hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        require_shared(store, hosts | {socket.gethostname()}, grows=_grows())
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop)


def require_answer(address: str) -> None:
    """Check the form of RAY_ADDRESS, and that a cluster answers there: Ray itself would try for minutes.

    Raises:
        UserError: if not.
    """
    if address == "local":
        return
    match = re.fullmatch(r"(ray://)?(\[[^\[\]]+\]|[^/:\[\]]+):(\d+)", address)
    if address != "auto" and match is None:
        raise _no_cluster(address, "must be host:port of the head of a cluster, ray://host:port, auto or local")
    # Ray looks for a loopback address at that of the node, and for "auto" at the newest cluster of this machine.
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        target = (
            address.removeprefix("ray://") if match and match[1] else canonicalize_bootstrap_address_or_die(address)
        )
        _shake_hands(target)
    except (OSError, OverflowError, UnicodeError) as error:
        raise _no_cluster(address, f"must be the address of a cluster that runs ({error})") from None


def _shake_hands(target: str) -> None:
    """Raises:
    OSError: if no gRPC server answers at host:port.
    """
    import grpc

    host, _, port = target.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # only Ray has the keys to say more
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ANSWER_S)
        except grpc.FutureTimeoutError:
            raise ConnectionError(f"what listens at {target} is no Ray") from None


def require_shared(store: Store, hosts: Set[str], *, grows: bool) -> None:
    """Raises:
    UserError: if a store is a folder of one machine, and work may run on others. grows: the cluster has an autoscaler.
    """
    if store.shared or (len(hosts) == 1 and not grows):
        return
    nodes = "may grow to several machines" if grows else f"has {len(hosts)} machines"
    raise UserError(
        store.field,
        store.uri,
        f"is a folder, and the cluster {nodes}, each of which would write into its own",
        f"Use a bucket, as in {store.field}=s3://bucket/prefix; if every machine mounts this folder at this path, say "
        f"so by file:// before it, as in {store.field}=file:///shared/runs.",
    )


def _no_cluster(address: str, rule: str) -> UserError:
    remedy = "Give host:port as `ray status` knows it, or `unset RAY_ADDRESS` to work on this machine alone."
    if address.startswith("http"):
        remedy = (
            f"This is the address of the jobs API: `ray job submit --address {address} --working-dir . -- genai-ray …` "
            "runs the command there; `unset RAY_ADDRESS` makes it work on this machine alone."
        )
    return UserError("RAY_ADDRESS", address, rule, remedy)


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
