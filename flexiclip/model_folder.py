"""Model folders: weights, image transform, tokenizer and config are built, saved and loaded together.

    MODEL/model.safetensors   all parameters in float32, including frozen ones
    MODEL/config.yaml         the resolved recipe and, under `provenance`, what the folder is and where it comes from
    MODEL/tokenizer/          the tokenizer's files, whose hash is in config.yaml
    MODEL/text_tower/         the architecture of a Hugging Face or open_clip text tower

The folder of an image tower alone has `model.text: null` and no tokenizer. Using the text half of such a model raises
UserError.

Loading needs the folder only: no network, no recipe and no pickle.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flexiclip.config import Config, from_dict, to_dict
from flexiclip.config.schema import pair
from flexiclip.config.yaml_text import Dumper, read_yaml
from flexiclip.data.images import EvalTransform
from flexiclip.data.samples import class_names
from flexiclip.data.tokenizers import AbsentTokenizer, Tokenizer, build_tokenizer, load_tokenizer
from flexiclip.errors import UserError
from flexiclip.files import replace_folder, save_tensors
from flexiclip.model_source import CONFIG, LOADED, WEIGHTS, Accepted, Kind, ModelSource, is_model_folder, parse_model
from flexiclip.models.clip import FlexiCLIP
from flexiclip.models.exits import leave_after
from flexiclip.models.flexivit import own_patch, rebase
from flexiclip.models.same_function import check_architecture, check_inputs, check_settings
from flexiclip.models.sizes import check_sizes
from flexiclip.models.text import build_text_tower
from flexiclip.tensor_files import beneath, misfits

FORMAT = 1
_INIT = Accepted((Kind.MODEL,))


@dataclass
class LoadedModel:
    """A model with everything that is needed to use it. `load_model` returns the model in eval mode."""

    model: FlexiCLIP
    transform: EvalTransform
    tokenizer: Tokenizer
    config: Config
    provenance: dict[str, Any] = field(default_factory=dict)


def build_model(config: Config, tokenizer: Tokenizer | None = None) -> LoadedModel:
    """Build a new model from a recipe, with the same weights on every rank.

    The weights are random with the recipe's `seed`, except for those that `init` and `name` refer to. Without
    `tokenizer`, the recipe's tokenizer is built. Raises UserError if a part cannot be built or does not fit.
    """
    if tokenizer is None:
        alone = config.model.text is None
        tokenizer = AbsentTokenizer(config.tokenizer, {}) if alone else build_tokenizer(config.tokenizer)
    config = fill_from_tokenizer(fill_classes(config), tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = FlexiCLIP(config.model, build_text_tower(config.model.text))
    notes = []
    for half in ("image", "text"):
        section = getattr(config.model, half)
        if section is not None and section.init is not None:
            folder = parse_model(section.init, _INIT, f"model.{half}.init").path
            notes += _init_half(model, config, half, folder, tokenizer)
    return LoadedModel(model, _transform(config), tokenizer, config, {"init_notes": notes} if notes else {})


def model_from_weights(
    config: Config, tokenizer: Tokenizer, weights: dict[str, Tensor], where: str, folder: Path | None = None
) -> LoadedModel:
    """Build a model in eval mode whose parameters all come from `weights`, named as in FlexiCLIP.

    `folder` is a model folder with the architecture of another library's text tower. Raises UserError, which starts with
    `where`, if the weights do not fit.
    """
    config = fill_from_tokenizer(config, tokenizer)
    model = FlexiCLIP(config.model, build_text_tower(config.model.text, folder, pretrained=False))
    load_strictly(model, weights, where)
    return LoadedModel(model.eval(), _transform(config), tokenizer, config)


def save_model(folder: Path, loaded: LoadedModel, weights: dict[str, Tensor] | None = None, **provenance: object) -> None:
    """Write a model folder completely or not at all.

    It is written under another name and then renamed. An older model in the same place is replaced. `weights` maps names
    to tensors, for an engine whose module holds shards only; the default is the model's own state. `provenance` is added
    to that of the loaded model. Raises UserError if something other than a model is there, because it would be lost.
    """
    if folder.exists() and not (is_model_folder(folder) or (folder.is_dir() and not any(folder.iterdir()))):
        raise UserError(f"{folder} is there already and is not a model folder: name another one, or remove it")
    folder = Path(os.path.abspath(folder))  # an absolute path always has a name and a parent
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # a killed process may have had the same id, as happens in containers
    try:
        _write(aside, loaded, loaded.model.state_dict() if weights is None else weights, provenance)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    replace_folder(aside, folder)


def _write(folder: Path, loaded: LoadedModel, state: dict[str, Tensor], provenance: dict[str, object]) -> None:
    """Write the files of a model folder into a new folder."""
    folder.mkdir(parents=True)
    save_tensors(_apart({name: _portable(t) for name, t in state.items()}), folder / WEIGHTS)
    facts = {**loaded.provenance, **provenance, "format": FORMAT, "tokenizer_sha256": loaded.tokenizer.fingerprint()}
    text = yaml.dump(
        {**to_dict(loaded.config), "provenance": facts}, Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True
    )
    (folder / CONFIG).write_text(text, encoding="utf-8")
    loaded.tokenizer.save(folder / "tokenizer")
    loaded.model.text_tower.save_config(folder)


def load_model(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model folder, or the newest model of a run folder, in eval mode on `device`.

    `PATH+exitN` loads a model that was trained with exits and leaves its image tower after block N (models/exits.py).
    Raises UserError if there is no model at `path` or if it is damaged.
    """
    return load_parsed(parse_model(os.fspath(path), LOADED), device)


def load_parsed(source: ModelSource, device: str | torch.device = "cpu") -> LoadedModel:
    """Load a model of the kind Kind.MODEL as `load_model` does."""
    folder = source.path
    config, provenance = read_config(folder)
    check_sizes(config.model, (folder / WEIGHTS).stat().st_size, str(folder))
    tokenizer: Tokenizer = AbsentTokenizer(config.tokenizer, {})
    if config.model.text is not None:
        tokenizer = load_tokenizer(folder / "tokenizer", config.tokenizer, str(provenance.get("tokenizer_sha256", "")))
    loaded = model_from_weights(config, tokenizer, read_weights(folder / WEIGHTS), str(folder), folder)
    model = loaded.model.to(device)
    if source.exit is not None:
        model = leave_after(model, source.exit, source.text)
    config = replace(loaded.config, model=model.config)
    return replace(loaded, model=model, config=config, provenance=provenance)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises UserError if it is damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error}); copy or train the model again") from None


def _portable(tensor: Tensor) -> Tensor:
    """Return the tensor on the CPU, contiguous, and in float32 if it is a floating-point tensor."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


def _apart(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give tied weights (T5 has its embedding under two names) separate tensors, because safetensors stores no shared memory."""
    seen: set[int] = set()
    for name, tensor in state.items():
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            state[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    return state


def _transform(config: Config) -> EvalTransform:
    return EvalTransform(pair(config.model.image.image_size), config.model.preprocess)


def fill_from_tokenizer(config: Config, tokenizer: Tokenizer) -> Config:
    """Return the config with the ids and sizes that the text tower takes from its tokenizer.

    Raises UserError if the tokenizer does not fit the text tower.
    """
    text = config.model.text
    if text is None:
        return config
    filled = replace(
        text,
        vocab_size=text.vocab_size or tokenizer.vocab_size,
        pad_id=tokenizer.pad_id if text.pad_id is None else text.pad_id,
        eos_id=tokenizer.eos_id if text.eos_id is None else text.eos_id,
        context_length=text.context_length or tokenizer.context_length,
    )
    if (filled.vocab_size or 0) < tokenizer.vocab_size:
        raise UserError(f"model.text.vocab_size={filled.vocab_size} is below the tokenizer's {tokenizer.vocab_size}")
    if (filled.context_length or 0) < tokenizer.context_length:
        raise UserError(
            f"model.text.context_length={filled.context_length} is below tokenizer.context_length={tokenizer.context_length}"
        )
    return replace(config, model=replace(config.model, text=filled))


def fill_classes(config: Config) -> Config:
    """Return the config of a classifier with the names of its classes, and with as many outputs as there are classes.

    Raises UserError if the names cannot be read.
    """
    if config.model.classes is None:
        return config
    names = class_names(config.model.classes)
    return replace(config, model=replace(config.model, classes=names, embed_dim=len(names)))


def _init_half(model: FlexiCLIP, config: Config, half: str, folder: Path, tokenizer: Tokenizer) -> list[str]:
    """Fill one tower from a model folder, and its projection too if that has the same shape. Returns notes on resized tensors."""
    weights, (theirs, provenance) = read_weights(folder / WEIGHTS), read_config(folder)
    tower = {name.removeprefix(f"{half}_tower."): t for name, t in weights.items() if name.startswith(f"{half}_tower.")}
    where = f"model.{half}.init={folder}"
    if not tower:
        raise UserError(f"{where}: the folder has no {half} tower")
    check_settings(getattr(config.model, half), getattr(theirs.model, half), where)
    if half == "text":
        check_architecture(model.text_tower, folder, where)
    check_inputs(config, theirs, half, provenance.get("tokenizer_sha256") in (None, tokenizer.fingerprint()), where)
    notes: list[str] = []
    if half == "image" and {"kernel", "posemb"} <= tower.keys():
        tower, notes = _rebased(tower, theirs, config)
    load_strictly(getattr(model, f"{half}_tower"), tower, where)
    if config.model.classes == theirs.model.classes:  # a classifier's head is not a projection into a joint space
        for part in (f"{half}_projection", "exit_projections")[: 2 if half == "image" else 1]:
            module, found = getattr(model, part), beneath(weights, f"{part}.")
            if not misfits(found, module.state_dict()):
                module.load_state_dict(found)
    return [f"{where}: {note}" for note in notes]


def _rebased(tower: dict[str, Tensor], theirs: Config, ours: Config) -> tuple[dict[str, Tensor], list[str]]:
    """Resize an image tower's weights to the base sizes of our recipe.

    If a tower was trained at a single length and is now to learn others, the kernel of that length is used.
    """
    image = theirs.model.image
    trained = pair(image.base_patch_size)
    if not ours.model.image.frozen and ours.trained_seqhw != theirs.trained_seqhw:
        trained = own_patch(image, theirs.trained_seqhw)
    return rebase(tower, image, ours.model.image, trained)


def load_strictly(module: torch.nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights into a module.

    Raises UserError, which starts with `where`, unless names and shapes are exactly those of the module.
    """
    if said := misfits(weights, module.state_dict()):
        raise UserError(f"{where}: the weights do not fit the model of the config ({said})")
    module.load_state_dict(weights)


def read_config(folder: Path) -> tuple[Config, dict[str, object]]:
    """Read the config and the provenance of a model folder. Raises UserError if config.yaml is not valid."""
    try:
        data = read_yaml((folder / CONFIG).read_text(encoding="utf-8"), str(folder / CONFIG))
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None
    provenance = data.pop("provenance", {}) if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(provenance, dict):
        raise UserError(f"{folder / CONFIG}: expected the sections of a recipe and `provenance`")
    try:
        return from_dict(Config, data), {**provenance}
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from None
