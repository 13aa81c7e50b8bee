"""A loss and the views of sslmed_dist in a training loop of your own: python examples/loss_in_your_loop.py"""

import tempfile
from pathlib import Path

import torch
from torch import nn

import sslmed_dist as sd
from sslmed_dist.data.phantom import PHANTOMS

# Phantom images (two shapes in noise): uint8 (N, 1, H, W). Put your own here.
folder = Path(tempfile.mkdtemp())
PHANTOMS["shapes"](folder, channels=1, train=256, val=32, test=64)
train = sd.data.DATASETS["medmnist"](root=str(folder / "shapes.npz"), split="train")
images = sd.images_of(train)

views = sd.views.ContrastiveViews(size=32, channels=1, value_range=(0, 255), jitter=(0.4, 0.4, 0.0, 0.0), grey=0.0)
loss = sd.losses.MIOv3(temperature=sd.losses.Dystress(0.1, 0.2))  # a temperature for each pair, by its cosine
encoder = sd.models.ENCODERS["resnet"](depth=9, stem="cifar", width=8, channels=1)
head = nn.Sequential(nn.Linear(encoder.feature_dim, 64), nn.ReLU(), nn.Linear(64, 32))
optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)

for epoch in range(3):
    for rows in torch.randperm(len(images)).split(64):
        # "index" keys the randomness: an image gets the same views in the same epoch, wherever it stands in a batch.
        two = views({"images": images[rows], "index": rows, "draw": torch.zeros_like(rows)}, seed=0, epoch=epoch)
        value = loss(head(encoder(two["views_0"])), head(encoder(two["views_1"])))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    print(f"epoch {epoch}: loss {value.item():.3f}")
