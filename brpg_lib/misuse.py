"""What users do by mistake, and what would go on for hours without a word: looked for in the first calls of a head."""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.late import LateCopy
from brpg_lib.notices import OneTimeWarnings

WATCHED, EVALUATED = 40, 50
"""Calls in train mode that are looked at; calls in eval mode with gradients, until somebody is told."""
DETACHED = (
    "features carry no gradient, neither labeled nor unlabeled ones: the loss of the head trains nothing. Pass them as "
    "they come from the network, without detach() and outside of torch.no_grad()"
)
NO_LOGITS = (
    "labeled.logits is None; the collect phase, {calls} iterations from now, needs the student's logits to choose "
    "pixels by"
)
STRETCHED = (
    "{name}: features of {size} and labels of {image} pixels differ in shape, as if the "
    "network shrank height and width by different factors; points are read as if the features were stretched over the "
    "labels. Are the labels cropped or padded like the images?"
)
PROBABILITIES = (
    "look like probabilities: they are in [0, 1] and add up to 1 over the classes. The head wants logits, before "
    "softmax; of probabilities it would take another softmax, and trust no pixel"
)
ZERO_OR_ONE = (
    "holds only 0 and 1; the head wants the teacher's probability of each pseudo label, and has thresholds of its own"
)
RESUMED = (
    "the optimizer has been training before, and the head is at iteration 0: it starts with its warm-up. If this "
    "training is resumed, load head.state_dict() of the checkpoint too"
)
NEVER_TRAINED = (
    "the head has been called {calls} times in eval mode with features that carry gradients, and never in train mode: "
    "nothing is collected, and no phase passes. Call head.train() where the model trains"
)
ACCUMULATED = (
    "the head has been called {calls} times in {steps} steps of the optimizer, so that its phases pass too fast: pass "
    "iteration=, the count of these steps over the whole training"
)
WENT_BACK = (
    "iteration went back from {before} to {now}, and the phases of the head with it: pass the count over the whole "
    "training, such as epoch * len(loader) + i, not that of an epoch"
)
UNUSED = (
    "in {unused} of {calls} calls of the head the loss of the call before had not been backpropagated: either the head "
    "is called several times in a step, so that its phases pass too fast (call it once, or pass iteration=), or its "
    "loss is not added to the loss of the training"
)


class FirstCalls:
    """Looks at the first calls of a head. A copy starts anew: nothing here is state."""

    def __init__(self) -> None:
        self.trained, self.evaluated, self.unused = 0, 0, 0
        self.counted, self._begins = True, False
        self._open = False
        self._pending: list[tuple[LateCopy, str, str]] = []
        self._looked_at: set[str] = set()
        self._kinds: set[str] = set()
        self._optimizers: OptimizerWatch | None = None
        self._given = 0
        self.loaded = False

    def __reduce__(self) -> tuple[Callable[[], FirstCalls], tuple[()]]:
        """As a new one."""
        return FirstCalls, ()

    def eval_call(self, labeled: LabeledBatch, warnings: OneTimeWarnings) -> None:
        """Take note of a call in eval mode."""
        trains = torch.is_grad_enabled() and labeled.features.requires_grad
        if trains and not self.trained and self.evaluated < EVALUATED:
            self.evaluated += 1
            if self.evaluated == EVALUATED:
                warnings.warn("eval", NEVER_TRAINED.format(calls=EVALUATED))

    def train_call(
        self,
        labeled: LabeledBatch,
        unlabeled: UnlabeledBatch | None,
        iteration: int,
        until_collect: int,
        counted: bool,
        warnings: OneTimeWarnings,
    ) -> None:
        """Take note of a call in train mode.

        Args:
            labeled: Its labeled images.
            unlabeled: Its unlabeled images.
            iteration: Of the call.
            until_collect: Iterations until logits are needed; not above 0 if they are already, or never.
            counted: Whether the head counts the calls itself.
            warnings: To warn with.
        """
        if self.trained < WATCHED:
            self.trained += 1
            own = labeled if labeled.num_images else None  # a step may have images of one kind only
            for name, text in self._first_sight(own, unlabeled, until_collect).items():
                warnings.warn(name, text)
            if self.trained == 1:
                self._optimizers = OptimizerWatch()
                self._begins = iteration == 0
            self._look_at_values(own, unlabeled)
            self.unused += self._open and counted
            self.counted = self.counted and counted
            if self._begins and self._optimizers is not None and self._optimizers.resumed:
                warnings.warn("resumed", RESUMED)
            if self.trained == WATCHED:
                self._judge_number(warnings)
        self._tell_of_values(warnings)

    def iteration_given(self, iteration: int, warnings: OneTimeWarnings) -> None:
        """Take note of the trainer's own count in train mode."""
        if iteration < self._given:
            warnings.warn("went back", WENT_BACK.format(before=self._given, now=iteration))
        self._given = iteration

    def go_on(self) -> None:
        """Take note that a checkpoint was loaded: the next iteration may be any."""
        self._given, self.loaded = 0, True

    def _judge_number(self, warnings: OneTimeWarnings) -> None:
        """Judge, once all calls are seen, whether there were more of them than steps of the training."""
        steps = 0 if self._optimizers is None else self._optimizers.steps
        self._optimizers = None
        if self.unused >= 0.4 * WATCHED:
            warnings.warn("unused", UNUSED.format(unused=self.unused, calls=WATCHED))
        elif self.counted and 0 < 1.5 * steps < WATCHED:
            warnings.warn("accumulated", ACCUMULATED.format(calls=WATCHED, steps=steps))

    def watch(self, loss: Tensor, more: bool) -> None:
        """Take note of whether the loss of a call is backpropagated before the next call.

        Args:
            loss: Of the call.
            more: Whether there will be further calls to look at.
        """
        if not more:
            self._optimizers = None
        self._open = loss.requires_grad and self.trained < WATCHED
        if self._open:
            reference = weakref.ref(self)

            def backpropagated(_: Tensor) -> None:
                calls = reference()
                if calls is not None:
                    calls._open = False

            loss.register_hook(backpropagated)

    def _first_sight(
        self, labeled: LabeledBatch | None, unlabeled: UnlabeledBatch | None, until_collect: int
    ) -> dict[str, str]:
        """:func:`first_sight` of the first step with labeled, and with unlabeled images."""
        kinds = {name for name, batch in (("labeled", labeled), ("unlabeled", unlabeled)) if batch is not None}
        before, self._kinds = self._kinds, self._kinds | kinds
        found = {} if kinds <= before else first_sight(labeled, unlabeled, until_collect)
        if before:  # the other kind may have carried gradients
            found.pop("detached", None)
        return found

    def _look_at_values(self, labeled: LabeledBatch | None, unlabeled: UnlabeledBatch | None) -> None:
        """Judge the values of each field the first time it is there."""
        fields: list[tuple[str, Tensor | None, Callable[[Tensor], Tensor], str]] = []
        if labeled is not None:
            fields.append(("labeled.logits", labeled.logits, are_probabilities, PROBABILITIES))
        if unlabeled is not None:
            fields.append(("unlabeled.weak_logits", unlabeled.weak_logits, are_probabilities, PROBABILITIES))
            fields.append(("unlabeled.confidence", unlabeled.confidence, are_zero_or_one, ZERO_OR_ONE))
        for name, values, judge, text in fields:
            if values is None or name in self._looked_at or (values.is_cuda and not torch.cuda.is_available()):
                continue  # the last are tensors without values
            self._looked_at.add(name)
            self._pending.append((LateCopy(judge(values.detach())), name, text))

    def _tell_of_values(self, warnings: OneTimeWarnings) -> None:
        """Warn of what has been judged, without waiting for the rest."""
        done = [judged for judged in self._pending if judged[0].ready]
        self._pending = [judged for judged in self._pending if judged not in done]
        for found, name, text in done:
            if bool(found.value):
                warnings.warn(name, f"{name} {text}")


class OptimizerWatch:
    """Notices the optimizers that make steps while this exists.

    Attributes:
        resumed: Whether the first one had made steps before.
    """

    def __init__(self) -> None:
        self.resumed = False
        self._steps: MutableMapping[Optimizer, int] = weakref.WeakKeyDictionary()
        reference = weakref.ref(self)

        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            watch = reference()
            if watch is not None:
                watch._count(optimizer, done=0)

        def after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            watch = reference()
            if watch is not None and optimizer not in watch._steps:  # the step in whose closure the head is called
                watch._count(optimizer, done=1)

        for handle in (register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)):
            weakref.finalize(self, handle.remove)

    def _count(self, optimizer: Optimizer, done: int) -> None:
        """Take note of a step, of which the optimizer's state has ``done`` already."""
        if not self._steps:
            self.resumed = max(map(_steps_in, optimizer.state.values()), default=0) > done
        self._steps[optimizer] = self._steps.get(optimizer, 0) + 1

    @property
    def steps(self) -> int:
        """Steps of the optimizer that has made the most: others, of discriminators or the like, may make fewer."""
        return max(self._steps.values(), default=0)


def _steps_in(state: Any) -> float:
    """How many steps, at least, what an optimizer knows of a parameter tells of."""
    if not isinstance(state, dict):
        return 0
    return max(float(state.get("step", 0)), float(state.get("momentum_buffer") is not None))


def first_sight(labeled: LabeledBatch | None, unlabeled: UnlabeledBatch | None, until_collect: int) -> dict[str, str]:
    """What to warn about the first batches, by a short name; only shapes are looked at."""
    found, pairs = {}, []
    if labeled is not None:
        pairs.append(("labeled", labeled.features, labeled.labels))
        if labeled.logits is None and until_collect > 0:
            found["logits"] = NO_LOGITS.format(calls=until_collect)
    if unlabeled is not None:
        pairs.append(("unlabeled", unlabeled.features, unlabeled.pseudo_labels))
    if torch.is_grad_enabled() and not any(features.requires_grad for _, features, _ in pairs):
        found["detached"] = DETACHED
    for name, features, labels in pairs:
        size, image = tuple(features.shape[2:]), tuple(labels.shape[1:])
        if are_stretched(size, image):
            found["stretched"] = STRETCHED.format(name=name, size=_sizes(size), image=_sizes(image))
    return found


def _sizes(axes: tuple[int, ...]) -> str:
    return " x ".join(map(str, axes))


def are_stretched(size: tuple[int, ...], image: tuple[int, ...]) -> bool:
    """Whether no factor shrinks an image of that size to features of this one, but for a pixel of rounding.

    >>> are_stretched((65, 129), (513, 1025)), are_stretched((64, 64), (512, 1024))
    (False, True)
    """
    # An axis of n pixels with m features is shrunk by a factor between n / (m + 1) and n / (m - 1).
    axes = list(zip(size, image, strict=True))
    lowest = max(pixels / (count + 1) for count, pixels in axes)
    return any(count > 1 and pixels / (count - 1) < lowest for count, pixels in axes)


def are_probabilities(logits: Tensor) -> Tensor:
    """Whether all values ``(B, C, ...)`` are in [0, 1] and add up to 1 over the classes: ``()`` bool."""
    total = logits.float().sum(dim=1)
    return (logits >= 0).all() & ((total - 1).abs() < 0.02).all()


def are_zero_or_one(confidence: Tensor) -> Tensor:
    """Whether all values are 0 or 1, and both are there: ``()`` bool."""
    zero, one = confidence == 0, confidence == 1
    return (zero | one).all() & zero.any() & one.any()
