"""AllSpark: a transformer that labels the very view of the unlabeled images that it trains with."""

from __future__ import annotations

from dataclasses import replace

from ..patching.lines import Lines
from .unimatch import UNIMATCH, arguments

# The student labels its own view of the unlabeled images, in a pass without gradient: that is the weak view.
PLUGIN = """
classifier = $net.decoder.decoder.linear_pred
brpg = Plugin($cfg.get('brpg'), dataset=$cfg['dataset'], num_classes=$cfg['nclass'], feature_dim=256,
              epochs=$epochs, iters_per_epoch=$length$logger)$move
brpg.tap($model$teacher, features='decoder.decoder.linear_fuse', logits='decoder.decoder.linear_pred')
brpg.add_projection(classifier.in_channels, $optimizer.param_groups[$group])
"""

STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)  # x and u_s
    rep_x, rep_u_s = brpg.project(feat[:$n_l], feat[$n_l:])
    $loss = $loss + brpg(
        LabeledBatch(features=rep_x, logits=logits[:$n_l], labels=$labels),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=$pseudo,
            confidence=$confidence,
            **brpg.weak_view(*brpg.take_teacher()$valid)),
        iteration=$iteration)
"""

SCRIPT = "train_allspark.py"
ALLSPARK = replace(
    UNIMATCH,
    name="allspark",
    repository="https://github.com/xmed-lab/AllSpark",
    commits=("9da63e2",),
    scripts={SCRIPT: ()},
    lines={SCRIPT: Lines(passes=("x s",), step=STEP)},
    start={SCRIPT: arguments("pascal", "92", "allspark_brpg/92").replace("configs/pascal", "configs/pascal_allspark")},
    network="model.model_helper",
    layers=(),
    plugin=PLUGIN,
    teacher=True,
)
