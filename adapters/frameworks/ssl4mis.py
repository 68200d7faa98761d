"""SSL4MIS, two-dimensional: one GPU, no yaml, no resuming, networks that return nothing but logits."""

from __future__ import annotations

from collections.abc import Sequence

from ..editing.edit import After, Before, Edit, Replace, Require
from ..patching.framework import Framework

IMPORTS = """
from brpg_lib import LabeledBatch, UnlabeledBatch
from brpg_lib.adapters.arguments import take_section
from brpg_lib.adapters.plugin import Plugin
brpg_section = take_section()  # --brpg FILE, before the parsers of the script and of its networks see it
"""

# The script counts iterations; its consistency starts after 1000, so these are what the section counts in.
PLUGIN = """
brpg = Plugin(brpg_section, dataset='medical', num_classes=num_classes, feature_dim=64,
              epochs=max_iterations / 1000, iters_per_epoch=1000, logger=logging.getLogger()).cuda()
brpg.tap({student}, features='decoder.up4', logits='decoder.out_conv', stride=2{teacher})
brpg.add_projection({student}.decoder.out_conv.in_channels, {optimizer}.param_groups[0]{average})
"""

STEP = """
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)  # labeled images, then the others
    rep_l, rep_u = brpg.project(feat[:args.labeled_bs], feat[args.labeled_bs:])
    confidence, pseudo_labels = {probabilities}.max(dim=1)
    loss = loss + brpg(
        LabeledBatch(features=rep_l, logits=logits[:args.labeled_bs], labels=label_batch[:args.labeled_bs].long()),
        UnlabeledBatch(
            features=rep_u, pseudo_labels=pseudo_labels, confidence=confidence, **brpg.weak_view({weak})),
        iteration=iter_num)
"""

RECORD = """
brpg.record(snapshot_path, iter_num, {score}, measure='dice', settings=vars(args), split=str(args.labeled_num),
            seed=args.seed)
"""


def training_script(
    *,
    student: str,
    score: str,
    logged: str,
    optimizer: str = "optimizer",
    teacher: str = "",
    own: Sequence[Edit] = (),
) -> Sequence[Edit]:
    """The edits that the scripts share.

    Args:
        student: Name of the network with the head.
        score: Name of its mean Dice.
        logged: Call that logs the last scalar of a step.
        optimizer: Name of its optimizer.
        teacher: Name of its EMA teacher.
        own: Edits of this script alone: the loss, and the teacher.
    """
    plugin = PLUGIN.format(
        student=student,
        optimizer=optimizer,
        teacher=f", teacher={teacher}" if teacher else "",
        average=", teacher=True" if teacher else "",
    )
    prefix = "" if student == "model" else f"{student}_"
    save = f"torch.save({student}.state_dict(), "
    return (
        After(anchor="import argparse", code=IMPORTS),
        Require(anchor="from networks.net_factory import net_factory"),
        After(anchor="max_epoch = max_iterations // len(trainloader) + 1", within="train", code=plugin),
        Require(anchor=f"{student}(volume_batch)", within="train"),
        *own,
        After(anchor=logged, within="train", code="brpg.log(writer, iter_num)"),
        After(
            anchor=f"writer.add_scalar('info/{prefix}val_mean_dice', {score}, iter_num)",
            within="train",
            code=RECORD.format(score=score),
        ),
        Before(anchor=f"{save}save_best)", within="train", code="brpg.save(save_best, iter_num)"),
        Before(
            anchor=f"{save}save_mode_path)", within="train", code="brpg.save(save_mode_path, iter_num)", optional=True
        ),
    )


def mean_teacher(teacher_pass: str, probabilities: str, logged: str) -> Sequence[Edit]:
    """The edits of a script with an EMA teacher, which sees the unlabeled images with noise of their own.

    Args:
        teacher_pass: The statements of its pass.
        probabilities: Expression of its probabilities: the largest ones are confidence and pseudo labels.
        logged: Call that logs the last scalar of a step.
    """
    return training_script(
        student="model",
        teacher="ema_model",
        score="performance",
        logged=logged,
        own=(
            Replace(
                anchor=f"with torch.no_grad():{teacher_pass}",
                within="train",
                code=f"with brpg.teacher_pass():{teacher_pass}",
            ),
            Before(
                anchor="optimizer.zero_grad()",
                followed_by="loss.backward()",
                within="train",
                code=STEP.format(probabilities=probabilities, weak="*brpg.take_teacher()"),
            ),
            After(
                anchor="update_ema_variables(model, ema_model, args.ema_decay, iter_num)",
                within="train",
                code="brpg.update_teacher(min(1 - 1 / (iter_num + 1), args.ema_decay))",
            ),
        ),
    )


LOGGED = "writer.add_scalar('info/consistency_weight', consistency_weight, iter_num)"
TEACHER = "\n    ema_output = ema_model(ema_inputs)"
SOFTMAX = "\n    ema_output_soft = torch.softmax(ema_output, dim=1)"

# The other network's labels, as in the script's own cross supervision. The head is the first network's.
CROSS = training_script(
    student="model1",
    optimizer="optimizer1",
    score="performance1",
    logged="writer.add_scalar('loss/model2_loss', model2_loss, iter_num)",
    own=(
        Require(anchor="loss.backward()", within="train"),
        Before(
            anchor="optimizer1.zero_grad()",
            followed_by="optimizer2.zero_grad()",
            within="train",
            code=STEP.format(
                probabilities="outputs_soft2[args.labeled_bs:].detach()",
                weak="feat[args.labeled_bs:], logits[args.labeled_bs:]",
            ),
        ),
    ),
)

SCRIPTS = {
    "train_mean_teacher_2D.py": mean_teacher(TEACHER + SOFTMAX, "ema_output_soft", LOGGED),
    "train_uncertainty_aware_mean_teacher_2D.py": mean_teacher(TEACHER, "preds", LOGGED),
    "train_cross_pseudo_supervision_2D.py": CROSS,
}

SSL4MIS = Framework(
    name="ssl4mis",
    repository="https://github.com/HiLab-git/SSL4MIS",
    commits=("06df604",),
    home="code",
    ranks=False,
    resumes=False,
    scripts=SCRIPTS,
    start=dict.fromkeys(SCRIPTS, "--exp ACDC/BRPG --labeled_num 7 --brpg brpg.yaml"),
)
