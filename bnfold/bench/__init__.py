"""How fast a model is before and after folding: ``bnfold bench``.

turns.measure       times callables in turn, each round in a new order
targets             what is timed: torch eager, torch.compile, ONNX Runtime
api.bench           both together, for a pair of models
result              what was found, as plain data
"""
