"""The mathematics: quantizers, layers and the fused training kernels (PyTorch)."""
