"""A data set for worker processes, apart from the tests: a spawned worker imports this module, and needs no open_clip for it."""

from __future__ import annotations

import torch

from flexiclip.data.tokenizers import Tokenizer


class Tokenized(torch.utils.data.Dataset[torch.Tensor]):
    """Texts, tokenized where they are asked for."""

    def __init__(self, tokenizer: Tokenizer, texts: list[str]) -> None:
        self.tokenizer, self.texts = tokenizer, texts

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.tokenizer(self.texts[index])[0]
