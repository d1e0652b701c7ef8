"""A cell for each kind of output, the same for every tool that runs cells on ranks.

They use what all tools give them or `SETUP` makes: ``rank`` and ``torch``.
"""

from __future__ import annotations

SETUP = """\
import os
import torch
rank = int(os.environ["RANK"])
"""

LINES = """\
settings = {"model": "small", "width": 256, "depth": 4, "dropout": 0.1, "batch": 32}
if rank == 2:
    settings["dropout"] = 0.01
for name, value in settings.items():
    print(f"{name:8} {value}")
"""

NUMBERS = """\
torch.randn(1000, generator=torch.Generator().manual_seed(rank)).mean().item()
"""

TENSORS = """\
torch.arange(6).reshape(2, 3) * (rank + 1)
"""

FIGURES = """\
import matplotlib.pyplot as plt
figure, axes = plt.subplots(figsize=(2.6, 1.6), dpi=72)
axes.plot(torch.randn(100, generator=torch.Generator().manual_seed(rank)).cumsum(0))
plt.show()
"""

TABLES = """\
import pandas as pd
pd.DataFrame({"step": [0, 1, 2], "loss": [2.3, 1.9 + rank / 10, 1.6 + rank / 10]})
"""

LONG = """\
from torch import nn
layer = nn.TransformerEncoderLayer(d_model=64, nhead=4, batch_first=True)
model = nn.TransformerEncoder(layer, num_layers=12)
for name, parameter in model.named_parameters():
    print(f"{name:36} {tuple(parameter.shape)}")
"""

PROGRESS = """\
import time
from tqdm import tqdm
for step in tqdm(range(40), desc="training"):
    time.sleep(0.03 if rank == 1 else 0.02)
print("loss", round(2.0 / (step + 1), 3))
"""

FAILURE = """\
def step(batch):
    return batch.reshape(8, 8).mean()

step(torch.ones(64 if rank == 0 else 63))
"""

KINDS = {
    "lines": LINES,
    "numbers": NUMBERS,
    "tensors": TENSORS,
    "figures": FIGURES,
    "tables": TABLES,
    "long": LONG,
    "progress": PROGRESS,
    "failure": FAILURE,
}
