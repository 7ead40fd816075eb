"""Training: everything from a recipe to a trained model folder.

    trainer.py            the loop, and what happens around its steps; setup.py builds what the loop needs
    step.py               one training step, the same for every objective and engine
    objectives.py         what a run trains towards; text_features.py computes the features of captions before the first step
    engine.py             the torch engine, the optimizers and the precision; deepspeed.py is the other engine
    towers.py             the modules that an engine trains
    blocks.py             compiled and recomputed blocks, and memory that stays with the process on CPUs
    checkpoint.py         the format of a checkpoint; checkpoint_writer.py writes it while training goes on
    stores.py             where checkpoints are kept; remote_store.py does this for object stores
    resume.py             which checkpoint a run goes on from, and whether the recipe is still that run's
    run_lock.py           one run at a time in a run folder
    ranks.py              the processes of a run and their context; heartbeat.py notices lost ones, signals.py handles Ctrl-C and
                          SIGTERM
    feed.py               waiting for batches, with a time limit
    logs.py               the log files and the progress display; nonfinite.py handles steps with a NaN or Inf

The command is `flexiclip train RECIPE [key=value ...]`, also under torchrun or deepspeed.
"""
