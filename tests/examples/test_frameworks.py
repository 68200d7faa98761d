"""The frameworks of the examples: who teaches whom, from when on, and what counts."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brpg_lib import BRPGConfig, Phase, PrototypeHead, Schedule
from brpg_lib.examples.training.data.augment import IGNORE_INDEX
from brpg_lib.examples.training.data.batches import Batch, BatchSource
from brpg_lib.examples.training.frameworks import TRAINERS
from brpg_lib.examples.training.frameworks.base import Trainer
from brpg_lib.examples.training.frameworks.losses import selected_cross_entropy
from brpg_lib.examples.training.frameworks.mean_teacher import PseudoLabels
from brpg_lib.examples.training.frameworks.second_opinion import KINDS, with_second_opinion
from brpg_lib.examples.training.frameworks.selection import most_reliable
from brpg_lib.examples.training.frameworks.u2pl import U2PLTrainer
from brpg_lib.examples.training.networks import build_network
from brpg_lib.examples.training.networks.base import Prediction
from brpg_lib.examples.training.recipe import Recipe
from brpg_lib.learn.limits import ClassLimits

SEMI_SUPERVISED = sorted(set(TRAINERS) - {"supervised"})
STEPS = 20


def trainer_of(framework: str, with_head: bool = False) -> Trainer:
    torch.manual_seed(0)
    model = build_network("compact", 11, 8 if with_head else None, width=8)
    head = None
    if with_head:
        schedule = Schedule(warmup=2, collect=2, total=STEPS)
        head = PrototypeHead(11, 8, schedule, BRPGConfig(queue_size=200, confidence_threshold=0.05))
    return TRAINERS[framework](model, head, STEPS, seed=0).train()


def batch_of(trainer: Trainer, iteration: int = 0) -> Batch:
    data = Recipe(data="digits", size=33).load_data()
    return BatchSource(data, 33, 4, 0, trainer.strong_views, colors=trainer.colors)(iteration)


@pytest.mark.parametrize("framework", sorted(TRAINERS))
def test_the_average_follows_the_network_with_its_statistics(framework: str) -> None:
    trainer = trainer_of(framework)
    before = copy.deepcopy(trainer.average.state_dict())
    with torch.no_grad():
        for values in trainer.model.state_dict().values():
            values.add_(1)
    trainer.after_step(10**6)
    for name, now in trainer.average.state_dict().items():
        if now.is_floating_point():
            torch.testing.assert_close(now, before[name] + 0.01 * (trainer.model.state_dict()[name] - before[name]))
        else:
            assert torch.equal(now, trainer.model.state_dict()[name])
    early = trainer_of(framework)
    with torch.no_grad():
        for values in early.model.parameters():
            values.fill_(1.0)
    early.after_step(0)
    assert float(next(early.average.parameters()).mean()) > 0.8, "at first it forgets fast"


@pytest.mark.parametrize("framework", sorted(TRAINERS))
def test_the_average_is_never_trained_and_always_in_eval_mode(framework: str) -> None:
    trainer = trainer_of(framework)
    loss, _ = trainer(batch_of(trainer), STEPS - 1)
    loss.backward()
    assert trainer.model.training
    assert not any(module.training for module in trainer.average.modules())
    assert all(p.grad is None and not p.requires_grad for p in trainer.average.parameters())
    assert all(p.grad is not None for p in trainer.model.parameters())


@pytest.mark.parametrize("framework", SEMI_SUPERVISED)
def test_unlabeled_images_teach_from_their_time_on(framework: str) -> None:
    trainer = trainer_of(framework)
    first = math.ceil(trainer.supervised_only * STEPS)
    batch = batch_of(trainer)
    spoiled = Batch(**(vars(batch) | {"weak": batch.weak * math.nan, "strong": batch.strong * math.nan}))
    loss, parts = trainer(spoiled, first - 1)
    assert parts.keys() == {"supervised"}
    assert loss.isfinite()
    _, parts = trainer(batch, first)
    assert len(parts) > 1


@pytest.mark.parametrize("framework", SEMI_SUPERVISED)
def test_padding_teaches_nothing(framework: str) -> None:
    """Where the weak view shows no image, its look changes neither loss nor queue."""
    trainer = trainer_of(framework, with_head=True)
    batch = batch_of(trainer)
    everywhere = Batch(**(vars(batch) | {"padding": torch.ones_like(batch.padding)}))
    for iteration in range(3, 6):
        _, parts = trainer(everywhere, iteration)
        consistency = [value for name, value in parts.items() if name not in ("supervised", "prototype")]
        assert consistency
        assert all(value.item() == 0 for value in consistency)
    assert trainer.head is not None
    assert trainer.head.seen.any()


@pytest.mark.parametrize("framework", ["mean_teacher", "u2pl"])
def test_labeled_and_strong_images_share_their_statistics(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(framework)
    sizes = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    trainer(batch_of(trainer), STEPS - 1)
    assert sizes == [8]


def test_the_perturbed_maps_of_unimatch_share_the_decoder_pass() -> None:
    network = build_network("compact", 11, None, width=8).train()
    sizes = []
    network.classifier.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    found = network(torch.randn(3, 3, 33, 33), perturb=torch.Generator().manual_seed(0))
    assert sizes == [6]
    assert found.logits.shape == found.perturbed_logits.shape == (3, 11, 33, 33)


def test_selected_cross_entropy_is_a_mean_over_all_pixels_of_the_images() -> None:
    logits = torch.randn(2, 3, 4, 4)
    classes = torch.randint(3, (2, 4, 4))
    classes[0, 0] = IGNORE_INDEX
    valid = classes != IGNORE_INDEX
    chosen = valid & (torch.rand(2, 4, 4) >= 0.6)
    each = torch.nn.functional.cross_entropy(logits, classes.masked_fill(~chosen, 0), reduction="none")
    expected = each[chosen].sum() / valid.sum()
    found = selected_cross_entropy(logits, classes.masked_fill(~chosen, IGNORE_INDEX), valid)
    torch.testing.assert_close(found, expected)
    nothing = torch.full_like(classes, IGNORE_INDEX)
    assert selected_cross_entropy(logits, nothing, nothing != IGNORE_INDEX) == 0


@pytest.mark.parametrize("framework", SEMI_SUPERVISED)
def test_only_confident_pseudo_labels_teach_by_default(framework: str) -> None:
    trainer = trainer_of(framework)
    classes, confidence = torch.randint(3, (2, 5, 5)), torch.rand(2, 5, 5)
    found = trainer.select(classes, confidence)
    assert torch.equal(found, torch.where(confidence >= 0.95, classes, IGNORE_INDEX))


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_same_share_of_each_class_teaches(share: float) -> None:
    """Of an easy class of high confidence, and of a hard one; a class not seen enough is not held back."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(3, (4, 50, 50), generator=generator)
    confidence = torch.rand(4, 50, 50, generator=generator) * torch.tensor([0.9, 0.5, 0.2])[classes]
    classes[0, 0, :10] = 3
    classes[1, :3] = IGNORE_INDEX
    found = most_reliable(ClassLimits(4, share), classes, confidence)
    assert torch.isin(found, torch.tensor([0, 1, 2, 3, IGNORE_INDEX])).all()
    assert (found[classes == IGNORE_INDEX] == IGNORE_INDEX).all()
    for k in range(3):
        mine = classes == k
        kept = found[mine] == k
        assert float(kept.float().mean()) == pytest.approx(share, abs=0.02)
        assert share == 1.0 or confidence[mine][kept].min() >= confidence[mine][~kept].max()
    assert (found[classes == 3] == 3).all()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan, "half"])
def test_a_wrong_share_is_refused(share: Any) -> None:
    with pytest.raises(ValueError, match="class_share: expected"):
        Recipe(data="digits", class_share=share)


@pytest.mark.parametrize("framework", SEMI_SUPERVISED)
def test_every_framework_can_select_by_class(framework: str) -> None:
    trainer = trainer_of(framework)
    trainer.limits = ClassLimits(11, 0.5)
    batch = batch_of(trainer)
    loss, parts = trainer(batch, STEPS - 1)
    assert loss.isfinite()
    assert "limits.values" in trainer.state_dict()
    assert (trainer.limits.values > 0).any()
    trainer.limits = None
    _, strict = trainer(batch, STEPS - 1)
    name = next(name for name in parts if name != "supervised")
    assert parts[name].item() > 0
    if framework != "u2pl":  # whose percentile lets four pixels of five teach
        assert strict[name].item() == 0, "an untrained network is not confident of anything"


@pytest.mark.parametrize(("iteration", "share"), [(0, 0.2), (10, 0.1), (20, 0.0)])
def test_u2pl_leaves_out_ever_fewer_pixels(iteration: int, share: float) -> None:
    trainer = trainer_of("u2pl")
    assert isinstance(trainer, U2PLTrainer)
    entropy = torch.arange(100.0).view(1, 10, 10)
    wrong: Tensor = torch.zeros(1, 10, 10, dtype=torch.long)
    logits = torch.stack([torch.zeros(1, 10, 10), entropy], dim=1)  # what is left out has the largest losses
    weak = trainer.average(torch.zeros(1, 3, 33, 33))
    targets = trainer.targets(PseudoLabels(wrong, entropy, entropy, weak), iteration)
    found = trainer.unsupervised_loss(logits, targets, wrong != IGNORE_INDEX)
    kept = torch.nn.functional.cross_entropy(logits, wrong, reduction="none").flatten()[: round(100 * (1 - share))]
    torch.testing.assert_close(found, kept.mean() / (1 - share))


def opinion(kind: str) -> tuple[Tensor, Tensor]:
    """Probabilities before and after: of a pixel on which the prototypes agree with the teacher, and of another."""
    head = PrototypeHead(3, 2, Schedule(warmup=0, collect=0, total=9), BRPGConfig(temperature=0.5))
    prototypes, mask = torch.zeros(3, 2, 3, 2), torch.zeros(3, 2, 3, dtype=torch.bool)
    prototypes[0, 0, 0], prototypes[1, 0, 0] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    mask[:2, 0, 0] = True  # the third class has none
    head.bank.set(prototypes, mask)
    probability = torch.tensor([0.5, 0.3, 0.2]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).T.view(1, 2, 1, 2)
    weak = Prediction(probability, probability, features, None)
    return probability, with_second_opinion(probability, weak, head, kind)


def test_prototypes_multiply_probabilities() -> None:
    before, after = opinion("product")
    similarity = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    expected = before[0, :, 0].T * (similarity / 0.5).softmax(1)
    torch.testing.assert_close(after[0, :, 0].T, expected / expected.sum(1, keepdim=True))
    assert after.argmax(1).flatten().tolist() == [0, 1]


def test_where_prototypes_disagree_nothing_is_certain() -> None:
    before, after = opinion("agreement")
    torch.testing.assert_close(after[..., 0], before[..., 0])
    torch.testing.assert_close(after[..., 1], torch.full((1, 3, 1), 1 / 3))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framework", SEMI_SUPERVISED)
def test_every_framework_can_ask_the_prototypes(framework: str, kind: str) -> None:
    trainer = trainer_of(framework, with_head=True)
    trainer.second_opinion = kind
    batch = batch_of(trainer)
    for iteration in range(3, 9):
        loss, _ = trainer(batch, iteration)
    assert trainer.head is not None
    assert trainer.head.phase is Phase.LEARN
    assert loss.isfinite()
