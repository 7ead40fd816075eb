"""The text half of an open_clip model as the text tower.

    flexiclip train RECIPE model.text.kind=open_clip model.text.name=ViT-B-32-quickgelu/openai tokenizer.kind=clip

Its output is the joint embedding of the open_clip model, including that model's projection. A name is NAME,
NAME/PRETRAINED (a tag or a file), hf-hub:ORG/REPO or local-dir:FOLDER, as open_clip defines them.

Shapes: B captions, L tokens, D the joint dimension of the open_clip model.
"""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.files import short_reason
from flexiclip.models.sizes import build_within, check_layers
from flexiclip.models.text.base import SUBFOLDER, WEIGHTS, TextTower
from flexiclip.models.text.open_clip_load import with_weights

CONFIG_FILE = "open_clip_config.json"
# open_clip builds whole models only. The image half is not used, so it is made as small as possible.
_STUB_IMAGE_TOWER = {"image_size": 32, "patch_size": 32, "layers": 1, "width": 64, "head_width": 64}


class OpenClipText(TextTower):
    """Wraps open_clip's text module. Causal CLIP transformers also accept fewer columns than they were built for."""

    def __init__(self, config: TextTowerConfig, text: nn.Module, model_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.text, self.model_cfg = text, model_cfg
        self.width = model_cfg["embed_dim"]
        settings = model_cfg["text_cfg"]
        self.pad_id = config.pad_id if config.pad_id is not None else settings.get("pad_id", 0)
        self.trims = _is_causal_clip(text)
        limit = settings.get("context_length", 77)
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
        features = self.text(tokens)
        return cast(Tensor, features[0] if isinstance(features, tuple) else features)  # CoCa returns its tokens as well

    def save_config(self, folder: Path) -> None:
        """Write open_clip's configuration, and that of a Hugging Face encoder inside it, into folder/text_tower."""
        target = folder / SUBFOLDER
        target.mkdir(parents=True, exist_ok=True)
        (target / CONFIG_FILE).write_text(json.dumps({"model_cfg": self.model_cfg}, indent=2), encoding="utf-8")
        if self.model_cfg["text_cfg"].get("hf_model_name"):
            text: Any = self.text
            text.config.save_pretrained(target)


def build_open_clip(config: TextTowerConfig, folder: Path | None, pretrained: bool) -> OpenClipText:
    """Build the text half of the model that `config.name` names, or the architecture in a model folder.

    In the second case the weights are loaded later. Raises UserError if open_clip does not know the model or its weights.
    """
    if folder is not None:
        return _from_folder(config, folder)
    import open_clip

    refuse_foreign_code()
    name, tag = _split(str(config.name))
    try:
        described = open_clip.get_model_config(name)
        if described is None:
            raise UserError(f"model.text.name={config.name}: open_clip knows no model {name!r}; see open_clip.list_models()")
        model_cfg = _text_only(described)
        if pretrained and (tag or ":" in name):
            text = with_weights(name, tag, described, f"model.text.name={config.name}")[0].text
        else:
            text = _text_without_weights(model_cfg)
    except UserError:
        raise
    except Exception as error:  # open_clip checks little of what it reads, so errors may be of any type
        raise UserError(f"model.text.name={config.name}: open_clip cannot build it: {short_reason(error)}") from None
    return OpenClipText(config, text, model_cfg)


def refuse_foreign_code() -> None:
    """Make transformers refuse, in this process, to run code that comes with a model, where it would ask on the terminal.

    It asks if its caller does not set trust_remote_code, and open_clip does not set it.
    """
    with suppress(ImportError):
        from transformers import dynamic_module_utils

        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # with no time for an answer it raises ValueError at once


def _split(name: str) -> tuple[str, str | None]:
    """Split NAME[/PRETRAINED]. A name with a scheme (hf-hub:, local-dir:) has its own weights and is not split."""
    if name.startswith(("hf-hub:", "local-dir:")):
        return name, None
    base, _, tag = name.partition("/")
    return base, tag or None


def _text_only(described: dict[str, Any]) -> dict[str, Any]:
    """The settings of a model's text half, with an image half that is as small as possible."""
    kept = {key: deepcopy(described[key]) for key in ("embed_dim", "text_cfg", "quick_gelu") if key in described}
    return kept | {"vision_cfg": dict(_STUB_IMAGE_TOWER)}


def _from_folder(config: TextTowerConfig, folder: Path) -> OpenClipText:
    """Build the architecture that `save_config` wrote. It came with the model folder, so its values are not trusted."""
    path = folder / SUBFOLDER / CONFIG_FILE
    model_cfg = _text_only(_read_object(path, "model_cfg"))
    settings = model_cfg.get("text_cfg")
    if not isinstance(settings, dict):
        raise UserError(f"{path}: no text_cfg in it; copy the model folder whole")
    check_layers(settings.get("layers", 0), str(path))
    if settings.get("hf_model_name"):
        encoder = folder / SUBFOLDER / "config.json"
        described = _read_object(encoder)
        if "auto_map" in described:
            raise UserError(f"{encoder}: the text tower asks for code of its own (auto_map), which is never run")
        check_layers(described.get("num_hidden_layers", 0), str(encoder))
        settings["hf_model_name"] = str(encoder.parent.absolute())
    try:
        text = build_within(lambda: _text_without_weights(model_cfg), folder / WEIGHTS, str(folder))
        return OpenClipText(config, text, model_cfg)
    except UserError:
        raise
    except Exception as error:  # open_clip checks few of its settings, so wrong ones raise errors of any type
        raise UserError(f"{path}: open_clip cannot build the text tower: {short_reason(error)}") from None


def _read_object(path: Path, key: str | None = None) -> dict[str, Any]:
    """Read a JSON object, or the object under `key` in it. Raises UserError if there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        data = data if key is None else data[key]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}: no configuration of the text tower ({type(error).__name__}: {short_reason(error)}); "
            "copy the model folder whole"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: no configuration of the text tower; copy the model folder whole")
    return data


def _text_without_weights(model_cfg: dict[str, Any]) -> nn.Module:
    """The text half of a model with random weights; nothing is downloaded."""
    import open_clip

    settings = model_cfg["text_cfg"] | {"hf_model_pretrained": False}
    quick_gelu = model_cfg.get("quick_gelu", False)
    model = open_clip.CustomTextCLIP(model_cfg["embed_dim"], dict(model_cfg["vision_cfg"]), settings, quick_gelu=quick_gelu)
    return cast(nn.Module, model.text)


def _is_causal_clip(text: nn.Module) -> bool:
    """Whether the module is a causal CLIP transformer that pools at the EOS, so that trailing padding has no effect."""
    from open_clip.transformer import TextTransformer

    if not isinstance(text, TextTransformer):
        return False
    return text.attn_mask is not None and text.cls_emb is None and text.pool_type in ("argmax", "eos")


def _causal_forward(text: Any, tokens: Tensor) -> Tensor:
    """Compute open_clip's own forward pass with the causal mask cut to the columns of the batch.

    open_clip's own method only accepts the full context length.
    """
    from open_clip.transformer import text_global_pool

    length = tokens.shape[1]
    x = text.token_embedding(tokens) + text.positional_embedding[:length]
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask[:length, :length]))
    pooled = text_global_pool(x, tokens, pool_type=text.pool_type, eos_token_id=text.eos_id)
    if text.text_projection is None:
        return cast(Tensor, pooled)
    projection = text.text_projection
    return cast(Tensor, projection(pooled) if isinstance(projection, nn.Linear) else pooled @ projection)
