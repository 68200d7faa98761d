"""UniMatch V2: DPT on DINOv2 with an EMA teacher, which alone sees the weak views."""

from __future__ import annotations

from pathlib import Path

from .engine import After, Replace
from .framework import Framework
from .unimatch import arguments, scores, small_epochs, training_script

PLUGIN = """
channels = model.module.head.scratch.output_conv[0].in_channels
brpg = Plugin(
    cfg.get('brpg'), dataset=cfg['dataset'], num_classes=cfg['nclass'], feature_dim=channels,
    epochs=cfg['epochs'], iters_per_epoch=len(trainloader_u), logger=logger
).cuda()
brpg.tap(model, teacher=model_ema, features='head.scratch.refinenet1', logits='head.scratch.output_conv', stride=2)
brpg.add_projection(channels, optimizer.param_groups[1], teacher=True)
"""

UNIMATCH_V2_STEP = """
if brpg.enabled:
    (feat_x, logits_x), (feat_s, _) = brpg.take(2)  # img_x, then both strong views
    rep_x, rep_u_s = brpg.project(feat_x, feat_s)
    ignore_s = torch.cat((ignore_mask_cutmixed1, ignore_mask_cutmixed2)) == 255
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_x, labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=torch.cat((mask_u_w_cutmixed1, mask_u_w_cutmixed2)).masked_fill(ignore_s, 255),
            confidence=torch.cat((conf_u_w_cutmixed1, conf_u_w_cutmixed2)),
            **brpg.weak_view(*brpg.take_teacher(), valid=ignore_mask != 255)
        ),
        iteration=epoch * len(trainloader_u) + i
    )
"""

FIXMATCH_STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)  # x and u_s
    rep_x, rep_u_s = brpg.project(feat[:num_lb], feat[num_lb:])
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=mask_u_w_cutmixed.masked_fill(ignore_mask_cutmixed == 255, 255),
            confidence=conf_u_w_cutmixed,
            **brpg.weak_view(*brpg.take_teacher(), valid=ignore_mask != 255)
        ),
        iteration=epoch * len(trainloader_u) + i
    )
"""

TEACHER = (
    Replace(anchor="torch.no_grad()", within="main", code="brpg.teacher_pass()"),
    After(
        anchor="for buffer, buffer_ema in zip(model.buffers(), model_ema.buffers()): ...",
        within="main",
        code="brpg.update_teacher(ema_ratio)",
    ),
)

MARKER = "from model.semseg.dpt import *"
STEPS = {"unimatch_v2.py": UNIMATCH_V2_STEP, "fixmatch.py": FIXMATCH_STEP}
PASSES = {
    "unimatch_v2.py": (
        "model_ema(img_u_w)",
        "model(img_x)",
        "model(torch.cat((img_u_s1, img_u_s2)), comp_drop=True)",
    ),
    "fixmatch.py": ("model_ema(img_u_w)", "model(torch.cat((img_x, img_u_s)))"),
}

UNIMATCH_V2 = Framework(
    name="unimatch-v2",
    repository="https://github.com/LiheYoung/UniMatch-V2",
    commits=("f6afb4d",),
    scripts={
        script: (*training_script(PLUGIN, step, MARKER, PASSES[script], scores("_ema")), *TEACHER)
        for script, step in STEPS.items()
    },
    start={script: arguments("pascal", "366", f"{Path(script).stem}_brpg/dinov2_small/366") for script in STEPS},
    fixes={"short-epochs": small_epochs(tuple(STEPS))},
)
