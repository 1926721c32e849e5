"""One Ray cluster and one S3 server for the whole session, and one small trained run to copy."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from genai_ray import local, modalities
from genai_ray.dataset.plan import Plan
from genai_ray.image.samples import ImageSamples
from genai_ray.image.source import Arrays, in_memory, load, load_images
from genai_ray.image.spec import ImageDataSpec, ImageRun
from genai_ray.storage import Store

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def needs_shared(folder: str) -> pytest.MarkDecorator:
    """Skip where the real data set is not beside the checkout."""
    there = (SHARED_DATA / folder).exists()
    return pytest.mark.skipif(not there, reason=f"needs ../shared/data/{folder}")


@pytest.fixture(scope="session")
def s3_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[local.Stack]:
    """A live S3 server, with endpoint and keys in the environment of this process."""
    folder = tmp_path_factory.mktemp("stack")
    with local.running(folder, with_ray=False) as stack:
        aws = {k: v for k, v in stack.environment.items() if k.startswith("AWS_")}
        before = {k: os.environ.get(k) for k in aws}
        os.environ.update(aws)
        yield stack
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def s3_uri(s3_stack: local.Stack) -> str:
    """An empty place of its own in the S3 server."""
    return f"s3://{local.BUCKET}/{uuid4().hex}"


@pytest.fixture(scope="session")
def ray_cluster(s3_stack: local.Stack) -> Iterator[None]:
    """The session's Ray cluster; its workers inherit the keys of the S3 server."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
    yield
    ray.shutdown()


def kill_when(seen: Callable[[], object], code: str) -> None:
    """Run code in a Python of its own and SIGKILL it as soon as something is seen."""
    code = f"import sys; sys.path.insert(0, 'tests')\nfrom conftest import small_spec\n{code}"
    root = Path(__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not seen():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL


#: A conditional DCGAN on digits that trains in a second, in this process.
SMALL = [
    "name=small",
    "model.width=8",
    "model.latent=16",
    "train.workers=0",
    "train.samples=1280",
    "train.global_batch=64",
    "train.checkpoint_every=320",
    "generate.samples=1000",
    "generate.shard_rows=256",
    "generate.workers=1",
    "evaluate.gates={}",
]


def small_spec(store: Path | str, *overrides: str) -> ImageRun:
    """SMALL in a store, with some values changed."""
    root = Path(__file__).resolve().parents[1]
    dense = "model.preset=mlp_gan" in overrides  # which has no width
    small = [option for option in SMALL if not (dense and option.startswith("model.width"))]
    spec = modalities.load(root / "jobs" / "specs" / "digits.yaml", [f"store={store}", *small, *overrides])
    assert isinstance(spec, ImageRun)
    return spec


def images_of(made: Plan) -> ImageSamples:
    """The images of a plan, by index."""
    samples = made.samples()
    assert isinstance(samples, ImageSamples)
    return samples


def load_resident(spec: ImageDataSpec, *, conditional: bool = False) -> Arrays:
    """The images of a source as arrays, by way of a spool where there is one."""
    with tempfile.TemporaryDirectory() as run:
        return in_memory(load_images(spec, Store(run), conditional=conditional))


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, trained and exported, with the feature extractor that evaluates it."""
    from genai_ray.export import export
    from genai_ray.image.evaluate import feature_extractor
    from genai_ray.training.train import train

    store = tmp_path_factory.mktemp("trained")
    spec = small_spec(store)
    data = load(spec)
    train(spec, data)
    export(spec)
    feature_extractor(Store(spec.run_uri), in_memory(data))
    return store


@pytest.fixture
def run_store(trained_store: Path, tmp_path: Path) -> Path:
    """A store of its own with the small run trained and exported."""
    return Path(shutil.copytree(trained_store, tmp_path / "store"))
