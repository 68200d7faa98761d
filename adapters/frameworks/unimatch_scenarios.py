"""UniMatch's other scenarios: change detection in remote sensing, and cardiac segmentation."""

from __future__ import annotations

from dataclasses import replace

from ..patching.found import Found
from .unimatch import LINES, UNIMATCH, arguments, record_call
from .unimatch_v2 import LINES as V2_LINES
from .unimatch_v2 import UNIMATCH_V2

SCRIPT = "unimatch.py"


def changes(found: Found) -> str:
    """Writes the IoU of what has changed and what has not."""
    iou = found.surroundings.names["score"]
    return record_call(found, f"sum({iou}) / 2, {{'unchanged': {iou}[0], 'changed': {iou}[1]}}")


REMOTE_SENSING = replace(
    UNIMATCH,
    name="unimatch-remote-sensing",
    home="more-scenarios/remote-sensing",
    scripts={SCRIPT: ()},
    lines={SCRIPT: LINES[SCRIPT]},
    start={SCRIPT: arguments("levir", "5%", "unimatch_brpg/r50/5%")},
    marker="dataset.semicd",
    record=changes,
)

V2_SCRIPT = "unimatch_v2.py"
# Unlike in UniMatch V2's main script, the student itself labels the weak view, and the EMA model is only evaluated.
V2_REMOTE_SENSING = replace(
    UNIMATCH_V2,
    name="unimatch-v2-remote-sensing",
    home="remote-sensing",
    scripts={V2_SCRIPT: ()},
    lines={V2_SCRIPT: V2_LINES[V2_SCRIPT]},
    start={V2_SCRIPT: arguments("levir", "5%", "unimatch_v2_brpg/dinov2_small/5%")},
    marker="dataset.semicd",
    record=changes,
)

UNET_PLUGIN = """
decoder = $net.decoder
brpg = Plugin($cfg.get('brpg'), dataset=$cfg['dataset'], num_classes=$cfg['nclass'], feature_dim=64,
              epochs=$epochs, iters_per_epoch=$length$logger)$move
brpg.tap($model$teacher, features='decoder.up4', logits='decoder.out_conv', stride=2)
brpg.add_projection(decoder.out_conv.in_channels, $optimizer.param_groups[$group])
"""


def dice(found: Found) -> str:
    """Writes the mean Dice."""
    return record_call(found, f"{found.surroundings.names['score']}, measure='dice'")


MEDICAL = replace(
    UNIMATCH,
    name="unimatch-medical",
    home="more-scenarios/medical",
    scripts={SCRIPT: ()},
    lines={SCRIPT: LINES[SCRIPT]},
    start={SCRIPT: arguments("acdc", "7", "unimatch_brpg/unet/7")},
    marker="dataset.acdc",
    network="model.unet",
    layers=("decoder",),
    plugin=UNET_PLUGIN,
    record=dice,
)
