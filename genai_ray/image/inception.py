"""Features of the Inception network that published figures on natural images are measured with.

The network of Szegedy et al. 2015 (arXiv 1512.00567) as TensorFlow released it on 2015-12-05 and Heusel et al. 2017
used it for FID: 1,008 outputs, and three ways of pooling that torchvision's own network does not share. Its weights are
never downloaded here: they are given as a file, which must be the published
`weights-inception-2015-12-05-6726825d.pth`.
"""

import hashlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from genai_ray.errors import UserError, store_is_of
from genai_ray.metrics.distances import blocks
from genai_ray.metrics.fidelity import Moments, frechet_from_moments
from genai_ray.storage import Store

DIGEST = "6726825d"  # how the SHA-256 of the file begins, as its name says
DIMENSIONS = 2_048
_SIZE, _BATCH = 299, 64
_ORIGIN = "Get weights-inception-2015-12-05-6726825d.pth (release v0.2.0 of torch-fidelity) and give its path."


def read_weights(uri: str) -> bytes:
    """The file of weights from a path or an s3:// URI. Raises UserError if it is missing, or another file."""
    folder, _, name = uri.rpartition("/")
    try:
        with store_is_of("evaluate.inception", uri):
            data = Store(folder or ("/" if uri.startswith("/") else ".")).read(name)
    except OSError as error:
        raise UserError("evaluate.inception", uri, f"must be a file ({error})", _ORIGIN) from None
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(DIGEST):
        rule = f"must have a SHA-256 that begins with {DIGEST}, and has {digest[:8]}"
        raise UserError("evaluate.inception", uri, rule, _ORIGIN)
    return data


class Images(Protocol):
    """Images (n, H, W, C), in memory or read on access."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> NDArray[np.uint8]: ...


class Inception:
    """Images -> the 2,048 values of the last pooling layer."""

    def __init__(self, weights: bytes, device: str):
        self.device = torch.device(device)
        self.network = build()
        self.network.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
        self.network.fc = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        self.network.eval().requires_grad_(False).to(self.device)

    @torch.no_grad()
    def features(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, C) with one or three channels -> (n, 2048)."""
        pixels = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).float()
        pixels = resize(pixels.expand(-1, 3, -1, -1), _SIZE)
        return self.network((pixels - 128) / 128).cpu().numpy()

    def moments(self, images: Images) -> Moments:
        """Of the features of any number of images, in memory for one batch."""
        total = Moments(0, np.zeros(DIMENSIONS), np.zeros((DIMENSIONS, DIMENSIONS)))
        for rows in blocks(len(images), _BATCH):
            total += Moments.of(self.features(images[rows]))
        return total

    def distances(self, train: Images, generated: Images, holdout: Images) -> tuple[float, float]:
        """FID of generated images and of held-out real ones, each against the training set."""
        reference, fake, real = (self.moments(images) for images in (train, generated, holdout))
        return frechet_from_moments(reference, fake), frechet_from_moments(reference, real)


def build() -> nn.Module:
    """The network with random weights."""
    from torchvision.models import inception_v3

    network: Any = inception_v3(num_classes=1008, aux_logits=False, transform_input=False, init_weights=False)
    # Means of three by three pixels, without counting those beyond the border.
    mean_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        _pool_by(getattr(network, f"Mixed_{name}"), mean_pool)
    _pool_by(network.Mixed_7c, partial(F.max_pool2d, kernel_size=3, stride=1, padding=1))
    return network


def _pool_by(block: Any, pool: Callable[[Tensor], Tensor]) -> None:
    """Replace the pooling at the start of the last branch of a block."""
    branches = block._forward
    block._forward = lambda x: [*branches(x)[:-1], block.branch_pool(pool(x))]


def resize(x: Tensor, size: int) -> Tensor:
    """Bilinear as in the first TensorFlow: output pixel i is input position i * (H / size).

    (n, C, H, W) -> (n, C, size, size). No other library call aligns pixels this way.
    """
    for axis in (2, 3):
        length = x.shape[axis]
        position = torch.arange(size, device=x.device) * (length / size)
        low = position.long()
        high = (low + 1).clamp(max=length - 1)
        shape = [1, 1, 1, 1]
        shape[axis] = size
        part = (position - low).view(shape)
        x = x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part
    return x
