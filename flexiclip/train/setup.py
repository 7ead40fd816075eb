"""Building a run from a recipe: data, run folder, tokenizer, model, objective and engine, in this order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from flexiclip.config import Config, DataConfig, ModelConfig, TokenizerConfig
from flexiclip.config.schema import pair
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.dataset import TrainSources, open_sources
from flexiclip.data.loader import Batches, iter_captions, train_loader
from flexiclip.data.samples import Labels
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.files import clear_left, write_whole, writing
from flexiclip.model_folder import LoadedModel, OpenModel, build_model, load_strictly
from flexiclip.models.flops import image_model_flops, pair_flops, text_cost
from flexiclip.models.text import TextTower
from flexiclip.schedules import RunSchedule, keeps_text_features, micro_batches, pair_tokens
from flexiclip.train.blocks import keep_freed_memory, prepare_blocks
from flexiclip.train.checkpoint import Checkpoint
from flexiclip.train.engine import Engine, ScalarOptimizer, TorchEngine, uses_bf16
from flexiclip.train.nonfinite import Skips
from flexiclip.train.objectives import Objective, make_objective, resolve
from flexiclip.train.ranks import Ranks, RunContext, check_ranks_agree, check_shared_folder, data_order, share_file
from flexiclip.train.resume import check_one_recipe, enter_run_folder, fetch_checkpoint, forget_fetched, run_store
from flexiclip.train.run_lock import RunLock
from flexiclip.train.step import Stepper
from flexiclip.train.stores import LocalStore, Store


@dataclass
class Run:
    """Everything that the loop needs: a run that is ready to go on from `step`."""

    config: Config
    context: RunContext
    loaded: LoadedModel
    stepper: Stepper
    schedule: RunSchedule
    step_flops: Callable[[int], int]  # step (from 0) -> FLOPs over all ranks; 0 if they cannot be counted
    sources: TrainSources | None
    data_order: str | None  # the hash of data_order in ranks.py
    store: Store
    checkpoint: str | None  # name of the checkpoint in the store that the run went on from
    step: int  # finished steps
    skips: Skips  # counts steps that updated nothing
    flops: int  # of the steps so far, over all ranks; 0 if they cannot be counted
    lock: RunLock
    shadow: LoadedModel | None  # a second model to evaluate with, if the engine shards the first

    def batches(self) -> Batches:
        """Return the batches of the remaining steps."""
        config, tower = self.config, self.loaded.model.text_tower
        spec = BatchSpec(
            image_size=pair(config.model.image.image_size),
            interpolation=config.model.preprocess.interpolation,
            tokenizer=None if config.model.text is None else tower.trimming(self.loaded.tokenizer),
            labels=labels_of(config),
        )
        steps = RankSteps(
            seed=config.seed,
            global_batch_size=config.train.global_batch_size,
            start_step=self.step,
            steps=self.schedule.horizon.steps - self.step,
            rank=self.context.ranks.rank,
            world=self.context.ranks.world,
        )
        return train_loader(data_of(config.data, config.model), spec, steps, self.sources)


def data_of(data: DataConfig, model: ModelConfig) -> DataConfig:
    """Return the data section of a recipe, without captions if there is no text tower."""
    return data if model.text is not None else replace(data, captions=())


def labels_of(config: Config) -> Labels | None:
    """Return which labels are read. None unless the objective is classification."""
    if config.objective != "classification":
        return None
    spec, classes = config.data.labels, config.model.classes
    assert spec is not None, "validate() demands it"
    assert isinstance(classes, tuple), "fill_classes() has named them"
    return Labels(spec, classes)


def run_schedule(config: Config, samples: int | None) -> RunSchedule:
    """Return the schedule of a recipe. samples: per epoch, None if unknown.

    Raises UserError if the number of steps cannot be computed from train.steps.
    """
    flops = pair_flops_of(config, samples) if config.train.steps.unit == "TFLOPs" else {}
    return RunSchedule.of(config, samples, partial(image_model_flops, config.model), flops.__getitem__)


def pair_flops_of(config: Config, samples: int | None, tower: TextTower | None = None) -> dict[int, int]:
    """Return the FLOPs of training on a pair, by seqhw. samples: per epoch, None if unknown. tower: the model's, if it is built.

    Raises UserError if the FLOPs of another library's text tower cannot be counted.
    """
    text = text_cost(config, partial(keeps_text_features, config.model, config.data, samples), tower)
    return {seqhw: pair_flops(config.model, text, seqhw).model for seqhw in config.patch.all_seqhw}


def step_flops_of(config: Config, schedule: RunSchedule, tower: TextTower) -> Callable[[int], int]:
    """Return a function from a step (from 0) to its FLOPs over all ranks, which is 0 if they cannot be counted.

    tower: the model's text tower, before an engine shards it.
    """
    try:
        flops = pair_flops_of(config, schedule.horizon.samples, tower)
    except UserError:
        return lambda step: 0
    return lambda step: schedule.horizon.batch * flops[schedule.seqhw(step)]


def flops_so_far(checkpoint: Checkpoint | None, step_flops: Callable[[int], int]) -> int:
    """Return the FLOPs of the finished steps. If the checkpoint is older than that field, they are computed again."""
    if checkpoint is None:
        return 0
    kept = checkpoint.facts.flops
    return sum(map(step_flops, range(checkpoint.step))) if kept is None else kept


def set_up(config: Config, ranks: Ranks, lock: RunLock, evaluates: bool, open_model: OpenModel | None = None) -> Run:
    """Build a new run, or one that goes on from a checkpoint. Collective. Raises UserError if the recipe or its files are wrong.

    lock: keeps other processes out of the run's folder and checkpoints. evaluates: whether the run evaluates its model.
    open_model: opens the models of other libraries that `init` names.
    """
    check_one_recipe(config, ranks)
    if config.train.global_batch_size % ranks.world:
        raise UserError(f"train.global_batch_size={config.train.global_batch_size} does not divide by the {ranks.world} ranks")
    config, teacher = resolve(config, ranks.device)
    sources = None
    if not config.data.sequential:
        sources = open_sources(data_of(config.data, config.model), config.seed, labels_of(config))
    schedule_of = partial(run_schedule, samples=sources.samples if sources else None)
    schedule, order = schedule_of(config), data_order(sources)
    check_ranks_agree(order, ranks)
    folder = Path(config.run_dir)
    store = run_store(config.train, folder)
    found = ranks.first_result(ranks.main, lambda: enter_run_folder(config, store, schedule_of, lock, ranks.say))
    if isinstance(store, LocalStore):  # with checkpoints in an object store, each host may have folders of its own
        check_shared_folder(folder, ranks)
        if config.train.checkpoint_dir is not None:
            check_shared_folder(store.root, ranks, "train.checkpoint_dir")
    context = RunContext(ranks, uses_bf16(config.train.precision, ranks), folder)
    checkpoint = fetch_checkpoint(found, context) if found is not None else None

    tokenizer = config.tokenizer
    if config.model.text is not None:
        tokenizer = _tokenizer(tokenizer, config.data, context, checkpoint)
    loaded = build_model(replace(config, tokenizer=tokenizer), open_model=open_model)
    _begin(loaded, checkpoint, order, ranks)
    step_flops = step_flops_of(loaded.config, schedule, loaded.model.text_tower)
    loaded.model.to(ranks.device).train()
    shadow = None
    if evaluates and config.engine.kind == "deepspeed" and config.engine.zero_stage == 3:
        shadow = replace(loaded, model=copy.deepcopy(loaded.model).requires_grad_(False).eval())
    objective = make_objective(loaded, teacher, config, context)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    engine, scalars = _engine(loaded, objective, config, ranks, checkpoint)
    forget_fetched(context)
    size = micro_batches(config.train, pair_tokens(config.model, config.tokenizer), ranks.world)
    return Run(
        config=config,
        context=context,
        loaded=loaded,
        stepper=Stepper(objective, engine, scalars, size, config.seed, ranks),
        schedule=schedule,
        step_flops=step_flops,
        sources=sources,
        data_order=order,
        store=store,
        checkpoint=found.name if found is not None and found.root == str(store) else None,
        step=checkpoint.step if checkpoint else 0,
        skips=Skips(config.train.on_nonfinite, checkpoint.facts.skipped if checkpoint else 0),
        flops=flops_so_far(checkpoint, step_flops),
        lock=lock,
        shadow=shadow,
    )


def _begin(loaded: LoadedModel, checkpoint: Checkpoint | None, order: str | None, ranks: Ranks) -> None:
    """Load the checkpoint's weights into the model, if there is a checkpoint, and print where the run starts from."""
    if checkpoint is None:
        for note in loaded.provenance.get("init_notes", ()):
            ranks.say(note)
        return
    load_strictly(loaded.model, checkpoint.weights(), checkpoint.where)
    ranks.say(f"going on from {checkpoint.where}")
    say_if_changed(order, checkpoint, ranks)


def say_if_changed(order: str | None, checkpoint: Checkpoint, ranks: Ranks) -> None:
    """Print a line if the order of the samples is not that of the checkpoint, because the shards have changed."""
    if checkpoint.facts.data_order not in (None, order):
        ranks.say(
            f"the training shards are not those of {checkpoint.where} (other names, counts or weights): "
            f"from step {checkpoint.step} on, the order of the samples is another one"
        )


def _tokenizer(
    tokenizer: TokenizerConfig, data: DataConfig, context: RunContext, checkpoint: Checkpoint | None
) -> TokenizerConfig:
    """Return the section with a tokenizer that exists.

    A sentencepiece model that the recipe does not name comes from the checkpoint, or is trained on the training captions.
    """
    if tokenizer.kind != "sentencepiece" or tokenizer.path is not None:
        return tokenizer
    ranks, path = context.ranks, context.folder / "tokenizer.model"

    def provide() -> None:
        with writing(f"run_dir={context.folder}"):
            if checkpoint is not None:  # it may be elsewhere, so the run folder may have no tokenizer or another run's
                (file,) = (checkpoint.model / "tokenizer").iterdir()
                write_whole(path, file.read_bytes())
                return
            # An existing file may belong to another recipe, so it is not used.
            ranks.say(f"training a sentencepiece tokenizer of {tokenizer.vocab_size} pieces on the training captions")
            clear_left(context.folder, path.name)
            train_sentencepiece(iter_captions(data), path, tokenizer.vocab_size, tokenizer.lowercase)

    ranks.first_result(ranks.main, provide)
    share_file(path, ranks)
    return replace(tokenizer, path=str(path))


def _engine(
    loaded: LoadedModel, objective: Objective, config: Config, ranks: Ranks, checkpoint: Checkpoint | None
) -> tuple[Engine, ScalarOptimizer]:
    model, towers = loaded.model, objective.towers
    prepare_blocks([model.image_tower, *([] if config.model.text is None else [model.text_tower])], config.train, ranks.device)
    scalars = ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max)
    engine: Engine
    if config.engine.kind == "deepspeed":
        from flexiclip.train.deepspeed import DeepSpeedEngine

        shortest = min(config.patch.all_seqhw)
        engine = DeepSpeedEngine(towers, config.engine, config.train, config.optimizer, shortest, ranks)
    else:
        engine = TorchEngine(towers, config.optimizer, ranks)
    if checkpoint is not None:
        moments = checkpoint.moments()
        untrained = [name for name, _ in towers.trained_parameters() if f"exp_avg/{name}" not in moments]
        if untrained:
            raise UserError(
                f"{checkpoint.where} has not trained {untrained[0]}, which this recipe trains: "
                "start a new run from its weights with model.image.init and model.text.init"
            )
        updates = checkpoint.step - checkpoint.facts.skipped
        scalars.load({name.removeprefix("scalars/"): moment for name, moment in moments.items()}, updates)
        engine.load_moments(moments, updates)
    return engine, scalars


def consolidated(run: Run) -> dict[str, torch.Tensor]:
    """Return every parameter of the model unsharded, by name, a tied one under each of its names. Collective."""
    model, whole = run.loaded.model, dict(run.stepper.engine.weights())
    owners = {id(p): name for name, p in model.named_parameters()}
    names = {name: owners[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    return model.state_dict() | {name: whole[owner] for name, owner in names.items() if owner in whole}


def model_to_evaluate(run: Run) -> LoadedModel:
    """Return the model in eval mode, unsharded on every rank. Collective."""
    if run.shadow is None:
        run.loaded.model.eval()
        return run.loaded
    run.shadow.model.load_state_dict(consolidated(run))
    return run.shadow
