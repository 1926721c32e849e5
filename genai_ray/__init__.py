"""genai_ray: from real data to published synthetic data, with one spec.

All verbs in order are `genai_ray.pipeline.run(spec)`; each alone is a function of the module of its
name, such as `genai_ray.export.export(spec)`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genai_ray.errors import GateError, IncompleteError, UserError
    from genai_ray.modalities import load
    from genai_ray.spec import Spec
    from genai_ray.storage import Store

__version__ = "0.1.0"

__all__ = ["GateError", "IncompleteError", "Spec", "Store", "UserError", "load"]

_HOMES = {
    "GateError": "errors",
    "IncompleteError": "errors",
    "Spec": "spec",
    "Store": "storage",
    "UserError": "errors",
    "load": "modalities",
}


def __getattr__(name: str) -> Any:
    # Imported at first use, so that `genai-ray --help` does not wait for what it does not need.
    if name in _HOMES:
        return getattr(import_module(f"genai_ray.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'genai_ray' has no attribute {name!r}")
