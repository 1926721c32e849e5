"""Checkpoints: everything that training needs to resume exactly.

A checkpoint is one object: a `torch.save` of tensors and plain values, then its SHA-256. It is named after the
samples seen, so saving again replaces it. Loading unpickles tensors only.
"""

import hashlib
import io
import pickle
import re
import warnings
from typing import Any

import torch

from genai_ray.errors import IncompleteError
from genai_ray.storage import Store

#: The state with the best score measured so far, if training measures.
BEST = "train/best.pt"

_NAME = re.compile(r"train/checkpoint-(\d{12})\.pt")
_DIGEST_BYTES = 32


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint could not be read; training resumes from an older one."""


def key(samples: int) -> str:
    return f"train/checkpoint-{samples:012d}.pt"


def pack(state: dict[str, Any]) -> bytes:
    """The bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> dict[str, Any]:
    """The state in a checkpoint.

    Raises:
        ValueError: if the bytes are not those that were saved.
    """
    body, digest = data[:-_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise ValueError(f"checksum differs ({len(data)} bytes)")
    return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)


def saved(store: Store) -> list[int]:
    """Samples seen by each checkpoint of a run, ascending."""
    matches = (_NAME.fullmatch(k) for k in store.list("train/checkpoint-"))
    return sorted(int(m[1]) for m in matches if m)


def latest(store: Store) -> dict[str, Any] | None:
    """The newest readable checkpoint; None if a run has none.

    Warns:
        DamagedCheckpointWarning: for each newer one that is damaged.

    Raises:
        IncompleteError: if there are checkpoints and none can be read.
    """
    candidates = saved(store)
    for samples in reversed(candidates):
        try:
            return unpack(store.read(key(samples)))
        except (ValueError, FileNotFoundError, pickle.UnpicklingError) as error:
            message = f"{store.uri}/{key(samples)} is damaged ({error}); going back to the one before"
            warnings.warn(message, DamagedCheckpointWarning, stacklevel=2)
    if candidates:
        raise IncompleteError(
            f"{store.uri}/train: none of {len(candidates)} checkpoints can be read; delete them to train from the start"
        )
    return None


def best(store: Store) -> dict[str, Any] | None:
    """The state with the best score measured; None if nothing was measured.

    Raises:
        IncompleteError: if it cannot be read.
    """
    try:
        return unpack(store.read(BEST))
    except FileNotFoundError:
        return None
    except (ValueError, pickle.UnpicklingError) as error:
        raise IncompleteError(
            f"{store.uri}/{BEST} is damaged ({error}); delete the newest checkpoints to train that part again, or "
            "export with train.keep=last as another run"
        ) from error


def prune(store: Store, keep: int) -> None:
    """Delete all but the newest checkpoints of a run."""
    for samples in saved(store)[:-keep]:
        store.delete(key(samples))
