"""Train a small network on the shipped digits, stop in the middle of an epoch, and go on as if nothing had happened.

``python examples/train_digits.py [FOLDER]`` takes seconds on a CPU, writes its checkpoint to FOLDER or to ``out``, and
shows a bar for every epoch where tqdm is installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ndtorch as nd

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None

DIGITS = Path(__file__).parent / "data" / "digits.npz"
EPOCHS = 10
Data = tuple[torch.Tensor, torch.Tensor]


def main(folder: Path) -> None:
    torch.set_num_threads(1)  # for a network this small, more of them cost more than they do
    train_data, test_data = split(nd.read(DIGITS))

    model, optimizer, loader = begin(train_data)
    steps = EPOCHS * len(loader)
    train(model, optimizer, loader, steps)
    count = len(train_data[0])
    print(f"{EPOCHS} epochs of {count} digits: reads {accuracy(model, test_data):.1%} of {len(test_data[0])} others")

    # The same again, but stopped at a batch in the middle of an epoch ...
    done = steps // 2 + 7
    stopped = begin(train_data)
    train(*stopped, done)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([part.state_dict() for part in stopped], folder / "checkpoint.pt")

    # ... and gone on with elsewhere.
    resumed = begin(train_data)
    for part, state in zip(resumed, torch.load(folder / "checkpoint.pt"), strict=True):
        part.load_state_dict(state)
    train(*resumed, steps - done)

    same = all(torch.equal(a, b) for a, b in zip(model.parameters(), resumed[0].parameters(), strict=True))
    print(f"stopped after batch {done} of {steps} and resumed: {'the same' if same else 'OTHER'} weights, bit for bit")
    if not same:
        raise SystemExit(1)


def split(digits: Any) -> tuple[Data, Data]:
    """Four fifths to train on, the rest to test with; pixels of 0 to 16 become planes of 0 to 1."""
    images = nd.image_to_torch(digits["images"][:].unsqueeze(-1), scale=1 / 16)
    labels = digits["labels"][:]
    rows = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    train, test = rows.tensor_split([len(rows) * 4 // 5])
    return (images[train], labels[train]), (images[test], labels[test])


def begin(data: Data) -> tuple[nn.Module, torch.optim.Optimizer, nd.Loader]:
    """All that a checkpoint has to hold."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
    loader = nd.Loader(data, batch_size=64, shuffle=True, seed=0)
    return model, torch.optim.Adam(model.parameters(), lr=3e-3), loader


def train(model: nn.Module, optimizer: torch.optim.Optimizer, loader: nd.Loader, steps: int) -> None:
    """Take so many steps, over as many epochs as that is."""
    while steps:
        for images, labels in with_bar(loader):
            loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps -= 1
            if not steps:
                break


def with_bar(loader: nd.Loader) -> Any:
    """The batches of an epoch, or what is left of it, with a bar where somebody looks."""
    batches = iter(loader)
    if tqdm is None:
        return batches
    description = f"epoch {loader.epoch}"
    done = len(loader) - len(batches)
    return tqdm(batches, description, total=len(loader), initial=done, leave=False, disable=None)


@torch.no_grad()
def accuracy(model: nn.Module, data: Data) -> float:
    images, labels = data
    return (model(images).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out"))
