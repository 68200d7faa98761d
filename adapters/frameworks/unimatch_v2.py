"""UniMatch V2: DPT on DINOv2 with an EMA teacher, which alone sees the weak views."""

from __future__ import annotations

from pathlib import Path

from ..patching.family import Family
from ..patching.lines import ENDING, Lines
from .unimatch import IMPORTS, SHORT_EPOCHS, arguments, record

PLUGIN = """
channels = $net.head.scratch.output_conv[0].in_channels
brpg = Plugin(
    $cfg.get('brpg'), dataset=$cfg['dataset'], num_classes=$cfg['nclass'], feature_dim=channels,
    epochs=$epochs, iters_per_epoch=$length$logger
)$move
brpg.tap($model$teacher, features='head.scratch.refinenet1', logits='head.scratch.output_conv', stride=2)
brpg.add_projection(channels, $optimizer.param_groups[$group]$average)
"""

UNIMATCH_V2_STEP = """
if brpg.enabled:
    (feat_x, logits_x), (feat_s, _) = brpg.take(2)  # $images_l, then both strong views
    rep_x, rep_u_s = brpg.project(feat_x, feat_s)
    $ignored
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_x, labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            **brpg.weak_view(*brpg.take_teacher()$valid)
        ),
        iteration=$iteration
    )
"""

FIXMATCH_STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)  # x and u_s
    rep_x, rep_u_s = brpg.project(feat[:$n_l], feat[$n_l:])
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits[:$n_l], labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            **brpg.weak_view(*brpg.take_teacher()$valid)
        ),
        iteration=$iteration
    )
"""

LINES = {
    "unimatch_v2.py": Lines(passes=("x", "s s +"), step=UNIMATCH_V2_STEP),
    "fixmatch.py": Lines(passes=("x s",), step=FIXMATCH_STEP),
}

UNIMATCH_V2 = Family(
    name="unimatch-v2",
    repository="https://github.com/LiheYoung/UniMatch-V2",
    commits=("f6afb4d",),
    scripts=dict.fromkeys(LINES, ()),
    lines=LINES,
    start={script: arguments("pascal", "366", f"{Path(script).stem}_brpg/dinov2_small/366") for script in LINES},
    network="model.semseg.dpt",
    layers=("head.scratch.refinenet1", "head.scratch.output_conv"),
    imports=IMPORTS,
    plugin=PLUGIN,
    ending=ENDING,
    record=record,
    teacher=True,
    fixes={"short-epochs": SHORT_EPOCHS},
)
