import torch
import torch.distributed as dist


class ThreshController:
    """A threshold of confidence that follows the predictions of all processes."""

    def __init__(self, nclass, momentum, thresh_init):
        self.thresh_global = torch.tensor(thresh_init).cuda()
        self.momentum = momentum

    def thresh_update(self, pred, ignore_mask, update_g=False):
        confidence = pred.softmax(dim=1).amax(dim=1)[ignore_mask != 255].max().reshape(1)
        every = torch.zeros(dist.get_world_size(), device=confidence.device)
        dist.all_gather_into_tensor(every, confidence)
        if update_g:
            self.thresh_global = self.momentum * self.thresh_global + (1 - self.momentum) * every.mean()

    def get_thresh_global(self):
        return self.thresh_global
