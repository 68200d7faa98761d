"""CorrMatch: UniMatch with one strong view, and pseudo labels that spread along correlations. It never resumes."""

from __future__ import annotations

from .engine import After, Before, Replace
from .framework import Fix, Framework
from .unimatch import PLUGIN, arguments, training_step

STEP = """
if brpg.enabled:
    # the first pass holds x, u_w and their perturbed copies, the second u_s1
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:num_lb], feat_s)
    u_w = slice(num_lb, num_lb + num_ulb)
    # a label that has spread to a pixel is as sure as what CorrMatch trains with
    sure = conf_u_w_cutmixed1.clamp(min=float(thresh_global))
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=mask_u_w_cutmixed1.masked_fill(ignore_mask_cutmixed1 == 255, 255),
            confidence=torch.where(conf_fliter_u_w_without_cutmix, sure, conf_u_w_cutmixed1),
            **brpg.weak_view(feat_w[u_w], logits_w[u_w], valid=ignore_mask != 255)),
        iteration=epoch * len(trainloader_u) + i)
"""

RECORD = """
brpg.record(args.save_path, epoch, mIOU, {f'class {index}': 100 * iou for index, iou in enumerate(class_IOU)},
            settings=cfg, split=args.labeled_id_path)
"""

SCRIPT = "corrmatch.py"
EDITS = (
    *training_step(
        STEP,
        marker="from util.thresh_helper import ThreshController",
        passes=(
            "model(torch.cat((img_x, img_u_w)), need_fp=True, use_corr=True)",
            "model(img_u_s1, need_fp=False, use_corr=True)",
        ),
    ),
    After(anchor="thresh_controller = ThreshController(...)", within="main", code=PLUGIN),
    After(
        anchor="logger.info('***** ClassIOU ***** >>>> \\n{}\\n'.format(class_IOU))",
        within="main",
        code=RECORD,
    ),
    Before(
        anchor="torch.save(model.module.state_dict(), ...)",
        within="main",
        code="brpg.save(os.path.join(args.save_path, 'best.pth'), epoch)",
    ),
)

CORRMATCH = Framework(
    name="corrmatch",
    repository="https://github.com/BBBBchan/CorrMatch",
    commits=("44f9f9e",),
    scripts={SCRIPT: EDITS},
    start={SCRIPT: arguments("pascal", "92", "92/corrmatch_brpg", folder="partitions")},
    fixes={
        "visible-devices": Fix(
            summary="it takes GPUs 0 and 1, whatever CUDA_VISIBLE_DEVICES says",
            edits={
                SCRIPT: (
                    Replace(
                        anchor='os.environ["CUDA_VISIBLE_DEVICES"] = "0,1"',
                        code='os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0,1")',
                    ),
                )
            },
        )
    },
)
