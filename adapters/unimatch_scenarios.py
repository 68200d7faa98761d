"""UniMatch's other scenarios: change detection in remote sensing, and cardiac segmentation."""

from __future__ import annotations

from .engine import After, Replace
from .framework import Framework
from .unimatch import PLUGIN, UNIMATCH_STEP, arguments, small_epochs, training_script
from .unimatch_v2 import PLUGIN as V2_PLUGIN
from .unimatch_v2 import UNIMATCH_V2_STEP

SCRIPT = "unimatch.py"

CHANGES_RECORD = """
brpg.record(args.save_path, epoch, sum({iou}) / 2, {{'unchanged': {iou}[0], 'changed': {iou}[1]}}, settings=cfg,
            split=args.labeled_id_path)
"""


def changes(average: str = "") -> After:
    """Writes down each validation's IoU; ``average`` is what the names end in of the scores that count."""
    return After(
        anchor=f"writer.add_scalar('eval/overall_accuracy{average}', overall_acc{average}, epoch)",
        within="main",
        code=CHANGES_RECORD.format(iou=f"iou_class{average}"),
    )


REMOTE_SENSING = Framework(
    name="unimatch-remote-sensing",
    repository="https://github.com/LiheYoung/UniMatch",
    commits=("0324f3d",),
    home="more-scenarios/remote-sensing",
    scripts={
        SCRIPT: training_script(
            PLUGIN,
            UNIMATCH_STEP,
            marker="from dataset.semicd import *",
            passes=(
                "model(torch.cat((imgA_x, imgA_u_w)), torch.cat((imgB_x, imgB_u_w)), True)",
                "model(torch.cat((imgA_u_s1, imgA_u_s2)), torch.cat((imgB_u_s1, imgB_u_s2)))",
            ),
            record=changes(),
        )
    },
    start={SCRIPT: arguments("levir", "5%", "unimatch_brpg/r50/5%")},
    fixes={"short-epochs": small_epochs((SCRIPT,))},
)

V2_SCRIPT = "unimatch_v2.py"
# Unlike in UniMatch V2's main script, the student itself labels the weak view, and the EMA model is only evaluated.
V2_REMOTE_SENSING = Framework(
    name="unimatch-v2-remote-sensing",
    repository="https://github.com/LiheYoung/UniMatch-V2",
    commits=("f6afb4d",),
    home="remote-sensing",
    scripts={
        V2_SCRIPT: (
            *training_script(
                V2_PLUGIN.replace("teacher=model_ema", "teacher=model").replace(", teacher=True", ""),
                UNIMATCH_V2_STEP,
                marker="from dataset.semicd import *",
                passes=(
                    "model(imgA_u_w, imgB_u_w)",
                    "model(imgA_x, imgB_x)",
                    "model(torch.cat((imgA_u_s1, imgA_u_s2)), torch.cat((imgB_u_s1, imgB_u_s2)), comp_drop=True)",
                ),
                record=changes("_ema"),
            ),
            Replace(anchor="torch.no_grad()", within="main", code="brpg.teacher_pass()"),
        )
    },
    start={V2_SCRIPT: arguments("levir", "5%", "unimatch_v2_brpg/dinov2_small/5%")},
    fixes={"short-epochs": small_epochs((V2_SCRIPT,))},
)

UNET_PLUGIN = """
decoder = model.module.decoder
brpg = Plugin(cfg.get('brpg'), dataset=cfg['dataset'], num_classes=cfg['nclass'], feature_dim=64,
              epochs=cfg['epochs'], iters_per_epoch=len(trainloader_u), logger=logger).cuda()
brpg.tap(model, features='decoder.up4', logits='decoder.out_conv', stride=2)
brpg.add_projection(decoder.out_conv.in_channels, optimizer.param_groups[0])
"""

UNET_STEP = """
if brpg.enabled:
    # the first pass holds x, u_w and their perturbed copies, the second u_s1 and u_s2
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:num_lb], feat_s)
    u_w = slice(num_lb, num_lb + num_ulb)
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=torch.cat((mask_u_w_cutmixed1, mask_u_w_cutmixed2)),
            confidence=torch.cat((conf_u_w_cutmixed1, conf_u_w_cutmixed2)),
            **brpg.weak_view(feat_w[u_w], logits_w[u_w])),
        iteration=epoch * len(trainloader_u) + i)
"""

DICE_RECORD = """
brpg.record(args.save_path, epoch, mean_dice, measure='dice', settings=cfg, split=args.labeled_id_path)
"""

MEDICAL = Framework(
    name="unimatch-medical",
    repository="https://github.com/LiheYoung/UniMatch",
    commits=("0324f3d",),
    home="more-scenarios/medical",
    scripts={
        SCRIPT: training_script(
            UNET_PLUGIN,
            UNET_STEP,
            marker="from dataset.acdc import *",
            passes=("model(torch.cat((img_x, img_u_w)), True)", "model(torch.cat((img_u_s1, img_u_s2)))"),
            record=After(
                anchor="writer.add_scalar('eval/MeanDice', mean_dice, epoch)", within="main", code=DICE_RECORD
            ),
        )
    },
    start={SCRIPT: arguments("acdc", "7", "unimatch_brpg/unet/7")},
    fixes={"short-epochs": small_epochs((SCRIPT,))},
)
