"""Every key of a recipe does something, and a test shows it: a key that is in no table here fails.

The tests set one key each, and compare what comes of it with a known number, or with what comes without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import test_data_keys
import test_model_keys
import test_update_keys
from test_resume import leaves

from flexiclip.config import Config

TESTS = Path(__file__).parents[1]

HERE: dict[str, Callable[..., None]] = {
    **dict.fromkeys(test_model_keys.MODEL, test_model_keys.test_a_key_of_the_model_changes_what_the_towers_compute),
    **dict.fromkeys(test_data_keys.DATA, test_data_keys.test_a_key_of_the_data_changes_what_is_read),
    "model.image.exit_heads": test_model_keys.test_exit_heads_are_the_towers_or_their_own,
    **{
        f"model.{half}.{key}": test_model_keys.test_lock_and_unlock_last_say_which_blocks_train
        for half in ("image", "text")
        for key in ("lock", "unlock_last", "init")
    },
    **{
        f"model.{key}": test_model_keys.test_the_scalars_and_a_classifiers_head_start_where_the_recipe_says
        for key in ("logit_scale_init", "logit_bias_init", "head_bias_init", "classes")
    },
    "optimizer.eps": test_update_keys.test_optimizer_keys_move_the_weights_as_adamw_says,
    "optimizer.weight_decay": test_update_keys.test_optimizer_keys_move_the_weights_as_adamw_says,
    "optimizer.betas": test_update_keys.test_optimizer_betas_are_those_of_the_moments,
    "optimizer.grad_clip": test_update_keys.test_optimizer_grad_clip_bounds_the_norm_of_all_gradients_together,
    "train.micro_batch_size": test_update_keys.test_micro_batches_are_what_the_recipe_says,
    "train.micro_tokens": test_update_keys.test_micro_batches_are_what_the_recipe_says,
    "train.precision": test_update_keys.test_precision_is_that_of_the_matrix_products,
    "train.threads": test_update_keys.test_threads_are_the_cores_over_the_local_ranks_unless_given,
    "data.mixup": test_data_keys.test_mixup_mixes_images_and_their_shares,
    "objective": test_data_keys.test_mixup_mixes_images_and_their_shares,
    **dict.fromkeys(
        (
            *("train.steps", "train.global_batch_size", "train.log_every", "train.save_every", "train.keep_last"),
            *("train.log_samples", "train.checkpoint_dir", "optimizer.lr", "optimizer.schedule", "optimizer.warmup"),
            *("optimizer.timescale", "optimizer.cooldown", "loss.kind", "patch.seqhw", "patch.weights", "run_dir", "data.train"),
        ),
        test_update_keys.test_a_run_obeys_its_schedule_and_its_bookkeeping,
    ),
}
"""Key -> the test that shows its effect."""

ELSEWHERE = {
    "init": "formats/test_initial.py",
    "model.logit_scale_max": "train/test_deepspeed.py",
    "model.text.kind": "models/text/test_huggingface.py",
    "model.text.name": "models/text/test_huggingface.py",
    "model.text.sha256": "models/text/test_huggingface.py",
    "model.text.vocab_size": "models/text/test_text_base.py",
    "model.text.pad_id": "models/text/test_text_base.py",
    "model.text.eos_id": "models/text/test_text_base.py",
    "model.text.context_length": "models/text/test_huggingface.py",
    "model.preprocess.resize": "data/test_images.py",
    **{
        f"tokenizer.{key}": "data/tokenizers/test_tokenizers.py"
        for key in ("kind", "path", "vocab_size", "lowercase", "sticky_eos")
    },
    "data.labels": "data/test_batch.py",
    "data.allow_shell": "data/test_remote.py",
    "data.workers": "data/test_loader.py",
    "data.prefetch": "data/test_worker_watch.py",
    "data.index_cache": "data/test_remote.py",
    "data.read_attempts": "data/test_reading.py",
    "data.read_timeout_s": "data/test_reading.py",
    "data.stall_s": "train/test_processes.py",
    "data.max_bad_fraction": "train/test_faults.py",
    "patch.stages": "test_schedules.py",
    "patch.curriculum": "test_schedules.py",
    "patch.spread": "test_schedules.py",
    "patch.finish": "test_schedules.py",
    "loss.mask_identical": "train/test_step.py",
    "loss.widths": "train/test_nested_widths.py",
    "classification.loss": "train/test_objectives_steps.py",
    "classification.label_smoothing": "train/test_objectives.py",
    "distillation.teacher": "train/test_objectives.py",
    **{f"distillation.{key}": "train/test_objectives_steps.py" for key in ("seqhw", "temperature", "kl", "cosine")},
    "train.activation_checkpointing": "train/test_blocks.py",
    "train.compile": "train/test_blocks_compile.py",
    "train.on_nonfinite": "train/test_nonfinite.py",
    "train.save_in_background": "train/test_trainer.py",
    "train.keep_every": "train/test_checkpoint.py",
    "train.resume": "train/test_resume_runs.py",
    "train.trackers": "train/test_trackers.py",
    "train.rank_timeout_s": "train/test_heartbeat.py",
    "engine.kind": "kit/alike.py",
    "engine.zero_stage": "kit/alike.py",
    "engine.offload": "train/test_matrix.py",
    "engine.deepspeed": "config/test_validate.py",
    "eval.suites": "cli/test_cli.py",
    "eval.every": "train/test_trainer.py",
    "eval.seqhw": "config/test_validate.py",
    "eval.batch_size": "config/test_validate.py",
}
"""Key -> the file, under tests/, that does, by the key's name."""


def test_every_key_has_a_witness() -> None:
    assert HERE.keys() | ELSEWHERE.keys() == set(leaves(Config))
    assert not HERE.keys() & ELSEWHERE.keys()
    for key, file in ELSEWHERE.items():
        assert key.rpartition(".")[2] in (TESTS / file).read_text(encoding="utf-8"), f"{file} does not name {key}"
