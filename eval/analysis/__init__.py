"""How a model changes with the sequence length: the analyses of FlexiViT's sections 3.6 and 6 (arXiv 2212.08013).

    flexiclip analyze MODEL --suite openmoji --output runs/analysis [--only cka,attention] [--cue-conflict DIR]

run.py is the entry point. Each analysis is a module whose `analyze` takes a Subject (the model and its data) and returns a
Finding (numbers, a table and pictures); both are defined in subject.py.
"""
