"""Computes the embeddings of images at every length and of texts, once for all ranks, and measures the speed.

Images are embedded in one pass: a batch is decoded and moved to the device once, and is encoded there at each length. On a GPU
the next batch is decoded meanwhile. On a CPU it is not, because decoding and encoding need the same cores: two thread pools that
share them take longer than one after the other (by 20 % and more on two cores), and neither speed could be measured.

Texts are shared over the ranks: each rank encodes a block of them, and all ranks get all embeddings.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from flexiclip_eval.data.images import ImageBlock
from flexiclip_eval.embeddings.store import EmbeddingStore, Encoded
from flexiclip_eval.models.protocol import EvalModel, Length
from PIL import Image
from torch import Tensor, nn

from flexiclip.data.images import normalize
from flexiclip.distributed import block, gather_objects, gather_rows, largest_block
from flexiclip.progress import Watch, silent, watch


@dataclass(frozen=True)
class Encoding:
    """A model with all that encodes images and texts: the lengths, the batch size, the device and the store of embeddings.

    Without a `store`, no embedding is read from or written to disk. With a `title`, which names the model and the data set, the
    progress of images and texts is shown. All ranks must call the methods.
    """

    loaded: EvalModel
    lengths: Sequence[Length]
    batch_size: int
    device: torch.device
    store: EmbeddingStore | None = None
    title: str | None = None

    def images(self, images: ImageBlock) -> dict[Length, Encoded]:
        """Return the embeddings of a data set by length, for all images that can be read, on every rank.

        The images are encoded in one pass, except at the lengths whose embeddings are in the store.
        """
        if self.store is None:
            return self._encode_images(images, self.lengths)
        return self.store.images(images, self.lengths, partial(self._encode_images, images))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of `texts` on every rank: unit rows [T, D] float32, in the order of `texts`.

        Each rank encodes a block of the texts, unless the store has the rows.
        """
        if self.store is None:
            return self._encode_texts(texts)
        parts = [texts[i : i + self.batch_size] for i in range(0, len(texts), self.batch_size)]
        tokens = torch.cat([self.loaded.tokenizer(list(part)) for part in parts])
        return self.store.texts(tokens, partial(self._encode_texts, texts)).to(self.device)

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        mine = [texts[i] for i in block(len(texts))]
        count = len(mine)
        mine += [texts[0]] * (largest_block(len(texts)) - count)  # all ranks run equally many passes; the extra rows are dropped
        batches = [mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)]
        seen: Watch[list[str]] = silent if self.title is None else watch(self.title, "texts")
        parts = []
        with torch.no_grad():
            for batch in seen(batches, len(mine)):
                tokens = self.loaded.tokenizer(batch).to(self.device)
                parts.append(unit_rows(self.loaded.model.encode_text(tokens)))
        return gather_rows(torch.cat(parts)[:count])

    def _encode_images(self, images: ImageBlock, lengths: Sequence[Length]) -> dict[Length, Encoded]:
        rows: dict[Length, list[Tensor]] = {length: [] for length in lengths}
        seconds: dict[Length, list[float]] = {length: [] for length in lengths}
        seen: Watch[Tensor] = silent if self.title is None else watch(self.title)
        sizes = []
        with torch.no_grad():
            batches = images.batches(images.batch_size(self.batch_size), ahead=1 if self.device.type == "cuda" else 0)
            for decoded in seen(batches, len(block(images.total))):
                batch = to_device(self.loaded, decoded, self.device)
                sizes.append(len(decoded))
                for length in lengths:
                    _wait(self.device)
                    start = time.perf_counter()
                    z = self.loaded.model.encode_image(batch, seqhw=length)
                    _wait(self.device)
                    seconds[length].append(time.perf_counter() - start)
                    rows[length].append(unit_rows(z)[: len(decoded)])
        speeds = gather_objects({length: _speed(sizes, seconds[length]) for length in lengths})
        totals = {length: _total([speed[length] for speed in speeds]) for length in lengths}
        return {length: Encoded(gather_rows(torch.cat(rows[length])), totals[length]) for length in lengths}


def class_embeddings(embed_texts: Callable[[Sequence[str]], Tensor], prompts: Sequence[Sequence[str]]) -> Tensor:
    """Return the embeddings of classes, unit rows [C, D] float32: the normalised mean of their prompts' embeddings, as in CLIP.

    embed_texts: texts -> unit rows [T, D]. prompts: those of each class, at least one; their number may differ between classes.
    """
    each = embed_texts([prompt for several in prompts for prompt in several]).split([len(several) for several in prompts])
    return unit_rows(torch.stack([rows.mean(0) for rows in each]))


def unit_rows(z: Tensor) -> Tensor:
    """Return the rows normalised to length 1, in float32: [N, D] -> [N, D].

    A row with a NaN or an infinity becomes 0. It is then tied with everything, so that it scores chance.
    """
    z = F.normalize(z.float(), dim=-1)
    return torch.where(z.isfinite().all(-1, keepdim=True), z, torch.zeros_like(z))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Set every module to evaluation mode, and restore the mode of each one afterwards (a locked tower stays in evaluation)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def to_device(loaded: EvalModel, decoded: Tensor, device: torch.device) -> Tensor:
    """Return decoded images [b, 3, H, W], uint8 or float32, as normalised float32 images on the device.

    An empty batch becomes one blank image, because all ranks must run the model.
    """
    if len(decoded) == 0:
        return loaded.transform(Image.new("RGB", (64, 64)))[None].to(device)
    batch = decoded.to(device)
    if loaded.config is None or batch.dtype != torch.uint8:
        return batch
    preprocess = loaded.config.model.preprocess
    return normalize(batch, preprocess.mean, preprocess.std)


def _wait(device: torch.device) -> None:
    """Wait for the GPU, because its kernels run asynchronously and would be missing from the measured time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _speed(sizes: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Return the images/s of the median batch, which a single slow batch does not change; None if there is only one batch.

    The first batch is left out, because it includes memory allocation and the choice of kernels.
    """
    speeds = [size / spent for size, spent in zip(sizes[1:], seconds[1:], strict=True) if size]
    return statistics.median(speeds) if speeds else None


def _total(speeds: Sequence[float | None]) -> float | None:
    """Return the sum of the ranks' speeds, because they work in parallel; None if one of them could not be measured."""
    return None if any(speed is None for speed in speeds) else sum(speed for speed in speeds if speed is not None)
