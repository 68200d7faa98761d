import torch
import torch.distributed as dist
import torch.nn.functional as F


def surest_pixels(labels, logits, share=0.8):
    """The labels, without those of pixels where the teacher is least sure."""
    confidence = logits.softmax(dim=1).amax(dim=1)
    return labels.masked_fill(confidence < confidence.quantile(1 - share), 255)


def contrast(rep, labels, rep_teacher, memobank, prototype):
    """Pulls pixels to the prototypes of their classes, away from the teacher's other representations."""
    labels = F.interpolate(labels[:, None].float(), rep.shape[2:])[:, 0].long()
    rep, rep_teacher = (F.normalize(x.movedim(1, 3), dim=-1) for x in (rep, rep_teacher))
    loss = 0 * rep.sum()
    for index in labels.unique().tolist():
        memobank[index] = torch.cat((memobank[index], rep_teacher[labels != index].cpu()))[-100:]
        prototype[index] = rep_teacher[labels == index].mean(0)
        others = torch.cat((prototype[index : index + 1], memobank[index])).to(rep.device)
        cosine = rep[labels == index][:50] @ others.T
        loss = loss - (cosine / 0.5).log_softmax(dim=1)[:, 0].mean()
    dist.all_reduce(loss)
    return prototype, loss / dist.get_world_size()
