"""What one learn step costs: the head, and the published formulation on inputs of the same sizes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.benchmarks import command, published
from brpg_lib.benchmarks import tables as show
from brpg_lib.benchmarks.command import Options, Progress, Result
from brpg_lib.benchmarks.measure import Clock, Run, Timing, one_line, race
from brpg_lib.benchmarks.presets import Preset
from brpg_lib.benchmarks.tables import Table

OURS, PUBLISHED = "brpg-lib", "published formulation"
COMPILED, GRAPH, UPDATE = "brpg-lib, torch.compile", "brpg-lib, CUDA graph", "brpg-lib, update alone"
IGNORED_SHARE = 0.05
SYNCHRONIZATION = "synchroniz"
"""What the warnings of torch about waiting for the device have in common."""


@dataclass(frozen=True)
class Inputs:
    """One step's tensors.

    Attributes:
        labeled: Feature maps ``(B, D, h, w)``, a leaf with gradient.
        unlabeled: The same, of the strong views.
        labels: ``(B, H, W)``, some of them ignored.
        pseudo: ``(B, H, W)``.
        confidence: ``(B, H, W)``, uniform between 0 and 1.
        prototypes: ``(C, 2, K, D)``.
    """

    labeled: Tensor
    unlabeled: Tensor
    labels: Tensor
    pseudo: Tensor
    confidence: Tensor
    prototypes: Tensor

    @classmethod
    def random(cls, preset: Preset, device: torch.device, seed: int = 0) -> Inputs:
        """Made up."""
        generator = torch.Generator(device).manual_seed(seed)
        options: Any = {"generator": generator, "device": device}
        maps = (preset.images, preset.feature_dim, preset.map_size, preset.map_size)
        pixels = (preset.images, preset.crop, preset.crop)
        labeled, unlabeled = (torch.randn(maps, **options).requires_grad_() for _ in range(2))
        labels, pseudo = (torch.randint(preset.num_classes, pixels, **options) for _ in range(2))
        labels[torch.rand(pixels, **options) < IGNORED_SHARE] = published.IGNORE_INDEX
        prototypes = torch.randn(preset.num_classes, 2, preset.num_prototypes[0], preset.feature_dim, **options)
        return cls(labeled, unlabeled, labels, pseudo, torch.rand(pixels, **options), prototypes)

    def forget_gradients(self) -> None:
        """As an optimizer does between steps."""
        self.labeled.grad = self.unlabeled.grad = None

    @property
    def gradient_bytes(self) -> int:
        """Memory of the gradients that any formulation has to return."""
        return self.labeled.nbytes + self.unlabeled.nbytes


def learning_head(preset: Preset, inputs: Inputs) -> PrototypeHead:
    """A head in the learn phase. Its queues are small: they are freed before that phase."""
    config = replace(
        BRPGConfig.pascal(),
        grid_size=preset.grid_size,
        unlabeled_samples_per_image=preset.unlabeled_samples_per_image,
        queue_size=1,
    )
    schedule = Schedule(warmup=0, collect=0, total=100_000, pseudo_threshold_range=(published.THRESHOLD,) * 2)
    head = PrototypeHead(preset.num_classes, preset.feature_dim, schedule, config).to(inputs.labeled.device)
    mask = torch.ones(inputs.prototypes.shape[:3], dtype=torch.bool, device=inputs.prototypes.device)
    head.bank.set(inputs.prototypes, mask)
    call(head, inputs)  # from then on it is settled, and can be compiled or recorded
    return head


def call(head: Callable[..., Any], inputs: Inputs) -> Any:
    """One call of the head, or of what it was compiled to."""
    return head(
        LabeledBatch(features=inputs.labeled, logits=None, labels=inputs.labels),
        UnlabeledBatch(features=inputs.unlabeled, pseudo_labels=inputs.pseudo, confidence=inputs.confidence),
    )


def our_step(head: Callable[..., Any], inputs: Inputs) -> Run:
    """Forward with the update of the prototypes, then backward."""

    def run(clock: Clock) -> dict[str, Any]:
        clock.start()
        out = call(head, inputs)
        clock.lap("forward")
        out.loss.backward()
        clock.lap("backward")
        clock.stop()
        inputs.forget_gradients()  # or the next run would seem to need no memory for them
        return {name: out.metrics[name] for name in ("points_labeled", "points_unlabeled", "loss_labeled")}

    return run


def published_step(preset: Preset, inputs: Inputs) -> Run:
    """Forward, backward, update."""
    # Where any class is split, the published code gives all classes as many slots.
    prototypes = published.padded(inputs.prototypes, BRPGConfig.pascal().max_prototypes)
    most = preset.images * preset.unlabeled_samples_per_image

    def run(clock: Clock) -> dict[str, Any]:
        clock.start()
        labeled, labels = published.labeled_points(inputs.labeled, inputs.labels, preset.grid_size)
        unlabeled, pseudo = published.unlabeled_points(inputs.unlabeled, inputs.pseudo, inputs.confidence, most)
        loss_labeled = published.loss(labeled, labels, prototypes)
        loss = loss_labeled + published.loss(unlabeled, pseudo, prototypes)
        clock.lap("forward")
        loss.backward()
        clock.lap("backward")
        published.update(torch.cat((labeled, unlabeled)).detach(), torch.cat((labels, pseudo)), prototypes)
        clock.lap("update")
        clock.stop()
        inputs.forget_gradients()
        counted = (labels != published.IGNORE_INDEX).sum()
        return {"points_labeled": counted, "points_unlabeled": len(pseudo), "loss_labeled": loss_labeled.detach()}

    return run


def update_alone(head: PrototypeHead, preset: Preset, inputs: Inputs) -> Run:
    """The update for points that are read already."""
    most = preset.images * preset.unlabeled_samples_per_image
    with torch.no_grad():
        points, labels = published.labeled_points(inputs.labeled, inputs.labels, preset.grid_size)
        others, pseudo = published.unlabeled_points(inputs.unlabeled, inputs.pseudo, inputs.confidence, most)
        features, classes = torch.cat((points, others)), torch.cat((labels, pseudo))
    return lambda clock: head.bank.update(features, classes)


def graphed_step(head: PrototypeHead, inputs: Inputs) -> Run:
    """Forward, update and backward as one recorded CUDA graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            inputs.forget_gradients()
            call(head, inputs).loss.backward()
    torch.cuda.current_stream().wait_stream(side)
    inputs.forget_gradients()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call(head, inputs).loss.backward()
    return lambda clock: graph.replay()


def synchronizations(run: Run, device: torch.device) -> int:
    """How often the host waits for the device in a run."""
    run(Clock(device))
    silent = Silent(device)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run(silent)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum(SYNCHRONIZATION in str(warning.message) for warning in caught)


class Silent(Clock):
    """A clock that does not look, as that waits for the device too."""

    def start(self) -> None:
        """Do nothing."""

    def lap(self, name: str) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""


def measure(options: Options, progress: Progress) -> Result:
    """Time the steps and measure their memory."""
    preset, device = options.preset, options.device
    inputs = Inputs.random(preset, device)
    head = learning_head(preset, inputs)
    runs = {
        OURS: our_step(head, inputs),
        PUBLISHED: published_step(preset, inputs),
        UPDATE: update_alone(head, preset, inputs),
    }
    if options.compile:
        # A head of its own, as compiled code and the other calls would share counters.
        runs[COMPILED] = our_step(torch.compile(learning_head(preset, inputs), fullgraph=True), inputs)
    found: dict[str, Any] = {}
    if device.type == "cuda":
        found["synchronizations"] = {name: synchronizations(runs[name], device) for name in (OURS, PUBLISHED)}
    timings = race(runs, device, options.repeats, progress, lead_in=True)
    if device.type == "cuda":
        timings[GRAPH] = graph_timing(preset, inputs, options, progress)
    for name, timing in timings.items():
        found.setdefault("steps", {})[name] = entry(timing, 0 if name in (UPDATE, GRAPH) else inputs.gradient_bytes)
    return {
        "points": {"labeled": preset.images * (preset.grid_size + 1) ** 2,
                   "unlabeled": preset.images * preset.unlabeled_samples_per_image},
        "gradient_bytes": inputs.gradient_bytes,
        **found,
    }  # fmt: skip


def graph_timing(preset: Preset, inputs: Inputs, options: Options, progress: Progress) -> Timing:
    """Time the recorded step. Its memory belongs to the graph and is not measured."""
    try:
        run = graphed_step(learning_head(preset, inputs), inputs)
    except Exception as error:
        return Timing(failure=one_line(error))
    return race({GRAPH: run}, options.device, options.repeats, progress, memory=False, lead_in=True)[GRAPH]


def entry(timing: Timing, gradient_bytes: int) -> dict[str, Any]:
    """What is reported of one formulation; its memory without the gradients that all return."""
    found = timing.summary()
    if timing.extra_bytes is not None and "seconds" in found:
        found["extra_bytes"] = max(0, timing.extra_bytes - gradient_bytes)
    if isinstance(timing.result, dict):
        found |= {name: float(value) for name, value in timing.result.items()}
    return found


def tables(result: Result) -> list[Table]:
    """One row per formulation."""
    points, steps = result["points"], result["steps"]
    preset = result["setup"]["preset"]
    table = Table(
        f"One learn step: {points['labeled']} labeled and {points['unlabeled']} unlabeled points, "
        f"{preset['num_classes']} classes, D={preset['feature_dim']}",
        ("", "forward", "backward", "update", "sum", "x ours", "extra memory", "x ours"),
    )
    own = steps[OURS]
    for name, step in steps.items():
        if "failure" in step:
            table.rows.append([name, "failed", *[""] * 6])
            table.notes.append(f"{name} failed: {step['failure']}")
            continue
        parts = step["parts"]
        times = [show.seconds(parts[part]) if part in parts else "" for part in ("forward", "backward")]
        within = "in forward" if "forward" in parts else ""
        times.append(show.seconds(parts["update"]) if "update" in parts else within)
        cells = [name, *times, show.seconds(step["seconds"]), show.ratio(step["seconds"] / own["seconds"])]
        memory = step["extra_bytes"]
        if name == GRAPH:
            cells += ["", ""]
        else:
            compared = memory is not None and own["extra_bytes"]
            cells += [show.bytes_(memory), show.ratio(memory / own["extra_bytes"]) if compared else ""]
        table.rows.append(cells)
    gradients = show.bytes_(result["gradient_bytes"])
    table.notes.append(f"Not counted in the memory: the gradients of the feature maps, {gradients}, which all return.")
    for name, times_waited in result.get("synchronizations", {}).items():
        table.notes.append(f"{name} makes the host wait for the device {times_waited} times.")
    return [table]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command.run(sys.modules[__name__], argv)


if __name__ == "__main__":
    command.with_quiet_threads()
    sys.exit(main())
