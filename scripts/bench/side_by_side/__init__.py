"""The parts that the subjects of scripts/bench share.

turns.py         works that take turns in one process, and the ratios of paired rounds
process.py       one measurement in a fresh process, or in the ranks of torchrun
memory.py        peak memory of a process (Linux)
photographs.py   shards of pictures that compress and decode like photographs
captions.py      real captions, short and long
training.py      a training step as the trainer builds it, on random pairs
pair.py          one CLIP model as open_clip's and as ours, and a training step of each
agreement.py     the check that both compute the same loss and gradients
record.py        tables, goals and curves of one subject, printed and written as JSON
"""
