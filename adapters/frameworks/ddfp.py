"""DDFP: U2PL's mean teacher without its representation branch, and a flow that perturbs decoder features."""

from __future__ import annotations

from ..editing.edit import AddArgument, After, Before, Replace, Require
from ..patching.framework import Fix, Framework

IMPORTS = """
import brpg_lib.adapters.compat  # checkpoints hold NumPy scalars, which newer torches refuse
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

# The flow's attack calls the decoder's last block too: its features are what goes into the layer of the logits.
PLUGIN = """
brpg = Plugin(
    cfg.get("brpg"),
    dataset=cfg["dataset"]["type"],
    num_classes=cfg["net"]["num_classes"],
    feature_dim=256,
    epochs=cfg_trainer["epochs"],
    iters_per_epoch=len(train_loader_sup),
    ignore_index=cfg["dataset"]["ignore_label"],
    logger=logger,
).cuda()
brpg.tap(model, logits="decoder.final", teacher=model_teacher)
brpg.add_projection(model.module.decoder.final.in_channels, optimizer.param_groups[1], teacher=True)
"""

# before the optimizer, which would say of another head only that its groups differ in size
LOAD = 'brpg.load(lastest_model, torch.load(lastest_model, map_location="cpu", mmap=True)["epoch"])'

SUPERVISED_STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)
    with autocast():
        (rep_l,) = brpg.project(feat)
        loss = loss + brpg(LabeledBatch(features=rep_l, logits=logits, labels=label_l), iteration=i_iter)
"""

TEACHER = """
with brpg.teacher_pass():
    outs_t = model_teacher(image_bi)
"""

MIXED = """
image_u_aug, label_u_aug, mixed = generate_unsup_data(
    image_u_s,
    label_u_t.clone(),
    torch.stack((ignore_mask.to(logits_u_t), logits_u_t), dim=1),  # the confidence is mixed along
    mode='cutmix',
)
ignore_mask_aug, conf_u_aug = mixed[:, 0].to(ignore_mask), mixed[:, 1]
"""

STEP = """
if brpg.enabled:
    # labeled images, the others, and perhaps the latter once more, perturbed
    ((feat, logits),), (feat_t, logits_t) = brpg.take(1), brpg.take_teacher()
    u = slice(num_labeled, 2 * num_labeled)
    with autocast():
        rep_l, rep_u = brpg.project(feat[:num_labeled], feat[u])
        loss = loss + brpg(
            LabeledBatch(features=rep_l, logits=logits[:num_labeled], labels=label_l),
            UnlabeledBatch(
                features=rep_u,
                pseudo_labels=label_u_aug,
                confidence=conf_u_aug,
                **brpg.weak_view(feat_t[u], logits_t[u], valid=ignore_mask != 255),
            ),
            iteration=i_iter,
        )
"""

RECORD = """
brpg.record(
    cfg["saver"]["snapshot_dir"],
    epoch,
    prec,
    settings=cfg,
    split=cfg["dataset"].get("train", {}).get("data_list"),
    seed=args.seed,
)
"""

LATEST = 'osp.join(cfg["saver"]["snapshot_dir"], "ckpt.pth")'
BEST = 'osp.join(cfg["saver"]["snapshot_dir"], "ckpt_best.pth")'

EDITS = (
    After(anchor="from utils.lr_helper import get_optimizer, get_scheduler", code=IMPORTS),
    Require(anchor="from model.flow.model import RNVP"),
    AddArgument(
        anchor='parser.add_argument("--local_rank", type=int, default=0)',
        code='"--local-rank"',
        position=1,
        optional=True,
    ),
    Replace(anchor="loader_l_iter.next()", within="train", code="next(loader_l_iter)", optional=True),
    Replace(anchor="loader_u_iter.next()", within="train", code="next(loader_u_iter)", optional=True),
    After(anchor="last_epoch = 0", within="main", code=PLUGIN),
    Before(anchor="best_prec, last_epoch = load_state(...)", within="main", code=LOAD),
    AddArgument(anchor="train(...)", within="main", code="brpg"),
    AddArgument(anchor="def train(): ...", code="brpg"),
    Require(anchor="outs = model(image_l)", within="train"),
    After(
        anchor="loss = sup_loss + unsup_loss",
        followed_by="optimizer.zero_grad()",
        within="train",
        code=SUPERVISED_STEP,
    ),
    Require(anchor="image_bi = torch.cat((image_l, image_u))", within="train"),
    Replace(anchor="outs_t = model_teacher(image_bi)", within="train", code=TEACHER),
    Replace(
        anchor="image_u_aug, label_u_aug, ignore_mask_aug = generate_unsup_data("
        "image_u_s, label_u_t.clone(), ignore_mask.clone(), mode='cutmix')",
        within="train",
        code=MIXED,
    ),
    After(
        anchor="image_u_aug, label_u_aug, ignore_mask_aug = image_u_s, label_u_t.clone(), ignore_mask.clone()",
        within="train",
        code="conf_u_aug = logits_u_t",
    ),
    Require(anchor="image_tri = torch.cat((image_l, image_u_aug), dim=0)", within="train"),
    Require(anchor="model(image_tri)", within="train"),
    Before(anchor="dist.barrier()", followed_by="optimizer.zero_grad()", within="train", code=STEP),
    After(anchor="ema_decay = min(...)", within="train", code="brpg.update_teacher(ema_decay)"),
    After(
        anchor='tb_logger.add_scalar("sldj", sldj_value.val, i_iter)',
        within="train",
        code="brpg.log(tb_logger, i_iter)",
    ),
    After(anchor='tb_logger.add_scalar("mIoU val", prec_s, epoch)', within="main", code=RECORD),
    Before(anchor=f"torch.save(state, {BEST})", within="main", code=f"brpg.save({BEST}, epoch + 1)"),
    Before(anchor=f"torch.save(state, {LATEST})", within="main", code=f"brpg.save({LATEST}, epoch + 1)"),
)

SCRIPT = "train_ddfp_pascal.py"
FROZEN_RATE = After(
    anchor="lr_scheduler = get_scheduler(...)",
    within="main",
    code="""
# a resumed optimizer no longer shares its groups with optimizer_start, which alone the scheduler drives
lr_scheduler.optimizer = optimizer
""",
)
LOST_TEACHER = After(
    anchor="load_state(lastest_model, nf_model, optimizer_nf=optimizer_nf, key='nf_model_state')",
    within="main",
    code='load_state(lastest_model, model_teacher, key="teacher_state")',
)

DDFP = Framework(
    name="ddfp",
    repository="https://github.com/Gavinwxy/DDFP",
    commits=("7956c72",),
    scripts={SCRIPT: EDITS},
    start={SCRIPT: "--config=config.yaml --seed 2"},
    folder="exp/pascal/1464/exp",
    runs_in_checkout=False,
    fixes={
        "frozen-rate": Fix(
            summary="the learning rate stays where it was after a resume",
            edits={SCRIPT: (FROZEN_RATE,)},
        ),
        "lost-teacher": Fix(
            summary="after a resume the teacher is a new network with random weights",
            edits={SCRIPT: (LOST_TEACHER,)},
        ),
    },
)
