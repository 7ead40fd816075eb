"""Makes the benchmarks of docs/explanation/benchmarks.md: `python -m scripts.bench --help`.

__main__.py    the command: runs subjects and writes the page
subjects/      one module per subject, which measures and writes a record
measure.py     works that take turns, measurements in fresh processes, and the memory of a process
record.py      tables, goals and curves of one subject, printed and written as docs/explanation/benchmarks/SUBJECT.json
page.py        docs/explanation/benchmarks.md, from the records
samples.py     shards of pictures that compress and decode like photographs, and real captions
training.py    a training step as the trainer builds it, on random pairs
pair.py        one CLIP model as open_clip's and as ours, a training step of each, and the check that both agree
"""
