"""BCP: labeled and unlabeled images pasted into each other, after a training on the labeled ones alone."""

from __future__ import annotations

from ..editing.edit import After, Before, Replace, Require
from ..patching.framework import Framework
from .ssl4mis import IMPORTS

SCRIPT = "ACDC_BCP_train.py"
HERE = "self_train"

# As in SSL4MIS, the section counts thousands of iterations. The checkpoint of the first training knows no projection.
PLUGIN = """
brpg = Plugin(brpg_section, dataset='acdc', num_classes=num_classes, feature_dim=64,
              epochs=max_iterations / 1000, iters_per_epoch=1000, logger=logging.getLogger()).cuda()
brpg.tap(model, features='decoder.up4', logits='decoder.out_conv', stride=2, teacher=ema_model)
brpg.add_projection(model.decoder.out_conv.in_channels, optimizer.param_groups[0], teacher=True)
"""

TEACHER = """
with brpg.teacher_pass():
    pre_a = ema_model(uimg_a)
    pre_b = ema_model(uimg_b)
"""

WEAK = "weak = brpg.take_teacher(2) if brpg.enabled else ()"

STEP = """
if brpg.enabled:
    # where the mask is 1, out_unl is of an unlabeled image and out_l of a labeled one; else the reverse
    feat, logits = (torch.cat(maps) for maps in zip(*brpg.take(2)))
    (rep,) = brpg.project(feat)
    labels = torch.cat((lab_a.masked_fill(loss_mask == 1, 255), lab_b.masked_fill(loss_mask == 0, 255)))
    pseudo = torch.cat((plab_a.masked_fill(loss_mask == 0, 255), plab_b.masked_fill(loss_mask == 1, 255)))
    # of the label that is left, which need not be the likeliest: only the largest region of a class is
    given = torch.cat((plab_a, plab_b)).long().unsqueeze(1)
    loss = loss + brpg(
        LabeledBatch(features=rep, logits=logits, labels=labels.long()),
        UnlabeledBatch(
            features=rep,
            pseudo_labels=pseudo.long(),
            confidence=torch.cat((pre_a, pre_b)).softmax(dim=1).gather(1, given).squeeze(1),
            **brpg.weak_view(*weak)),
        iteration=iter_num)
"""

RECORD = """
brpg.record(snapshot_path, iter_num, performance, measure='dice', settings=vars(args), split=str(args.labelnum),
            seed=args.seed)
"""

EDITS = (
    After(anchor="import argparse", code=IMPORTS),
    Require(anchor="from networks.net_factory import BCP_net, net_factory"),
    Replace(
        anchor="from asyncore import write",
        code="import brpg_lib.adapters.compat  # in the place of asyncore: not used here, and not in Python 3.12",
        optional=True,
    ),
    After(anchor="load_net_opt(model, optimizer, pre_trained_model)", within=HERE, code=PLUGIN),
    Replace(anchor="pre_a = ema_model(uimg_a)", within=HERE, code=TEACHER),
    Replace(anchor="pre_b = ema_model(uimg_b)", within=HERE, code=WEAK),
    Require(anchor="net_input_unl = uimg_a * img_mask + img_a * (1 - img_mask)", within=HERE),
    Require(anchor="net_input_l = img_b * img_mask + uimg_b * (1 - img_mask)", within=HERE),
    Require(anchor="out_unl = model(net_input_unl)", within=HERE),
    Require(anchor="out_l = model(net_input_l)", within=HERE),
    Before(anchor="optimizer.zero_grad()", followed_by="loss.backward()", within=HERE, code=STEP),
    After(anchor="update_model_ema(model, ema_model, 0.99)", within=HERE, code="brpg.update_teacher(0.99)"),
    After(
        anchor="writer.add_scalar('info/consistency_weight', consistency_weight, iter_num)",
        within=HERE,
        code="brpg.log(writer, iter_num)",
    ),
    After(anchor="writer.add_scalar('info/val_mean_dice', performance, iter_num)", within=HERE, code=RECORD),
    Before(
        anchor="torch.save(model.state_dict(), save_mode_path)",
        within=HERE,
        code="brpg.save(save_mode_path, iter_num)",
    ),
    Before(
        anchor="torch.save(model.state_dict(), save_best_path)",
        within=HERE,
        code="brpg.save(save_best_path, iter_num)",
    ),
)

BCP = Framework(
    name="bcp",
    repository="https://github.com/DeepMed-Lab-ECNU/BCP",
    commits=("7879f98",),
    home="code",
    ranks=False,
    resumes=False,
    scripts={SCRIPT: EDITS},
    start={SCRIPT: "--root_path DATA --exp BRPG --labelnum 7 --brpg brpg.yaml"},
)
