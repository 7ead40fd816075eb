"""The text half of an open_clip model as the text tower.

    flexiclip train RECIPE model.text.kind=open_clip model.text.name=ViT-B-32-quickgelu/openai tokenizer.kind=clip

Its output is the joint embedding of the open_clip model, including that model's projection. A name is NAME,
NAME/PRETRAINED (a tag or a file), hf-hub:ORG/REPO or local-dir:FOLDER, as open_clip defines them.

Shapes: B captions, L tokens, D the joint dimension of the open_clip model.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.files import read_json
from flexiclip.libraries import library_errors
from flexiclip.model_source import OPEN_CLIP_CONFIG, WEIGHTS, split_open_clip
from flexiclip.models.sizes import build_within, check_layers
from flexiclip.models.text.base import SUBFOLDER, TextTower
from flexiclip.models.text.open_clip_load import CONTEXT, ModelConfig, model_config, whole_number, with_weights

if TYPE_CHECKING:
    from open_clip.hf_model import HFTextEncoder
    from open_clip.transformer import TextTransformer

# open_clip builds whole models only. The image half is not used, so it is made as small as possible.
_STUB_IMAGE_TOWER = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64, "head_width": 64}


class OpenClipText(TextTower):
    """Wraps open_clip's text module. Causal CLIP transformers also accept fewer columns than they were built for."""

    def __init__(self, config: TextTowerConfig, text: TextTransformer | HFTextEncoder, model_cfg: ModelConfig) -> None:
        super().__init__()
        self.text, self.model_cfg = text, model_cfg
        self.width = model_cfg["embed_dim"]
        settings = model_cfg["text_cfg"]
        self.pad_id = config.pad_id if config.pad_id is not None else whole_number(settings, "pad_id", 0)
        self.trims = _is_causal_clip(text)
        limit = whole_number(settings, "context_length", CONTEXT)
        self.context_length = config.context_length or limit
        exact = not self.trims and not settings.get("hf_model_name")
        if self.context_length > limit or (exact and self.context_length != limit):
            raise UserError(
                f"tokenizer.context_length={self.context_length}: {config.name} was made for {limit} tokens; set it to that"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] int64 to joint embeddings [B, D], which are not normalised."""
        self.check_length(tokens)
        if self.trims:
            return _causal_forward(self.text, tokens)
        features: Tensor | tuple[Tensor, ...] = self.text(tokens)
        return features[0] if isinstance(features, tuple) else features  # CoCa returns its tokens as well

    def save_config(self, folder: Path) -> None:
        """Write open_clip's configuration, and that of a Hugging Face encoder inside it, into folder/text_tower."""
        target = folder / SUBFOLDER
        target.mkdir(parents=True, exist_ok=True)
        (target / OPEN_CLIP_CONFIG).write_text(json.dumps({"model_cfg": self.model_cfg}, indent=2), encoding="utf-8")
        if self.model_cfg["text_cfg"].get("hf_model_name"):
            self.text.config.save_pretrained(target)


def build_open_clip(config: TextTowerConfig, folder: Path | None, pretrained: bool) -> OpenClipText:
    """Build the text half of the model that `config.name` names, or the architecture in a model folder.

    In the second case the weights are loaded later. Raises UserError if open_clip does not know the model or its weights.
    """
    if folder is not None:
        return _from_folder(config, folder)
    where = f"model.text.name={config.name}"
    name, tag = split_open_clip(str(config.name))
    described = model_config(name, where)
    with library_errors(f"{where}: open_clip cannot build it"):
        model_cfg = _text_only(described)
        if pretrained and (tag or ":" in name):
            text = with_weights(name, tag, described, where)[0].text
        else:
            text = _text_without_weights(model_cfg)
    return OpenClipText(config, text, model_cfg)


def _text_only(described: ModelConfig) -> ModelConfig:
    """Return the settings of a model's text half, with an image half that is as small as possible."""
    kept = ModelConfig(embed_dim=described["embed_dim"], text_cfg=deepcopy(described["text_cfg"]))
    if "quick_gelu" in described:
        kept["quick_gelu"] = described["quick_gelu"]
    kept["vision_cfg"] = dict(_STUB_IMAGE_TOWER)
    return kept


def _from_folder(config: TextTowerConfig, folder: Path) -> OpenClipText:
    """Build the architecture that `save_config` wrote. It came with the model folder, so its values are not trusted."""
    path = folder / SUBFOLDER / OPEN_CLIP_CONFIG
    data = read_json(path).get("model_cfg")
    if not isinstance(data, dict) or not isinstance(data.get("text_cfg"), dict) or not isinstance(data.get("embed_dim"), int):
        raise UserError(f"{path}: not the configuration of a text tower: copy the model folder whole")
    model_cfg = _text_only(ModelConfig(**data))
    settings = model_cfg["text_cfg"]
    check_layers(settings.get("layers", 0), str(path))
    if settings.get("hf_model_name"):
        encoder = folder / SUBFOLDER / "config.json"
        described = read_json(encoder)
        if "auto_map" in described:
            raise UserError(f"{encoder}: the text tower asks for code of its own (auto_map), which is never run")
        check_layers(described.get("num_hidden_layers", 0), str(encoder))
        settings["hf_model_name"] = str(encoder.parent.absolute())
    with library_errors(f"{path}: open_clip cannot build the text tower"):
        text = build_within(lambda: _text_without_weights(model_cfg), folder / WEIGHTS, str(folder))
        return OpenClipText(config, text, model_cfg)


def _text_without_weights(model_cfg: ModelConfig) -> TextTransformer | HFTextEncoder:
    """Return the text half of a model with random weights; nothing is downloaded."""
    import open_clip

    settings = model_cfg["text_cfg"] | {"hf_model_pretrained": False}
    quick_gelu = model_cfg.get("quick_gelu", False)
    return open_clip.CustomTextCLIP(model_cfg["embed_dim"], model_cfg["vision_cfg"], settings, quick_gelu=quick_gelu).text


def _is_causal_clip(text: nn.Module) -> bool:
    """Return whether a module is a causal CLIP transformer that pools at the EOS, so that trailing padding has no effect."""
    from open_clip.transformer import TextTransformer

    if not isinstance(text, TextTransformer):
        return False
    return text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")


def _causal_forward(text: TextTransformer, tokens: Tensor) -> Tensor:
    """Compute open_clip's own forward pass with the causal mask cut to the columns of the batch.

    open_clip's own method only accepts the full context length.
    """
    from open_clip.transformer import text_global_pool

    length = tokens.shape[1]
    x = text.token_embedding(tokens) + text.positional_embedding[:length]
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    pooled: Tensor = text_global_pool(x, tokens, pool_type=text.pool_type, eos_token_id=text.eos_id)
    projection: nn.Linear | Tensor | None = text.text_projection
    if projection is None:
        return pooled
    return projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection
