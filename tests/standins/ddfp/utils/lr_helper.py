from torch import optim


def get_optimizer(groups, cfg_optim):
    return optim.SGD(groups, **cfg_optim["kwargs"])


def get_scheduler(cfg_trainer, steps, optimizer, start_epoch):
    return PolyRate(cfg_trainer, steps, optimizer, start_epoch)


class PolyRate:
    """Sets the rates of its optimizer's groups."""

    def __init__(self, cfg_trainer, steps, optimizer, start_epoch):
        self.optimizer, self.power = optimizer, cfg_trainer["lr_scheduler"]["kwargs"]["power"]
        self.at, self.end = start_epoch * steps, cfg_trainer["epochs"] * steps
        self.first = self.get_lr()

    def get_lr(self):
        return [group["lr"] for group in self.optimizer.param_groups]

    def step(self):
        for group, first in zip(self.optimizer.param_groups, self.first):
            group["lr"] = first * (1 - self.at / self.end) ** self.power
        self.at += 1
