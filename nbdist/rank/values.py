"""Variables of a rank, on their way to the notebook and from it."""

from __future__ import annotations

from typing import Any

import torch

from nbdist.folder import SessionFolder
from nbdist.packing import TensorBytes, ValueFolder, writer_name


def value_folder(folder: SessionFolder, rank: int) -> ValueFolder:
    """Return where large values of *rank* lie on their way."""
    return ValueFolder(folder.shared_memory(), folder.path, writer_name(rank))


def make_tensor(source: TensorBytes) -> torch.Tensor:
    """Return a CPU tensor over the bytes of *source*; of a module's parameter, a parameter."""
    tensor = _plain_tensor(source)
    if source.is_parameter:
        return torch.nn.Parameter(tensor, source.requires_grad)
    return tensor.requires_grad_(source.requires_grad)


def _plain_tensor(source: TensorBytes) -> torch.Tensor:
    dtype = getattr(torch, source.dtype)
    stored = torch.float32 if source.is_widened else dtype
    if not source.data.nbytes:
        return torch.empty(source.shape, dtype=dtype)
    data: Any = source.data if not source.data.readonly else bytearray(source.data)
    return torch.frombuffer(data, dtype=torch.uint8).view(stored).reshape(source.shape).to(dtype)
