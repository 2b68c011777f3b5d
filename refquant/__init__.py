"""The executable truth of PyTorch's quantization: bit for bit, without torch."""

import refquant.kernels as kernels
