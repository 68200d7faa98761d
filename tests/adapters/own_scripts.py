"""Training scripts of no known framework."""

from __future__ import annotations

OWN = """
import copy
import json

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.classifier = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.classifier(self.decoder(x))


def move(teacher, student, keep):
    for old, new in zip(teacher.parameters(), student.parameters()):
        old.data.lerp_(new.data, 1 - keep)


def run(device="cpu"):
    torch.manual_seed(0)
    num_classes = 2
    net = Net().to(device)
    mean = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    images = torch.rand(8, 3, 16, 16)
    known = DataLoader(list(zip(images, (images[:, 0] > 0.5).long())), batch_size=2)
    unknown = DataLoader(list(zip(images, images + 0.1)), batch_size=2)
    for epoch in range(3):
        for (a, truth), (weak, strong) in zip(known, unknown):
            with torch.no_grad():
                sure, best = mean(weak).softmax(1).max(1)
            out = net(torch.cat([a, strong]))
            total = F.cross_entropy(out[: len(a)], truth) + F.cross_entropy(out[len(a) :], best)
            opt.zero_grad()
            total.backward()
            opt.step()
            move(mean, net, 0.9)
            print(json.dumps(total.item()))
        torch.save(net.state_dict(), "net.pth")


if __name__ == "__main__":
    run()
"""
COUNTED = OWN.replace(
    "for (a, truth), (weak, strong) in zip(known, unknown)",
    "for i, ((a, truth), (weak, strong)) in enumerate(zip(known, unknown))",
)

TRAINER = (
    OWN[: OWN.index("def run(")].strip()
    + """


class Trainer:
    def __init__(self, device="cpu"):
        torch.manual_seed(0)
        self.net = Net().to(device)
        self.mean = copy.deepcopy(self.net)
        self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
        images = torch.rand(8, 3, 16, 16)
        self.known = DataLoader(list(zip(images, (images[:, 0] > 0.5).long())), batch_size=2)
        self.unknown = DataLoader(list(zip(images, images + 0.1)), batch_size=2)
        self.steps = 0

    def fit(self):
        for epoch in range(3):
            self.train_epoch(epoch)
            torch.save(self.net.state_dict(), "net.pth")

    def train_epoch(self, epoch):
        for labeled, unlabeled in zip(self.known, self.unknown):
            total = self.training_step(labeled, unlabeled)
            self.opt.zero_grad()
            total.backward()
            self.opt.step()
            self.move(0.9)
            self.steps += 1
            print(json.dumps(total.item()))

    def training_step(self, labeled, unlabeled):
        (a, truth), (weak, strong) = labeled, unlabeled
        with torch.no_grad():
            sure, best = self.mean(weak).softmax(1).max(1)
        out = self.net(torch.cat([a, strong]))
        return F.cross_entropy(out[: len(a)], truth) + F.cross_entropy(out[len(a) :], best)

    def move(self, keep):
        move(self.mean, self.net, keep)


if __name__ == "__main__":
    Trainer().fit()
"""
)

_LOOP = TRAINER.index("    def fit(self)")
ACCUMULATING = (
    TRAINER[:_LOOP]
    .replace("class Trainer:", "def again(loader):\n    while True:\n        yield from loader\n\n\nclass Trainer:")
    .replace(
        "        self.steps = 0\n",
        "        self.first, self.steps = 0, 0\n        if os.path.exists('net.pth'):\n            self.load()\n",
    )
    .replace("import json\n", "import json\nimport os\n")
    + """    def load(self):
        saved = torch.load("net.pth")
        self.net.load_state_dict(saved["net"])
        self.opt.load_state_dict(saved["opt"])
        self.first, self.steps = saved["epoch"], saved["steps"]

    def save(self, epoch):
        state = {"net": self.net.state_dict(), "opt": self.opt.state_dict(), "epoch": epoch + 1, "steps": self.steps}
        torch.save(state, "net.pth")

    def fit(self):
        for epoch in range(self.first, 3):
            self.train_epoch(epoch)
            self.save(epoch)

    def train_epoch(self, epoch):
        known, unknown = again(self.known), again(self.unknown)
        for _ in range(4):
            for _ in range(2):
                total, shown = self.training_step(next(known), next(unknown))
                (total / 2).backward()
            self.opt.step()
            self.opt.zero_grad()
            self.steps += 1
            self.move()
            print(json.dumps(shown))

    def training_step(self, labeled, unlabeled):
        (a, truth), (weak, strong) = labeled, unlabeled
        with torch.no_grad():
            sure, best = self.mean(weak).softmax(1).max(1)
        out = self.net(torch.cat([a, strong]))
        total = F.cross_entropy(out[: len(a)], truth) + F.cross_entropy(out[len(a) :], best)
        return total, total.item()

    def move(self):
        keep = min(1 - 1 / (self.steps + 1), 0.9)
        for old, new in zip(self.mean.parameters(), self.net.parameters()):
            old.data.mul_(keep).add_(new.data, alpha=1 - keep)
        for old, new in zip(self.mean.buffers(), self.net.buffers()):
            old.copy_(new)


if __name__ == "__main__":
    Trainer().fit()
"""
)
"""Gradients of two batches for each step, endless loaders, and methods that save and load."""

ITERATIONS = (
    OWN[: OWN.index("def run(")]
    + """def again(loader):
    while True:
        yield from loader


def validate(net):
    return float(net(torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))).mean())


def run(device="cpu", last=12):
    torch.manual_seed(0)
    num_classes = 2
    net = Net().to(device)
    mean = copy.deepcopy(net)
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    images = torch.rand(8, 3, 16, 16)
    known = again(DataLoader(list(zip(images, (images[:, 0] > 0.5).long())), batch_size=2))
    unknown = again(DataLoader(list(zip(images, images + 0.1)), batch_size=2))
    iteration, top = 0, 0.0
    if os.path.exists("net.pth"):
        saved = torch.load("net.pth")
        net.load_state_dict(saved["net"])
        opt.load_state_dict(saved["opt"])
        iteration = saved["iteration"]
    while iteration < last:
        (a, truth), (weak, strong) = next(known), next(unknown)
        with torch.no_grad():
            sure, best = mean(weak).softmax(1).max(1)
        out = net(torch.cat([a, strong]))
        total = F.cross_entropy(out[: len(a)], truth) + F.cross_entropy(out[len(a) :], best)
        opt.zero_grad()
        total.backward()
        opt.step()
        with torch.no_grad():
            for old, new in zip(mean.parameters(), net.parameters()):
                old.mul_(0.9).add_(new, alpha=0.1)
        iteration += 1
        print(json.dumps(total.item()))
        if iteration % 4 == 0:
            state = {"net": net.state_dict(), "opt": opt.state_dict(), "iteration": iteration}
            torch.save(state, "net.pth")
            miou = validate(mean)
            top = max(top, miou)


if __name__ == "__main__":
    run()
"""
).replace("import json\n", "import json\nimport os\n")
"""Iterations are counted, and no epochs."""
