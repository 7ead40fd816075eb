"""Building a run from a recipe: data, run folder, tokenizer, model, objective and engine, in this order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from flexiclip.config import Config, DataConfig
from flexiclip.config.schema import pair
from flexiclip.data.batch import BatchSpec, RankSteps
from flexiclip.data.dataset import TrainSources, open_sources
from flexiclip.data.loader import Batches, iter_captions, train_loader
from flexiclip.data.samples import Labels
from flexiclip.data.tokenizers import train_sentencepiece
from flexiclip.errors import UserError
from flexiclip.files import clear_left, write_whole, writing_run_folder
from flexiclip.model_folder import LoadedModel, build_model, load_strictly
from flexiclip.schedules import Horizon, learning_rate, micro_batches
from flexiclip.train.blocks import keep_freed_memory, prepare_blocks
from flexiclip.train.checkpoint import Checkpoint
from flexiclip.train.course import Course
from flexiclip.train.engine import Engine, ScalarOptimizer, TorchEngine, uses_bf16
from flexiclip.train.nonfinite import Skips
from flexiclip.train.objectives import Objective, make_objective, resolve
from flexiclip.train.ranks import Ranks, check_ranks_agree, check_shared_folder, data_order, say_if_changed, share_file
from flexiclip.train.resume import check_one_recipe, enter_run_folder, fetch_checkpoint, forget_fetched, run_store, shared
from flexiclip.train.run_lock import RunLock
from flexiclip.train.step import Stepper
from flexiclip.train.stores import LocalStore, Store


@dataclass
class Run:
    """Everything that the loop needs: a run that is ready to go on from `step`."""

    config: Config
    folder: Path
    ranks: Ranks
    loaded: LoadedModel
    engine: Engine
    stepper: Stepper
    course: Course
    lr: Callable[[int], float]
    sources: TrainSources | None
    data_order: str | None  # the hash of data_order in ranks.py
    store: Store
    checkpoint: str | None  # name of the checkpoint in the store that the run went on from
    step: int  # finished steps
    skips: Skips  # counts steps that updated nothing
    flops: int  # of the steps so far, over all ranks; 0 if they cannot be counted
    lock: RunLock
    shadow: LoadedModel | None  # a second model to evaluate with, if the engine shards the first

    @property
    def horizon(self) -> Horizon:
        """The length of the run."""
        return self.course.horizon

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
            steps=self.horizon.steps - self.step,
            rank=self.ranks.rank,
            world=self.ranks.world,
        )
        return train_loader(data_of(config), spec, steps, self.sources)


def data_of(config: Config) -> DataConfig:
    """Return the data section of a recipe, without captions if there is no text tower."""
    return config.data if config.model.text is not None else replace(config.data, captions=())


def labels_of(config: Config) -> Labels | None:
    """Return which labels are read. None unless the objective is classification."""
    if config.objective != "classification":
        return None
    spec, classes = config.data.labels, config.model.classes
    assert spec is not None, "validate() demands it"
    assert isinstance(classes, tuple), "fill_classes() has named them"
    return Labels(spec, classes)


def set_up(config: Config, ranks: Ranks, evaluates: bool, lock: RunLock | None = None) -> Run:
    """Build a new run, or one that goes on from a checkpoint. Collective. Raises UserError if the recipe or its files are wrong.

    evaluates: whether the run evaluates its model. lock: keeps other processes out of the run's folder and checkpoints while it
    is held; by default nothing does.
    """
    lock = lock or RunLock()
    check_one_recipe(config, ranks)
    if config.train.global_batch_size % ranks.world:
        raise UserError(f"train.global_batch_size={config.train.global_batch_size} does not divide by the {ranks.world} ranks")
    config, teacher = resolve(config, ranks.device)
    sources = None if config.data.sequential else open_sources(data_of(config), config.seed, labels_of(config))
    course = Course.of(config, sources.samples if sources else None)
    order = data_order(sources)
    check_ranks_agree(order, ranks)
    folder = Path(config.run_dir)
    store = run_store(config, folder)
    found = shared(ranks, ranks.main, lambda: enter_run_folder(config, store, course, lock, ranks.say))
    _check_shared(config.train.checkpoint_dir, folder, store, ranks)
    checkpoint = fetch_checkpoint(found, folder, ranks) if found is not None else None

    loaded = build_model(_with_tokenizer(config, folder, checkpoint, ranks))
    _begin(loaded, checkpoint, order, ranks)
    course = course.counted(loaded.config, loaded.model.text_tower)
    loaded.model.to(ranks.device).train()
    bf16 = uses_bf16(config.train.precision, ranks)
    shadow = _shadow(loaded) if evaluates and config.engine.kind == "deepspeed" and config.engine.zero_stage == 3 else None
    objective = make_objective(loaded, teacher, config, bf16, folder, ranks)
    if ranks.device.type == "cpu":
        keep_freed_memory()
    engine, scalars = _engine(loaded, objective, config, ranks, checkpoint)
    forget_fetched(folder, ranks)
    stepper = Stepper(
        objective=objective,
        engine=engine,
        scalars=scalars,
        micro_batch=micro_batches(config, ranks.world),
        seed=config.seed,
        ranks=ranks,
    )
    return Run(
        config=config,
        folder=folder,
        ranks=ranks,
        loaded=loaded,
        engine=engine,
        stepper=stepper,
        course=course,
        lr=learning_rate(config.optimizer, course.horizon),
        sources=sources,
        data_order=order,
        store=store,
        checkpoint=found.name if found is not None and found.root == str(store) else None,
        step=checkpoint.step if checkpoint else 0,
        skips=Skips(config.train.on_nonfinite, checkpoint.skipped if checkpoint else 0),
        flops=_flops(course, checkpoint),
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


def _flops(course: Course, checkpoint: Checkpoint | None) -> int:
    """FLOPs of the steps so far, from the checkpoint. If the checkpoint is older than that field, they are computed again."""
    if checkpoint is None:
        return 0
    return course.flops(range(checkpoint.step)) if checkpoint.facts.flops is None else checkpoint.facts.flops


def _check_shared(checkpoint_dir: str | None, folder: Path, store: Store, ranks: Ranks) -> None:
    """Raise UserError unless all ranks see the same folders. With checkpoints in an object store, each host may have its own."""
    if not isinstance(store, LocalStore):
        return
    check_shared_folder(folder, ranks)
    if checkpoint_dir is not None:
        check_shared_folder(store.root, ranks, "train.checkpoint_dir")


def _with_tokenizer(config: Config, folder: Path, checkpoint: Checkpoint | None, ranks: Ranks) -> Config:
    """Return the config with a tokenizer that exists.

    A sentencepiece model that the recipe does not name comes from the checkpoint, or is trained on the training captions.
    """
    tokenizer = config.tokenizer
    if tokenizer.kind != "sentencepiece" or tokenizer.path is not None or config.model.text is None:
        return config
    path = folder / "tokenizer.model"

    def provide() -> None:
        with writing_run_folder(folder):
            if checkpoint is not None:  # it may be elsewhere, so the run folder may have no tokenizer or another run's
                (file,) = (checkpoint.model / "tokenizer").iterdir()
                write_whole(path, file.read_bytes())
                return
            # An existing file may belong to another recipe, so it is not used.
            ranks.say(f"training a sentencepiece tokenizer of {tokenizer.vocab_size} pieces on the training captions")
            clear_left(folder, path.name)
            train_sentencepiece(iter_captions(config.data), path, tokenizer.vocab_size, tokenizer.lowercase)

    shared(ranks, ranks.main, provide)
    share_file(path, ranks)
    return replace(config, tokenizer=replace(tokenizer, path=str(path)))


def _engine(
    loaded: LoadedModel, objective: Objective, config: Config, ranks: Ranks, checkpoint: Checkpoint | None
) -> tuple[Engine, ScalarOptimizer]:
    model, towers = loaded.model, objective.towers
    prepare_blocks([model.image_tower, *([] if config.model.text is None else [model.text_tower])], config, ranks.device)
    scalars = ScalarOptimizer(objective.scalars, config.optimizer, config.model.logit_scale_max)
    engine: Engine
    if config.engine.kind == "deepspeed":
        from flexiclip.train.deepspeed import DeepSpeedEngine

        engine = DeepSpeedEngine(towers, config, ranks)
    else:
        engine = TorchEngine(towers, config, ranks)
    if checkpoint is not None:
        moments = checkpoint.moments()
        untrained = [name for name, p in towers.named_parameters() if p.requires_grad and f"exp_avg/{name}" not in moments]
        if untrained:
            raise UserError(
                f"{checkpoint.where} has not trained {untrained[0]}, which this recipe trains: "
                "start a new run from its weights with model.image.init and model.text.init"
            )
        own = {name.removeprefix("scalars/"): t for name, t in moments.items() if name.startswith("scalars/")}
        updates = checkpoint.step - checkpoint.skipped
        scalars.load(own, updates)
        engine.load_moments({name: t for name, t in moments.items() if not name.startswith("scalars/")}, updates)
    return engine, scalars


def _shadow(loaded: LoadedModel) -> LoadedModel:
    model = copy.deepcopy(loaded.model)
    return replace(loaded, model=model.requires_grad_(False).eval())


def consolidated(run: Run) -> dict[str, torch.Tensor]:
    """Return every parameter of the model unsharded, by name, a tied one under each of its names. Collective."""
    model, whole = run.loaded.model, dict(run.engine.weights())
    owners = {id(p): name for name, p in model.named_parameters()}
    names = {name: owners[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    return model.state_dict() | {name: whole[owner] for name, owner in names.items() if owner in whole}


def model_to_evaluate(run: Run) -> LoadedModel:
    """Return the model in eval mode, unsharded on every rank. Collective."""
    if run.shadow is None:
        run.loaded.model.eval()
        return run.loaded
    weights = consolidated(run)
    shadow: nn.Module = run.shadow.model
    shadow.load_state_dict(weights)
    return run.shadow
