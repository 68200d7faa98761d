"""SemiVL: UniMatch on CLIP, with a decoder that works on one class at a time. It never resumes."""

from __future__ import annotations

from ..editing.edit import AddArgument, After, Before, Require
from ..patching.framework import Framework
from .unimatch import IMPORTS

SCRIPT = "semivl.py"

# With mmseg's optimizer each parameter is a group of its own, so the projection joins the one of the last layer.
# Other networks than SemiVL's have no such layers: tap() says so.
PLUGIN = """
brpg = Plugin(cfg.get('brpg'), dataset=cfg['dataset'], num_classes=cfg['nclass'], feature_dim=256,
              epochs=cfg['epochs'], iters_per_epoch=len(trainloader_u), logger=logger).cuda()
if brpg.enabled:
    brpg.tap(model, features='decode_head.up2', logits='decode_head.head')
    classifier = model.module.decode_head.head
    (group,) = (group for group in optimizer.param_groups if any(p is classifier.weight for p in group['params']))
    brpg.add_projection(classifier.in_channels * cfg['nclass'], group)
"""

STEP = """
if brpg.enabled:
    # The decoder has a map for each image and class. A pixel's features are those of all classes, side by side.
    # The first pass holds x, w and their perturbed copies, the second s1 and s2.
    (feat_w, logits_w), (feat_s, _) = (
        [maps.unflatten(0, (-1, cfg['nclass'])).flatten(1, 2) for maps in pair] for pair in brpg.take(2))
    num_lb, num_ulb = img_x.shape[0], img_w.shape[0]
    rep_x, rep_s = brpg.project(feat_w[:num_lb], feat_s)
    weak = slice(num_lb, num_lb + num_ulb)
    ignore_s = torch.cat((ignore_mask_mixed1, ignore_mask_mixed2)) == 255
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_s,
            pseudo_labels=torch.cat((mask_w_mixed1, mask_w_mixed2)).masked_fill(ignore_s, 255),
            confidence=torch.cat((conf_w_mixed1, conf_w_mixed2)),
            **brpg.weak_view(feat_w[weak], logits_w[weak], valid=ignore_mask != 255)),
        iteration=iters)
"""

RECORD = """
brpg.record(save_path, epoch, mIoU, dict(zip(CLASSES[cfg['dataset']], iou_class)), settings=cfg,
            split=labeled_id_path)
"""

BEST = "os.path.join(save_path, 'best.pth')"

LOCAL_RANK = AddArgument(
    anchor="parser.add_argument('--local_rank', default=0, type=int)",
    code="'--local-rank'",
    position=1,
    optional=True,
)
EDITS = (
    Require(anchor="from model.builder import *"),
    After(anchor="from third_party.unimatch.util.dist_helper import *", code=IMPORTS),
    LOCAL_RANK,
    After(anchor="epoch = -1", code=PLUGIN),
    Require(anchor="model(torch.cat((img_x, img_w)), need_fp=True)"),
    Require(anchor="model(torch.cat((img_s1, img_s2)))"),
    Before(anchor="optimizer.zero_grad()", followed_by="loss.backward()", code=STEP),
    After(anchor="for k, v in log_avg.avgs.items(): ...", code="brpg.log(writer, iters)"),
    After(anchor="writer.add_scalar('eval/mIoU', mIoU, epoch)", code=RECORD),
    Before(anchor=f"torch.save(checkpoint, {BEST})", code=f"brpg.save({BEST}, epoch)"),
)

SEMIVL = Framework(
    name="semivl",
    repository="https://github.com/google-research/semivl",
    commits=("13ee65d",),
    scripts={SCRIPT: EDITS},
    start={SCRIPT: "--config=configs/generated/exp-40/CONFIG.yaml"},
    resumes=False,
)
