"""UniMatch: no teacher, one DeepLabv3+ without a representation branch, and one or two strong views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .engine import AddArgument, After, Before, Edit, Replace, Require
from .framework import Fix, Framework

IMPORTS = """
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

PLUGIN = """
brpg = Plugin(cfg.get('brpg'), dataset=cfg['dataset'], num_classes=cfg['nclass'], feature_dim=256,
              epochs=cfg['epochs'], iters_per_epoch=len(trainloader_u), logger=logger).cuda()
brpg.tap(model, features='fuse', logits='classifier')
brpg.add_projection(model.module.classifier.in_channels, optimizer.param_groups[1])
"""

UNIMATCH_STEP = """
if brpg.enabled:
    # the first pass holds x, u_w and their perturbed copies, the second u_s1 and u_s2
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:num_lb], feat_s)
    u_w = slice(num_lb, num_lb + num_ulb)
    ignore_s = torch.cat((ignore_mask_cutmixed1, ignore_mask_cutmixed2)) == 255
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=torch.cat((mask_u_w_cutmixed1, mask_u_w_cutmixed2)).masked_fill(ignore_s, 255),
            confidence=torch.cat((conf_u_w_cutmixed1, conf_u_w_cutmixed2)),
            **brpg.weak_view(feat_w[u_w], logits_w[u_w], valid=ignore_mask != 255)),
        iteration=epoch * len(trainloader_u) + i)
"""

FIXMATCH_STEP = """
if brpg.enabled:
    # the first pass holds x and u_w, the second u_s
    (feat_w, logits_w), (feat_s, _) = brpg.take(2)
    rep_x, rep_u_s = brpg.project(feat_w[:num_lb], feat_s)
    loss = loss + brpg(
        LabeledBatch(features=rep_x, logits=logits_w[:num_lb], labels=mask_x),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels=mask_u_w_cutmixed.masked_fill(ignore_mask_cutmixed == 255, 255),
            confidence=conf_u_w_cutmixed,
            **brpg.weak_view(feat_w[num_lb:], logits_w[num_lb:], valid=ignore_mask != 255)),
        iteration=epoch * len(trainloader_u) + i)
"""

RECORD = """
brpg.record(args.save_path, epoch, {miou}, dict(zip(CLASSES[cfg['dataset']], {iou})), settings=cfg,
            split=args.labeled_id_path)
"""

LATEST = "os.path.join(args.save_path, 'latest.pth')"
BEST = "os.path.join(args.save_path, 'best.pth')"
LOCAL_RANK = AddArgument(
    anchor="parser.add_argument('--local_rank', default=0, type=int)",
    code="'--local-rank'",
    position=1,
    optional=True,
)


def scores(average: str = "") -> Edit:
    """Writes down each validation's mIoU and IoU; ``average`` is what the names end in of the scores that count."""
    miou = f"mIoU{average}"
    return After(
        anchor=f"writer.add_scalar('eval/{miou}', {miou}, epoch)",
        within="main",
        code=RECORD.format(miou=miou, iou=f"iou_class{average}"),
    )


def training_step(step: str, marker: str, passes: Sequence[str]) -> Sequence[Edit]:
    """The edits that all descendants of UniMatch share.

    Args:
        step: Adds the head's loss to ``loss``.
        marker: Import that tells the frameworks apart.
        passes: Forward passes whose order of images ``step`` relies on.
    """
    return (
        Require(anchor=marker),
        After(anchor="from util.dist_helper import *", code=IMPORTS),
        LOCAL_RANK,
        *(Require(anchor=call, within="main") for call in passes),
        Before(anchor="optimizer.zero_grad()", followed_by="loss.backward()", within="main", code=step),
    )


def training_script(plugin: str, step: str, marker: str, passes: Sequence[str], record: Edit) -> Sequence[Edit]:
    """The edits of a script that logs and resumes as UniMatch does.

    Args:
        plugin: Builds ``brpg`` before the script looks for a checkpoint.
        step: As in :func:`training_step`, and so the rest.
        marker: Import that tells the frameworks apart.
        passes: Forward passes.
        record: Writes the scores of a validation down.
    """
    return (
        *training_step(step, marker, passes),
        AddArgument(anchor=f"torch.load({LATEST}, ...)", code="weights_only=False", optional=True),
        After(anchor="epoch = -1", within="main", code=plugin),
        After(anchor="checkpoint = torch.load(...)", within="main", code=f"brpg.load({LATEST}, checkpoint['epoch'])"),
        After(
            anchor="writer.add_scalar('train/mask_ratio', mask_ratio, iters)",
            within="main",
            code="brpg.log(writer, iters)",
        ),
        record,
        Before(anchor=f"torch.save(checkpoint, {LATEST})", within="main", code=f"brpg.save({LATEST}, epoch)"),
        Before(anchor=f"torch.save(checkpoint, {BEST})", within="main", code=f"brpg.save({BEST}, epoch)"),
    )


def small_epochs(scripts: Sequence[str]) -> Fix:
    """Scripts that log every eighth of an epoch divide by zero in shorter ones."""
    edit = Replace(anchor="len(trainloader_u) // 8", within="main", code="max(1, len(trainloader_u) // 8)")
    return Fix(
        summary="ZeroDivisionError in epochs of fewer than 8 iterations",
        edits=dict.fromkeys(scripts, (edit,)),
    )


MARKER = "from model.semseg.deeplabv3plus import *"
PLACES = "--config=configs/{data}.yaml --labeled-id-path {lists}/labeled.txt --unlabeled-id-path {lists}/unlabeled.txt"


def arguments(data: str, split: str, save: str, folder: str = "splits") -> str:
    """An example of a script's arguments: a data set, one of its splits in a folder, and where to save."""
    return f"{PLACES.format(data=data, lists=f'{folder}/{data}/{split}')} --save-path exp/{data}/{save}"


STEPS = {"unimatch.py": UNIMATCH_STEP, "fixmatch.py": FIXMATCH_STEP}
PASSES = {
    "unimatch.py": (
        "model(torch.cat((img_x, img_u_w)), True)",
        "model(torch.cat((img_u_s1, img_u_s2)))",
    ),
    "fixmatch.py": ("model(torch.cat((img_x, img_u_w)))", "model(img_u_s)"),
}

UNIMATCH = Framework(
    name="unimatch",
    repository="https://github.com/LiheYoung/UniMatch",
    commits=("0324f3d",),
    scripts={script: training_script(PLUGIN, step, MARKER, PASSES[script], scores()) for script, step in STEPS.items()},
    start={script: arguments("pascal", "732", f"{Path(script).stem}_brpg/r101/732") for script in STEPS},
    fixes={"short-epochs": small_epochs(tuple(STEPS))},
)
