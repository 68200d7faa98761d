"""PrevMatch: UniMatch with mixed precision, guided by earlier states of its network. It never resumes."""

from __future__ import annotations

from .engine import After, Before, Require
from .framework import Framework
from .unimatch import BEST, IMPORTS, LATEST, LOCAL_RANK, PLUGIN, UNIMATCH_STEP, arguments, scores, small_epochs

SCRIPT = "prevmatch.py"

STEP = UNIMATCH_STEP.replace("loss = loss + brpg", "total_loss = total_loss + brpg")

MIX = """
if amp:
    pred_u_w_mix = model(img_u_w_mix).detach()
    ...
"""
FORGET = """
if amp and brpg.enabled:
    brpg.take(1)  # that pass has a gradient, which nobody needs
"""

LOSS = """
if len(prev_model_list) != 0:
    loss_u_s1_prev = criterion_u(pred_u_s1, mask_u_w_cutmixed1_prev)
    ...
"""

EDITS = (
    After(anchor="from util.dist_helper import *", code=IMPORTS),
    LOCAL_RANK,
    Require(anchor="from prev_utils import *"),
    # one process has no DistributedDataParallel
    After(anchor="epoch = -1", within="main", code=PLUGIN.replace("model.module", "getattr(model, 'module', model)")),
    Require(anchor="model(torch.cat((img_x, img_u_w)), True)", within="main"),
    Require(anchor="model(torch.cat((img_u_s1, img_u_s2)))", within="main"),
    After(anchor=MIX, within="main", code=FORGET),
    After(anchor=LOSS, within="main", code=STEP),
    Require(anchor="scaler.scale(total_loss)", within="main"),
    Require(anchor="total_loss.backward()", within="main"),
    After(anchor="for k, v in log_avg.avgs.items(): ...", within="main", code="brpg.log(writer, iters)"),
    scores(),
    Before(anchor=f"torch.save(checkpoint, {LATEST})", within="main", code=f"brpg.save({LATEST}, epoch)"),
    Before(anchor=f"torch.save(checkpoint, {BEST})", within="main", code=f"brpg.save({BEST}, epoch)"),
)

PREVMATCH = Framework(
    name="prevmatch",
    repository="https://github.com/wooseok-shin/PrevMatch",
    commits=("bcfac70",),
    scripts={SCRIPT: EDITS},
    start={SCRIPT: arguments("pascal", "92", "prevmatch_brpg/r50/92")},
    fixes={"short-epochs": small_epochs((SCRIPT,))},
)
