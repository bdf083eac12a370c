"""What a user would run instead: the full-precision twin of an architecture in other engines, timed side by side.

``prepare.prepare`` writes the twin once for every peer (PyTorch, ONNX Runtime, OpenVINO; float and int8) and the logits
that each must reproduce; ``timing.measure`` starts a worker process for every engine and lets them take turns. The
packed model takes part as one engine more. This file imports nothing: a worker pins itself to its cores first.
"""
