"""The kernels, and what chooses between them.

| backend | runs |
|---|---|
| cpu   | the CPU, every dtype, any memory order whose slabs lie in a Layout (layout.py): Numba |
| gpu   | NVIDIA GPUs of compute capability 8.0 and up, the same but float64: Triton |
| eager | everything else: plain torch in float64, any device and strides |

`using` runs norms with one of them. backend.py says what a backend does, and which one a call is given to.
What a kernel found enters running statistics through its Found (call.py), or it is left to torch.
"""

from slabnorm.kernels.backend import using

__all__ = ["using"]
