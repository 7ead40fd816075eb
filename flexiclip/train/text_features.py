"""Features of the training captions from a frozen text tower (a locked one or a teacher's), computed once before the first step.

The captions are sorted and encoded in fixed batches, which depend on nothing else. So a run that is resumed, or that has another
number of ranks, gets the same numbers. The features are kept in the run folder, in a file named after a hash of everything that
decides them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from flexiclip.data.batch import caption_id
from flexiclip.files import save_tensors, writing
from flexiclip.model_folder import LoadedModel
from flexiclip.schedules import KEPT_TEXT_FEATURES
from flexiclip.train.ranks import RunContext
from flexiclip.train.towers import TextFeatures

BATCH = 256


def compute_text_features(loaded: LoadedModel, captions: Iterable[str], context: RunContext) -> TextFeatures | None:
    """Return the features of every distinct caption. Collective.

    Returns None if they would take more than KEPT_TEXT_FEATURES bytes, or if the ranks read different captions. Raises UserError
    if the run folder cannot be written.
    """
    ranks = context.ranks
    tower = loaded.model.text_tower
    limit = KEPT_TEXT_FEATURES // (4 * tower.width)
    distinct: dict[int, str] = {}
    for caption in captions:
        distinct[caption_id(caption)] = caption
        if len(distinct) > limit:
            ranks.say(f"more than {limit} distinct captions: the frozen text tower runs in every step")
            return None
    ids = torch.tensor(sorted(distinct), dtype=torch.int64)
    if len(set(ranks.collect([_digest(ids)]))) > 1:
        ranks.say("the ranks could not read the same captions: the frozen text tower runs in every step")
        return None
    path = context.folder / f"text_features-{_key(ids, loaded, context.bf16)}.safetensors"
    if not ranks.agree(not path.is_file())[0]:  # either all ranks read the file, or all compute
        return TextFeatures(ids, load_file(path)["rows"])
    ranks.say(f"computing a frozen text tower's features of {len(ids)} captions")
    rows = _encode(loaded, [distinct[i] for i in ids.tolist()], context)
    ranks.first_result(ranks.main, lambda: _keep(rows, path))
    return TextFeatures(ids, rows)


def _keep(rows: Tensor, path: Path) -> None:
    """Write the features to a file. If this fails, leave nothing behind; raises UserError if the run folder is full."""
    aside = path.with_suffix(".tmp")
    try:
        with writing(f"run_dir={path.parent}"):
            save_tensors({"rows": rows}, aside)
            aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


@torch.no_grad()
def _encode(loaded: LoadedModel, captions: list[str], context: RunContext) -> Tensor:
    """Return the features [M, width] float32 on the CPU, in the order of the captions.

    Captions of similar length are encoded together, and the batches are distributed over the ranks.
    """
    tower, ranks = loaded.model.text_tower, context.ranks
    tokenizer = tower.trimming(loaded.tokenizer)
    order = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    parts: list[tuple[int, Tensor]] = []
    for number in range(ranks.rank, len(batches), ranks.world):
        tokens = tokenizer([captions[i] for i in batches[number]])
        with context.autocast():
            parts.append((number, tower(tokens.to(context.device)).float().cpu()))
    rows = torch.empty(len(captions), tower.width)
    for number, part in ranks.collect(parts):
        rows[torch.tensor(batches[number])] = part
    return rows


def _digest(ids: Tensor) -> str:
    return hashlib.sha256(ids.numpy().tobytes()).hexdigest()


def _key(ids: Tensor, loaded: LoadedModel, bf16: bool) -> str:
    """Return a hash of all that decides the features: captions, tokenizer, the tower's settings and weights, and precision."""
    said = [_digest(ids), loaded.tokenizer.fingerprint(), repr(loaded.config.model.text), "bf16" if bf16 else "fp32"]
    digest = hashlib.sha256("\n".join(said).encode())
    for name, tensor in sorted(loaded.model.text_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
