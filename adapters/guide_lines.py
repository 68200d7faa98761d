"""What ``brpg patch --guide`` prints: what a script has and lacks, and the lines to add."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from .guide import IMPORTS, Guide
from .roles.holes import dotted_out, hole

SKELETON = f"""
# after the imports
{IMPORTS.strip()}

# before the loop over epochs, once network and optimizer are made and before a checkpoint is loaded
brpg = Plugin({{'preset': 'small_data'}}, dataset='mine', num_classes=NUM_CLASSES, feature_dim=64,
              epochs={hole("epochs")},
              iters_per_epoch={hole("length")}
              ).to(device)
brpg.tap(model, teacher=teacher, features='DECODER', logits='CLASSIFIER')
brpg.add_projection(CHANNELS, optimizer.param_groups[-1], teacher=True)

# in the place of torch.no_grad() around the teacher's pass
with brpg.teacher_pass():

# before the backward pass, before the loss is divided or scaled
if brpg.enabled:
    ((feat, logits),) = brpg.take(1)
    rep_x, rep_u_s = brpg.project(
        feat[{hole("labeled")}],
        feat[{hole("strong")}],
    )
    loss = loss + brpg(
        LabeledBatch(
            features=rep_x,
            logits=logits[{hole("labeled")}],
            labels={hole("labels")},
        ),
        UnlabeledBatch(
            features=rep_u_s,
            pseudo_labels={hole("pseudo")},
            confidence={hole("confidence")},
            **brpg.weak_view(*brpg.take_teacher())
        ),
        iteration={hole("iteration")}
    )

# where the script moves the teacher
brpg.update_teacher({hole("share")})
"""

LIGHTNING = f"""
# after the imports
from brpg_lib import BRPGConfig, FeatureTap, LabeledBatch, ProjectionHead, PrototypeHead, Schedule, UnlabeledBatch

# in __init__, where the network is there
self.projection = ProjectionHead(in_channels=CHANNELS, feature_dim=64)
self.feature_tap = FeatureTap(self.net, 'DECODER').open()
self.logit_tap = FeatureTap(self.net, 'CLASSIFIER').open()
self.head = None

# a method: by then the trainer knows how many steps its optimizer will make
def configure_model(self):
    fits = self._trainer is not None and self.trainer.training
    if fits or self.head is None:
        total = int(self.trainer.estimated_stepping_batches) if fits else 1
        self.head = PrototypeHead(NUM_CLASSES, 64, Schedule.small_data(total), BRPGConfig.small_data())

# in training_step, before it returns the loss
features, logits = self.projection(self.feature_tap.take(1)[0]), self.logit_tap.take(1)[0]
out = self.head(
    LabeledBatch(
        features=features[{hole("labeled")}],
        logits=logits[{hole("labeled")}],
        labels={hole("labels")},
    ),
    UnlabeledBatch(
        features=features[{hole("strong")}],
        pseudo_labels={hole("pseudo")},
        confidence={hole("confidence")},
        weak_features={hole("weak_features")},
        weak_logits={hole("weak_logits")},
    ),
    iteration=self.global_step,
)
self.log_dict({{f'brpg/{{name}}': value for name, value in out.metrics.items()}})
loss = loss + out.loss
"""


def guide_lines(name: str, source: str, made: Guide) -> Iterator[str]:
    """What a script has and lacks, and the diff of the lines to add, line by line."""
    yield from made.plan.lines(name)
    if not made.plan.edits:
        yield "  lines to add, with `...` for what was not found:"
        skeleton = LIGHTNING if made.lightning else SKELETON
        yield from (f"    {line}" for line in dotted_out(skeleton).strip().splitlines())
        return
    if made.questions:
        yield f"  {len(made.questions)} to fill in:"
    for question in made.questions:
        yield f"    {question}"
    patched = made.plan.draft()
    holes = [line.strip() for line in patched.splitlines() if "# ...: " in line]
    if holes:
        yield f"  not found, and `...` in the lines below ({len(holes)}):"
    for line in holes:
        yield f"    {line.partition('# ...: ')[2]}"
    yield from difflib.unified_diff(
        made.plan.source.splitlines(), patched.splitlines(), name, f"{name} (with the head)", lineterm=""
    )
    yield "  settings: {'preset': 'small_data'} is for few labels, None for the paper's; feature_dim decides the cost"
