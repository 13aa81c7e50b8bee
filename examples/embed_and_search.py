"""Features of images, the nearest ones, kNN against the labels: python examples/embed_and_search.py [RUN]"""

import sys
import tempfile
from pathlib import Path

import torch

import sslmed_dist as sd
from sslmed_dist.data.phantom import PHANTOMS

folder = Path(tempfile.mkdtemp())
PHANTOMS["shapes"](folder / "phantom", channels=1, train=240, val=60, test=120)
archive = str(folder / "phantom" / "shapes.npz")
if len(sys.argv) > 1:  # a run folder, a checkpoint or an export of your own, of greyscale images
    run = Path(sys.argv[1])
else:
    words = [f"data.root={archive}", f"run.dir={folder}", "driver=local", "plan.epochs=2", "plan.batch_size=48"]
    run = sd.train("demo_ray", [*words, "run.device=cpu"])

dataset = sd.data.DATASETS["medmnist"](root=archive, split="test")
images = sd.images_of(dataset)
features = sd.load_encoder(run)(images)  # uint8 as stored in, float32 (N, D) out
print(f"features: {tuple(features.shape)}")

unit = torch.nn.functional.normalize(features, dim=1)
nearest = (unit @ unit.T).fill_diagonal_(-2).topk(3, dim=1).indices
print(f"nearest to image 0: {nearest[0].tolist()}")

votes = sd.knn(features, dataset.labels, k=5)  # each image is asked by the others
pixels = sd.knn(images.flatten(1), dataset.labels, k=5)  # the floor: the image itself
for name, answer in (("encoder", votes), ("raw pixels", pixels)):
    right = (answer.argmax(1) == dataset.labels).double().mean()
    print(f"5-NN on {len(images)} phantoms, leave one out, {name}: {right:.2f}")
