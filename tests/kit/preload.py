"""Imported by the server from which ranks are forked: all that a rank would import, once for all of them.

torch and DeepSpeed import much of it, three seconds' worth, only when the first optimizer or engine is made. What is there at the
end is moved out of reach of the garbage collector, which would copy its memory into every rank.
"""

from __future__ import annotations

import gc
import importlib

gc.disable()
for name in (
    *("flexiclip.cli", "flexiclip.__main__", "flexiclip.train.trainer", "flexiclip.train.deepspeed", "flexiclip_eval.run"),
    *("deepspeed", "s3fs", "sentencepiece", "setuptools", "torch.utils.tensorboard"),
    *("torch._dynamo", "torch._inductor.compile_fx", "deepspeed.ops.op_builder.all_ops", "deepspeed.module_inject.auto_ep_layer"),
    *("deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.superoffload.superoffload_stage3"),
):
    importlib.import_module(name)
gc.freeze()
gc.enable()
