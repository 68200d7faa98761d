"""U2PL: a mean teacher, and a representation branch that the head takes over from U2PL's contrastive loss."""

from __future__ import annotations

from .engine import AddArgument, After, Before, Replace, Require
from .framework import Fix, Framework

IMPORTS = """
import brpg_lib.adapters.compat  # u2pl uses names that newer Pythons and torches refuse
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.plugin import Plugin
"""

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
"""

TEACHER = """
outs_u_teacher = model_teacher(image_u)
pred_u_teacher = outs_u_teacher["pred"]
"""

STEP = """
if brpg.enabled:
    n = len(image_l)
    labeled = LabeledBatch(features=outs["rep"][:n], logits=outs["pred"][:n], labels=label_l)
    unlabeled = None
    if epoch >= cfg["trainer"].get("sup_only_epoch", 1):
        unlabeled = UnlabeledBatch(
            features=outs["rep"][n:],
            pseudo_labels=label_u_aug,
            confidence=logits_u_aug,
            weak_features=outs_u_teacher["rep"],
            weak_logits=outs_u_teacher["pred"],
        )
    loss = loss + brpg(labeled, unlabeled, iteration=i_iter)
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

CONTRASTIVE = 'cfg["trainer"].get("contrastive", False)'
LATEST = 'osp.join(cfg["saver"]["snapshot_dir"], "ckpt.pth")'
BEST = 'osp.join(cfg["saver"]["snapshot_dir"], "ckpt_best.pth")'

EDITS = (
    Require(anchor="from u2pl.models.model_helper import *"),
    After(anchor="from u2pl.utils.utils import *", code=IMPORTS),
    AddArgument(
        anchor='parser.add_argument("--local_rank", type=int, default=0)',
        code='"--local-rank"',
        position=1,
        optional=True,
    ),
    Replace(anchor="loader_l_iter.next()", within="train", code="next(loader_l_iter)", optional=True),
    Replace(anchor="loader_u_iter.next()", within="train", code="next(loader_u_iter)", optional=True),
    After(anchor="last_epoch = 0", within="main", code=PLUGIN),
    After(
        anchor="best_prec, last_epoch = load_state(...)",
        within="main",
        code="brpg.load(lastest_model, last_epoch)",
    ),
    AddArgument(anchor="train(...)", within="main", code="brpg"),
    AddArgument(anchor="def train(): ...", code="brpg"),
    Replace(anchor='pred_u_teacher = model_teacher(image_u)["pred"]', within="train", code=TEACHER),
    # The paper's total loss has no other contrastive term on the representation.
    Replace(anchor=CONTRASTIVE, within="train", code=f"not brpg.counts and {CONTRASTIVE}"),
    Require(anchor="image_all = torch.cat((image_l, image_u_aug))", within="train"),
    Require(anchor="outs = model(image_all)", within="train"),
    Before(anchor="optimizer.zero_grad()", followed_by="loss.backward()", within="train", code=STEP),
    After(
        anchor='tb_logger.add_scalar("Con Loss", con_losses.val, i_iter)',
        within="train",
        code="brpg.log(tb_logger, i_iter)",
    ),
    After(anchor='tb_logger.add_scalar("mIoU val", prec, epoch)', within="main", code=RECORD),
    Before(anchor=f"torch.save(state, {BEST})", within="main", code=f"brpg.save({BEST}, epoch + 1)"),
    Before(anchor=f"torch.save(state, {LATEST})", within="main", code=f"brpg.save({LATEST}, epoch + 1)"),
)

FROZEN_RATE = After(
    anchor="lr_scheduler = get_scheduler(...)",
    within="main",
    code="""
# a resumed optimizer no longer shares its groups with optimizer_start, which alone the scheduler drives
lr_scheduler.optimizer = optimizer
""",
)

U2PL = Framework(
    name="u2pl",
    repository="https://github.com/Haochen-Wang409/U2PL",
    commits=("ab3d2be",),
    scripts={"train_semi.py": EDITS},
    start={"train_semi.py": "--config=config.yaml --seed 2"},
    folder="experiments/pascal/1464/ours",
    runs_in_checkout=False,
    fixes={
        "frozen-rate": Fix(
            summary="the learning rate stays where it was after a resume",
            edits={"train_semi.py": (FROZEN_RATE,)},
        )
    },
)
