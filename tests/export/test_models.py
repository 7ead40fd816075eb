"""Whole models in other libraries' forms: opened there, they compute what the model folder computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flexiclip.__main__ import main


@pytest.mark.parametrize(("name","fmt"),[(n,f) for n in ("ours","clip","siglip") for f in ("open_clip","timm","transformers","big_vision")])
def test_all(name,fmt,folders,tmp_path,capsys):
    out=tmp_path/("o.npz" if fmt=="big_vision" else "o")
    rc=main(["export","model",str(folders[name]),"--format",fmt,"--output",str(out)])
    with capsys.disabled(): print(name,fmt,rc,capsys.readouterr())
