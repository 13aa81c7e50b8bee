"""Pretrain, export, fine-tune the exported encoder in plain torch: python examples/finetune_an_export.py"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import sslmed_dist as sd
from sslmed_dist.data.phantom import PHANTOMS
from sslmed_dist.verbs.export.tool import export_encoder

folder = Path(tempfile.mkdtemp())
PHANTOMS["shapes"](folder / "phantom", channels=1, train=240, val=60, test=120)
archive = str(folder / "phantom" / "shapes.npz")

# The recipe of `make demo`, shortened: every key of a recipe can be overridden, as on the command line.
words = [f"data.root={archive}", f"run.dir={folder}", "driver=local", "plan.epochs=2", "plan.batch_size=48"]
run = sd.train("demo_ray", [*words, "run.device=cpu"])
weights, _, card = export_encoder(run, folder / "encoder")
print(f"exported: {weights.name}, {card.name}")


def split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 (N, C, H, W) and class numbers (N,) of a split."""
    dataset = sd.data.DATASETS["medmnist"](root=archive, split=name)
    return sd.images_of(dataset), dataset.labels


# The export is read back as any file of weights: its card says size and normalisation. `view` applies them.
frozen = sd.load_encoder(weights)
(train, labels), (test, answers) = split("train"), split("test")
network = nn.Sequential(frozen.encoder, nn.Linear(frozen.feature_dim, int(labels.max()) + 1)).train()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
for _ in range(3):
    for rows in torch.randperm(len(train)).split(48):
        value = nn.functional.cross_entropy(network(frozen.view(train[rows])), labels[rows])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
network.eval()
with torch.no_grad():
    right = (network(frozen.view(test)).argmax(1) == answers).double().mean()
print(f"phantom test accuracy after 3 epochs of fine-tuning: {right:.2f}")
