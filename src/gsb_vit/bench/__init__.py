"""Speed and cost of packed models, beside other engines. PyTorch runs in worker processes only."""
