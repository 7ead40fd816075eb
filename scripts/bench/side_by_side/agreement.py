"""Whether both sides compute the same: loss and gradients of one CLIP model, as open_clip's and as ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flexiclip.models.text.base import trim_padding
from flexiclip.train.objectives import Inputs
from side_by_side.pair import BETAS, SEQHW, Work, our_model, our_stepper, read_as_ours

TOLERANCE = 1e-4
"""Of the loss, and of a gradient relative to the largest element in its tensor, in float32."""


def their_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradients by our names: the importer is linear in the weights, so they go through it as the weights do."""
    import open_clip

    model.zero_grad(set_to_none=True)
    loss = open_clip.ClipLoss()(**model(work.normalized, work.tokens))
    loss.backward()
    mapped = read_as_ours(variant, {name: p.grad for name, p in model.named_parameters()}).state
    model.zero_grad(set_to_none=True)
    # Our class token is the sum of their token and its position, and each of the two has the gradient of the sum.
    return loss.item(), mapped | {"image_tower.cls": mapped["image_tower.cls"] / 2}


def our_gradients(variant: str, model: Any, work: Work) -> tuple[float, dict[str, Tensor]]:
    """The same of a step of ours: what its first moments say, (1 - beta1) g."""
    loaded = our_model(variant, model)
    stepper, tower = our_stepper(loaded, grad_clip=None), loaded.model.text_tower
    inputs = Inputs(work.pixels, trim_padding(work.tokens, tower.pad_id), torch.arange(len(work.tokens)))
    loss = stepper(inputs, SEQHW, step=0, lr=0.0).loss
    moments = {name.removeprefix("exp_avg/"): m for name, m in stepper.engine.moments() if name.startswith("exp_avg/")}
    moments["logit_scale"] = stepper.scalars.state()["exp_avg/0"]
    return loss, {name: moment / (1 - BETAS[0]) for name, moment in moments.items()}


def largest_difference(variant: str, model: Any, work: Work) -> tuple[float, float]:
    """(of the losses, of the gradients, each relative to its tensor's largest). Raises ValueError beyond TOLERANCE."""
    (their_loss, theirs), (our_loss, ours) = their_gradients(variant, model, work), our_gradients(variant, model, work)
    if theirs.keys() != ours.keys():
        raise ValueError(f"parameters of one side alone: {sorted(theirs.keys() ^ ours.keys())}")
    apart = {name: float((ours[name] - g).abs().max() / g.abs().max().clamp_min(1e-12)) for name, g in theirs.items()}
    worst = max(apart, key=lambda name: apart[name])
    if abs(their_loss - our_loss) > TOLERANCE or apart[worst] > TOLERANCE:
        raise ValueError(f"losses {our_loss} and {their_loss}; gradients of {worst} differ by {apart[worst]:.1e} of the largest")
    return abs(their_loss - our_loss), apart[worst]
