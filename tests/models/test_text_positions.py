"""How many tokens a text tower of another library takes: what its position table has room for, found by trying."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from flexiclip.config import TextTowerConfig
from flexiclip.errors import UserError
from flexiclip.models.text import build_text_tower

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
PAD, WORD = 1, 5


@pytest.mark.parametrize(("kind", "takes"), [("Bert", 20), ("Roberta", 18), ("XLMRoberta", 18), ("MPNet", 18), ("IBert", 18)])
def test_a_context_length_beyond_the_positions_is_refused_when_the_tower_is_built(tmp_path: Path, kind: str, takes: int) -> None:
    """RoBERTa and its kin count positions from beyond the id of padding: of 20 rows they use 18."""
    described = getattr(transformers, f"{kind}Config")(**SIZE, max_position_embeddings=20, pad_token_id=PAD)
    getattr(transformers, f"{kind}Model")(described).save_pretrained(tmp_path)

    def build(context_length: int | None) -> torch.nn.Module:
        given = TextTowerConfig(kind="huggingface", name=str(tmp_path), pool="mean", pad_id=PAD, context_length=context_length)
        return build_text_tower(given).eval()

    with torch.no_grad():
        assert build(takes)(torch.full((1, takes), WORD)).shape == (1, 16)
    assert build(None).context_length == takes
    with pytest.raises(UserError, match=rf"tokenizer\.context_length={takes + 1}: .* has positions for {takes} tokens only"):
        build(takes + 1)
