"""FlexiCLIP, the two-tower model: an image tower, a text tower, their projections and the two scalars of the loss.

Each tower may be locked independently of the other (LiT, arXiv 2111.07991). A tower that is locked as a whole has no
gradients, stays in eval mode and runs under no_grad. Its projection, if it has one, still trains.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flexiclip.config import ImageTowerConfig, ModelConfig, TextTowerConfig
from flexiclip.config.schema import Size
from flexiclip.errors import UserError
from flexiclip.models.flexivit import FlexiViT
from flexiclip.models.locks import Lock, lock_of
from flexiclip.models.text.base import TextTower


class FlexiCLIP(nn.Module):
    """A FlexiViT image tower and a text tower that map images and captions into a joint space of `embed_dim` dimensions.

    `logit_scale` [1] holds the logarithm of the scale. `logit_bias` [1] is None unless the model is made for the sigmoid
    loss. Both belong to this module and not to a tower, so an engine that shards the towers never sees them.

    If `config.text` is None, the model has no text half: there are no parameters for it, and using it raises UserError.
    Such a model may be a classifier, whose `encode_image` returns logits.
    """

    def __init__(self, config: ModelConfig, text_tower: TextTower) -> None:
        super().__init__()
        self.config = config
        self.image_tower = FlexiViT(config.image)
        self.text_tower = text_tower
        self.image_projection = _projection(config.image, self.image_tower.width, config.embed_dim, "image")
        if config.classes is not None:
            _init_head(self.image_projection, config.head_bias_init)
        separate = config.image.exits if config.image.exit_heads == "separate" else ()
        self.exit_projections = nn.ModuleList(
            _projection(config.image, self.image_tower.width, config.embed_dim, "image") for _ in separate
        )
        self.text_projection: nn.Module = nn.Identity()
        if config.text is not None:
            self.text_projection = _projection(config.text, text_tower.width, config.embed_dim, "text")
        self.logit_scale = nn.Parameter(torch.tensor([math.log(config.logit_scale_init)]))
        bias = config.logit_bias_init
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))
        self._locks = self._find_locks()
        for lock in self._locks:
            lock.freeze()
        self.train()

    def forward(self, images: Tensor, tokens: Tensor, seqhw: Size | None = None) -> tuple[Tensor, Tensor]:
        """Return unit embeddings of images [B, 3, H, W] and tokens [B, L] as a pair (zimg, ztxt), both [B, embed_dim]."""
        return self.encode_image(images, seqhw, normalize=True), self.encode_text(tokens, normalize=True)

    def encode_image(
        self, images: Tensor, seqhw: Size | None = None, normalize: bool = False, *, patch_size: Size | None = None
    ) -> Tensor:
        """Embed images [B, 3, H, W], normalised as `transform` does it, and return [B, embed_dim].

        The length is given as the grid side `seqhw` or as `patch_size` in pixels, at most one of them; the default is the
        tower's own. `normalize` scales the embeddings to unit length in float32.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.image.frozen):
            features = self.image_tower(images, seqhw, patch_size)
        return self.project_image(features, normalize)

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """Embed tokens [B, L] int64, as `tokenizer` makes them, and return [B, embed_dim].

        `normalize` scales the embeddings to unit length in float32. Raises UserError if the model has no text half.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.text_frozen):
            features = self.text_tower(tokens)
        return self.project_text(features, normalize)

    def project_image(self, features: Tensor, normalize: bool = True) -> Tensor:
        """Project pooled features of the image tower, [B, width], into the joint space, [B, embed_dim]."""
        return _unit(self.image_projection(features), normalize)

    def project_exits(self, features: Tensor) -> list[Tensor]:
        """Project the features of every exit, [E, B, width], to unit embeddings, [B, embed_dim] for each exit."""
        exits = [self.exit_projection(depth) for depth in self.config.image.exits]
        return [_unit(project(z), True) for project, z in zip([*exits, self.image_projection], features, strict=True)]

    def exit_projection(self, depth: int) -> nn.Module:
        """Return the projection of the exit after block `depth`: the tower's own, or a separate one with exit_heads=separate."""
        if self.config.image.exit_heads == "shared":
            return self.image_projection
        return self.exit_projections[self.config.image.exits.index(depth)]

    def project_text(self, features: Tensor, normalize: bool = True) -> Tensor:
        """Project pooled features of the text tower, [B, width], into the joint space, [B, embed_dim]."""
        return _unit(self.text_projection(features), normalize)

    def _find_locks(self) -> list[Lock]:
        locks = []
        if self.config.image.lock:
            locks.append(lock_of(self.image_tower, self.config.image, "model.image"))
        if self.config.text is not None and self.config.text.lock:
            locks.append(lock_of(self.text_tower, self.config.text, "model.text"))
        return locks

    def scalars(self) -> list[nn.Parameter]:
        """Return the parameters of the loss: logit_scale and, if the model has one, logit_bias."""
        return [p for p in (self.logit_scale, self.logit_bias) if p is not None]

    def train(self, mode: bool = True) -> FlexiCLIP:
        """Set the mode as nn.Module.train does, except that locked parts stay in eval mode."""
        super().train(mode)
        for lock in self._locks:
            lock.set_mode(mode)
        return self


def _projection(section: ImageTowerConfig | TextTowerConfig, width: int, embed_dim: int, name: str) -> nn.Module:
    """Return a linear projection into the joint space, or the identity. Raises UserError if the identity does not fit."""
    if section.projection == "linear":
        layer = nn.Linear(width, embed_dim, bias=section.projection_bias)
        nn.init.normal_(layer.weight, std=width**-0.5)
        if section.projection_bias:
            nn.init.zeros_(layer.bias)
        return layer
    if width != embed_dim:
        raise UserError(
            f"model.{name}.projection=none needs model.embed_dim={embed_dim} to equal the {name} tower's width {width}"
        )
    return nn.Identity()


def _init_head(head: nn.Module, bias: float) -> None:
    """Initialise a classifier's head so that it favours no class at first (big_vision's zero head)."""
    for name, p in head.named_parameters():
        nn.init.constant_(p, bias if name == "bias" else 0.0)


def _unit(z: Tensor, normalize: bool) -> Tensor:
    return F.normalize(z.float(), dim=-1) if normalize else z
