"""The norms on a GPU: slabnorm's Triton kernels beside PyTorch, torch.compile and Liger."""
