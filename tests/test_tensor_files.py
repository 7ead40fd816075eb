"""Weight files of torch's world: which tensors of a checkpoint are taken, under which names, and one clear line for the rest."""

from __future__ import annotations

import argparse
import gzip
import io
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.weights import images, imported, perturbed, refused
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flexiclip.errors import UserError
from flexiclip.tensor_files import read_checkpoint, read_folder, read_json, read_state

A, B = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0])}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def read(content: Any, folder: Path, averaged: bool = False) -> tuple[list[float], list[str]]:
    tensors, notes = read_checkpoint(saved(content, folder / "w.pt"), averaged)
    assert list(tensors) == ["w"]
    return tensors["w"].tolist(), notes


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_read_checkpoint_takes_the_state_dict_of_a_checkpoint(key: str, tmp_path: Path) -> None:
    beside = {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "args": {"lr": 1e-3}}
    assert read({key: A, **beside}, tmp_path) == ([1.0, 2.0], [])
    assert read({key: OrderedDict(A)}, tmp_path) == ([1.0, 2.0], [])


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema"])
def test_read_checkpoint_of_one_with_averaged_weights_says_which_were_taken(key: str, tmp_path: Path) -> None:
    plain, averaged = read({"state_dict": A, key: B}, tmp_path), read({"state_dict": A, key: B}, tmp_path, averaged=True)
    assert (plain[0], averaged[0]) == ([1.0, 2.0], [3.0, 4.0])
    assert f"({key}) were left out" in plain[1][0]
    assert f"({key}) were taken" in averaged[1][0]
    assert read({key: B}, tmp_path)[0] == [3.0, 4.0]
    assert read({"state_dict": A, key: None}, tmp_path, averaged=True) == ([1.0, 2.0], [])


@torch.no_grad()
def test_timm_checkpoints_give_their_averaged_weights_as_timm_does(tmp_path: Path) -> None:
    small = {"img_size": 48, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 0}
    last, averaged = (perturbed(VisionTransformer(**small), scale) for scale in (0.05, 0.1))
    compiled = {f"_orig_mod.{name}": tensor for name, tensor in last.state_dict().items()}
    content = {"epoch": 3, "arch": "vit", "state_dict": compiled, "state_dict_ema": averaged.state_dict(), "metric": 71.0}
    ours = imported(saved(content, tmp_path / "model_best.pth.tar"), "timm", tmp_path / "m", "--image-size", "48")
    torch.testing.assert_close(ours.model.encode_image(images(48)), averaged(images(48)), atol=1e-5, rtol=0)
    assert "averaged weights" in " ".join(ours.provenance["import_notes"])


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_read_state_strips_what_training_puts_before_names(prefix: str, suffix: str, tmp_path: Path) -> None:
    state = {f"{prefix}{name}": torch.full((2,), float(i)) for i, name in enumerate(("a.b", "blocks.0.module.c", "d"))}
    path = tmp_path / f"w.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    assert {name: tensor[0].item() for name, tensor in read_state(path).items()} == {"a.b": 0, "blocks.0.module.c": 1, "d": 2}


def test_read_state_keeps_a_module_that_is_called_so_and_strips_inside_names(tmp_path: Path) -> None:
    state = {"module.a": torch.zeros(1), "blocks.0._orig_mod.b": torch.zeros(1)}
    assert set(read_state(saved(state, tmp_path / "w.pt"))) == {"module.a", "blocks.0.b"}
    swa = torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2))
    assert set(read_state(saved(swa.state_dict(), tmp_path / "swa.pt"))) == {"weight", "bias"}
    twice = {"a": torch.zeros(1), "_orig_mod.a": torch.ones(1)}
    with pytest.raises(UserError, match="two tensors have the same name"):
        read_state(saved(twice, tmp_path / "twice.pt"))


def test_read_folder_strips_the_names_of_shards(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        save_file({f"module.{name}": torch.full((1,), float(number))}, tmp_path / f"part-{number}.safetensors")
    index = '{"weight_map": {"module.a": "part-0.safetensors", "module.b": "part-1.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert {name: tensor.item() for name, tensor in read_folder(tmp_path)[0].items()} == {"a": 0, "b": 1}


HTML = b"\n<!DOCTYPE html>\n<html><head><title>403 Forbidden</title></head></html>"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 346293852\n"


class Unknown:
    """An object of ours inside a checkpoint."""


def contents() -> dict[str, bytes]:
    """What people have in place of weights."""

    def of(content: Any, legacy: bool = False) -> bytes:
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
        return buffer.getvalue()

    script = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), script)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("readme.txt", "hello")
    noise = np.random.default_rng(0).bytes(4000)
    namespace = {"state_dict": A, "args": argparse.Namespace(lr=1)}
    return {
        "html": HTML,
        "lfs": LFS,
        "empty": b"",
        "gzip": gzip.compress(of(A)),
        "cut gzip": gzip.compress(noise)[:900],
        "json": b'{"error": "Repository not found"}',
        "words": b"Entry not found",
        "cut zip": of(A)[:300],
        "another zip": archive.getvalue(),
        "noise": noise,
        "namespace": of(namespace),
        "namespace, legacy": of(namespace, legacy=True),
        "module": of(nn.Linear(2, 2)),
        "path": of({"w": Path("x")}),
        "script": script.getvalue(),
        "list": of([1, 2]),
        "numbers": of({"w": torch.zeros(1), "epoch": 3}),
    }


SAID = {
    "html": "it is a web page, as servers send with an error or for a login; download the file again",
    "lfs": "it is a Git LFS pointer; run `git lfs pull` in its repository",
    "empty": "it is empty; download the file again",
    "gzip": "it is a gzip archive; unpack it with gunzip",
    "cut gzip": "it is a gzip archive",
    "json": 'it is a text that begins \'{"error": "Repository not found"}\'',
    "words": "it is a text that begins 'Entry not found'",
}
SAID_OF_TORCH = SAID | {
    "cut zip": "a torch file, but cut short or damaged; download or copy it again",
    "another zip": "",
    "noise": "no tensors can be read from it",
    "namespace": "it holds an object of argparse.Namespace, which is not unpickled because that can run code; if",
    "namespace, legacy": "it holds an object of argparse.Namespace",
    "module": "it holds an object of torch.nn.modules.linear.Linear",
    "path": "it holds an object of pathlib.",
    "script": "it is a TorchScript program, which is not run; if you trust the file",
    "list": "not a state dict but a list",
    "numbers": "not a state dict: 'epoch' has the type int",
}
FORMATS = [("big_vision", "w.npz"), ("timm", "w.pt"), ("timm", "w.bin"), ("timm", "w.safetensors"), ("open_clip", "w.pt")]


def assert_clear(line: str, path: Path) -> None:
    """One whole line: no escape code, no address, nothing cut off in a word, no path or reason twice."""
    assert "\x1b" not in line
    assert "\\x1b" not in line
    assert not re.search(r"0x[0-9a-f]{6,}", line)
    assert "weights_only` argument" not in line, "torch's own advice is about another program"
    assert line.count(str(path)) == 1
    assert len(line) < 420, line
    words = line.removeprefix("flexiclip: ").split(": ")
    assert len(set(words)) == len(words), line


@pytest.mark.parametrize(("format", "name"), FORMATS)
def test_files_that_hold_something_else_are_one_clear_line(
    format: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = SAID_OF_TORCH if name.endswith((".pt", ".bin")) else SAID
    options = ("--arch", "ViT-S-32-alt") if format == "open_clip" else ()
    for kind, content in contents().items():
        path = tmp_path / name
        path.write_bytes(content)
        line = refused(capsys, path, format, tmp_path / "m", *options)
        assert said.get(kind, "") in line, kind
        assert_clear(line, path)


@pytest.mark.parametrize("kind", ["html", "lfs", "empty", "json list"])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors", "model.safetensors.index.json"])
def test_files_of_a_folder_that_hold_something_else_are_one_clear_line(
    kind: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**sizes, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "hf")
    if name == "model.safetensors.index.json":
        (tmp_path / "hf" / "model.safetensors").unlink()
    (tmp_path / "hf" / name).write_bytes({"html": HTML, "lfs": LFS, "empty": b"", "json list": b"[1, 2]"}[kind])
    line = refused(capsys, tmp_path / "hf", "transformers", tmp_path / "m")
    assert f"hf/{name}: " in line
    expected = {"json list": "a list"}.get(kind) or SAID[kind].partition(";")[0]
    assert expected in line or (kind == "json list" and name == "model.safetensors")
    assert_clear(line, tmp_path / "hf" / name)


def test_read_json_takes_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}


def test_names_that_say_another_format_say_what_to_name_the_file(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "w.bin")
    with pytest.raises(UserError, match=r"it is a safetensors file; give it a name that ends in \.safetensors"):
        read_state(tmp_path / "w.bin")
    torch.save(A, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"torch\.save wrote it, .* give it a name that ends in \.pt"):
        read_state(tmp_path / "w.safetensors")
