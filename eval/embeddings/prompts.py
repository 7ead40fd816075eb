"""Texts: prompts from templates, and the embeddings of captions and classes, computed once and shared over the ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flexiclip.distributed import block, gather_rows, largest_block

from ..models.protocol import EvalModel
from .store import EmbeddingStore


def class_embeddings(embed_texts: Callable[[Sequence[str]], Tensor], prompts: Sequence[Sequence[str]]) -> Tensor:
    """Unit rows [C, D] float32: for each class the mean of its prompts' unit embeddings, normalised again, as CLIP does.

    prompts: of each class, at least one and as many as it has.
    """
    each = embed_texts([prompt for several in prompts for prompt in several]).split([len(several) for several in prompts])
    return F.normalize(torch.stack([rows.mean(0) for rows in each]), dim=-1)


def embed_texts(
    loaded: EvalModel, texts: Sequence[str], *, batch_size: int, device: torch.device, store: EmbeddingStore | None = None
) -> Tensor:
    """Unit rows [T, D] float32 in the order of `texts`, on every rank; each rank encodes its block, or all read the store's."""
    if store is None:
        return _encode_texts(loaded, texts, batch_size, device)
    tokens = torch.cat([loaded.tokenizer(list(texts[i : i + batch_size])) for i in range(0, len(texts), batch_size)])
    rows = store.read_texts(tokens)
    if rows is None:
        rows = _encode_texts(loaded, texts, batch_size, device)
        store.write_texts(tokens, rows)
    return rows.to(device)


def _encode_texts(loaded: EvalModel, texts: Sequence[str], batch_size: int, device: torch.device) -> Tensor:
    mine = [texts[i] for i in block(len(texts))]
    count = len(mine)
    mine += [texts[0]] * (largest_block(len(texts)) - count)  # as many passes on every rank; the extra rows are dropped
    parts = []
    with torch.no_grad():
        for start in range(0, len(mine), batch_size):
            tokens = loaded.tokenizer(mine[start : start + batch_size]).to(device)
            parts.append(unit_rows(loaded.model.encode_text(tokens)))
    return gather_rows(torch.cat(parts)[:count])


def unit_rows(z: Tensor) -> Tensor:
    """Unit rows in float32. A row with a NaN or an infinity becomes 0: tied with everything, it scores chance and not luck."""
    z = F.normalize(z.float(), dim=-1)
    return torch.where(z.isfinite().all(-1, keepdim=True), z, torch.zeros_like(z))
