"""Image embeddings at every length from one pass over the images.

A batch is decoded and moved to the device once, then encoded at each seqhw while it is resident there. The next one is decoded
meanwhile on a GPU alone: on a CPU decoding and encoding want the same cores, and two pools of threads that share them take longer
(by 20 % and more on two cores) than one after the other, besides that neither speed could be measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from torch import Tensor, nn

from flexiclip.data.images import normalize
from flexiclip.distributed import block, gather_objects, gather_rows

from ..data.images import ImageBlock
from ..models.protocol import EvalModel, Length
from ..progress import Watch, silent
from .prompts import unit_rows


def embed_images(
    loaded: EvalModel,
    images: ImageBlock,
    lengths: Sequence[Length],
    *,
    batch_size: int,
    device: torch.device,
    watch: Watch = silent,
) -> tuple[dict[Length, Tensor], dict[Length, float | None]]:
    """(unit rows [N, D] float32 of the whole data set by length, images/s over all ranks by length), on every rank."""
    rows: dict[Length, list[Tensor]] = {length: [] for length in lengths}
    seconds: dict[Length, list[float]] = {length: [] for length in lengths}
    sizes = []
    with torch.no_grad():
        batches = images.batches(images.batch_size(batch_size), ahead=1 if device.type == "cuda" else 0)
        for decoded in watch(batches, len(block(images.total))):
            batch = to_device(loaded, decoded, device)
            sizes.append(len(decoded))
            for length in lengths:
                _wait(device)
                start = time.perf_counter()
                z = loaded.model.encode_image(batch, seqhw=length)
                _wait(device)
                seconds[length].append(time.perf_counter() - start)
                rows[length].append(unit_rows(z)[: len(decoded)])
    speeds = gather_objects({length: _speed(sizes, seconds[length]) for length in lengths})
    embeddings = {length: gather_rows(torch.cat(parts)) for length, parts in rows.items()}
    return embeddings, {length: _total([speed[length] for speed in speeds]) for length in lengths}


def embedding_width(loaded: EvalModel, length: Length, device: torch.device) -> int:
    """Columns of the image embeddings, from a blank image."""
    with torch.no_grad():
        return int(loaded.model.encode_image(to_device(loaded, torch.empty(0), device), seqhw=length).shape[1])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for every module, and each module's own mode back afterwards (a locked tower stays in evaluation)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def to_device(loaded: EvalModel, decoded: Tensor, device: torch.device) -> Tensor:
    """Normalised float32 images on the device. An empty batch becomes one blank image, because all ranks must run the model."""
    if len(decoded) == 0:
        return loaded.transform(Image.new("RGB", (64, 64)))[None].to(device)
    batch = decoded.to(device)
    if loaded.config is None or batch.dtype != torch.uint8:
        return batch
    preprocess = loaded.config.model.preprocess
    return normalize(batch, preprocess.mean, preprocess.std)


def _wait(device: torch.device) -> None:
    """Kernels on a GPU run behind the caller's back; a clock must wait for them."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _speed(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Images/s of the median batch, which a hiccup of the machine does not move; None when there is but one batch.

    The first batch is left out: it pays for allocation and the choice of kernels.
    """
    speeds = [size / spent for size, spent in zip(sizes[1:], seconds[1:], strict=True) if size]
    return statistics.median(speeds) if speeds else None


def _total(speeds: Sequence[float | None]) -> float | None:
    """Ranks work side by side: their speeds add up. None when one of them could not be measured."""
    return None if any(speed is None for speed in speeds) else sum(speed for speed in speeds if speed is not None)
