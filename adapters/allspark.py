"""AllSpark: a transformer that labels the very view of the unlabeled images that it trains with."""

from __future__ import annotations

from .engine import AddArgument, After, Before, Replace, Require
from .framework import Framework
from .unimatch import BEST, IMPORTS, LATEST, LOCAL_RANK, arguments, scores, small_epochs

SCRIPT = "train_allspark.py"

# The student labels its own view of the unlabeled images, in a pass without gradient: that is the weak view.
PLUGIN = """
classifier = model.module.decoder.decoder.linear_pred
brpg = Plugin(cfg.get('brpg'), dataset=cfg['dataset'], num_classes=cfg['nclass'], feature_dim=256,
              epochs=cfg['epochs'], iters_per_epoch=len(trainloader_u), logger=logger).cuda()
brpg.tap(model, teacher=model, features='decoder.decoder.linear_fuse', logits='decoder.decoder.linear_pred')
brpg.add_projection(classifier.in_channels, optimizer.param_groups[1])
"""

STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)  # x and u_s
    rep_x, rep_u_s = brpg.project(feat[:num_lb], feat[num_lb:])
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=pseudo_label,
            confidence=pred_u_pseudo.softmax(dim=1).amax(dim=1),
            **brpg.weak_view(*brpg.take_teacher())),
        iteration=epoch * len(trainloader_u) + i)
"""

EDITS = (
    Require(anchor="from model.model_helper import ModelBuilder"),
    After(anchor="from util.dist_helper import *", code=IMPORTS),
    LOCAL_RANK,
    After(anchor="epoch = -1", within="main", code=PLUGIN),
    AddArgument(anchor=f"torch.load({LATEST}, ...)", code="weights_only=False", optional=True),
    After(anchor="checkpoint = torch.load(...)", within="main", code=f"brpg.load({LATEST}, checkpoint['epoch'])"),
    Replace(anchor="torch.no_grad()", within="main", code="brpg.teacher_pass()"),
    Require(anchor="model(img_u_s)", within="main"),
    Require(anchor="model(torch.cat((img_x, img_u_s)))", within="main"),
    Before(anchor="optimizer.zero_grad()", followed_by="loss.backward()", within="main", code=STEP),
    After(
        anchor="writer.add_scalar('train/loss_u', loss_u.item(), iters)",
        within="main",
        code="brpg.log(writer, iters)",
    ),
    scores(),
    Before(anchor=f"torch.save(checkpoint, {LATEST})", within="main", code=f"brpg.save({LATEST}, epoch)"),
    Before(anchor=f"torch.save(checkpoint, {BEST})", within="main", code=f"brpg.save({BEST}, epoch)"),
)

ALLSPARK = Framework(
    name="allspark",
    repository="https://github.com/xmed-lab/AllSpark",
    commits=("9da63e2",),
    scripts={SCRIPT: EDITS},
    start={SCRIPT: arguments("pascal", "92", "allspark_brpg/92").replace("configs/pascal", "configs/pascal_allspark")},
    fixes={"short-epochs": small_epochs((SCRIPT,))},
)
