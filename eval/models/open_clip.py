"""Models of open_clip as the harness takes them: `open_clip:NAME[/PRETRAINED]`, scored at their one length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from flexiclip.errors import UserError

PREFIX = "open_clip:"


@dataclass
class OpenClipModel:
    """See model.EvalModel."""

    model: nn.Module
    transform: Callable[[Image], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    config: None = None


class _Encoders(nn.Module):
    """open_clip's two encoders with our arguments."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def encode_image(self, images: Tensor, seqhw: None = None, normalize: bool = False) -> Tensor:
        """images [B, 3, H, W] -> [B, D]. The patch size is fixed, so seqhw must be None."""
        if seqhw is not None:
            raise UserError(f"seqhw={seqhw}: an open_clip model has one fixed length")
        return self.inner.encode_image(images, normalize=normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """tokens [B, L] -> [B, D]."""
        return self.inner.encode_text(tokens, normalize=normalize)


def load_open_clip(source: str, device: str | torch.device) -> OpenClipModel:
    """Open `open_clip:NAME[/PRETRAINED]`, PRETRAINED a tag or a file; random weights without one. Raises UserError."""
    import open_clip

    name, _, pretrained = source.removeprefix(PREFIX).partition("/")
    if name not in open_clip.list_models():
        raise UserError(f"{source}: open_clip knows no model {name!r}; see open_clip.list_models()")
    try:
        model, _, transform = open_clip.create_model_and_transforms(name, pretrained=pretrained or None, device=device)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{source}: open_clip cannot load it: {error}") from None
    return OpenClipModel(_Encoders(model).eval(), transform, open_clip.get_tokenizer(name))
