"""The device side: the packed file, the NumPy reference and the classifier. No PyTorch."""
