"""A training that was saved goes on exactly as if it had not been."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from builders import fresh, gradients, head, labeled, run, same, state, step, unlabeled
from torch import nn

from brpg_lib import BRPGConfig, PrototypeHead, UnlabeledBatch, checkpoint
from brpg_lib.batches import LabeledBatch
from brpg_lib.checkpoint import pack, unpack
from brpg_lib.learn import diagnostics

PHASES = {"fresh": 0, "collect": 1, "collect middle": 2, "first learn step": 4, "second learn step": 5, "learn": 9}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "caps": {"samples_per_image": 15, "class_balance": 0.5},
    "reclustering": {"recluster_every": 3},
    "rare fallback": {"rare_class_fallback": True},
    "rare fallback, reclustering": {"rare_class_fallback": True, "recluster_every": 2},
    "rare fallback, small queues": {"rare_class_fallback": True, "recluster_every": 2, "queue_size": 15},
    "adaptive thresholds": {"class_adaptive": (0.2, 0.95), "adaptive_momentum": 0.9},
    "pooled": {"separate_confidence": False, "recluster_every": 4},
    "half-precision queue": {"queue_dtype": torch.bfloat16, "recluster_every": 3},
    "host queue": {"queue_device": "cpu", "recluster_every": 3},
    "longer collect phase": {"min_rows": 60, "max_collect": 6},
    "full rings": {"queue_size": 7, "recluster_every": 1},
}


def saved(module: nn.Module) -> dict[str, Any]:
    """The module's state after a file that may hold tensors and plain values only."""
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def batches(iteration: int, late: bool) -> tuple[LabeledBatch, UnlabeledBatch]:
    absent = (2,) if late and iteration < 11 else ()
    return labeled(10 * iteration, absent=absent), unlabeled(10 * iteration, absent=absent)


def assert_goes_on(module: PrototypeHead, resumed: PrototypeHead, steps: int = 10, late: bool = False) -> None:
    for _ in range(steps):
        assert resumed.iteration == module.iteration
        assert resumed.phase is module.phase
        one, two = (batches(module.iteration, late) for _ in range(2))
        out, other = module(*one), resumed(*two)
        assert torch.equal(out.loss, other.loss)
        assert same(dict(enumerate(gradients(out, *one))), dict(enumerate(gradients(other, *two))))
        assert same(out.metrics, other.metrics)
        assert same(state(module), state(resumed))


LATE = ("default", "reclustering", "rare fallback", "host queue")
CASES = [("default", phase, False) for phase in PHASES]
CASES += [
    (name, phase, False) for name in list(OPTIONS)[1:] for phase in ("collect middle", "first learn step", "learn")
]
CASES += [(name, phase, True) for name in LATE for phase in ("collect middle", "learn")]


@pytest.mark.parametrize(("options", "phase", "late"), CASES)
def test_goes_on_bit_for_bit(options: str, phase: str, late: bool) -> None:
    module, resumed = head(**OPTIONS[options]), head(**OPTIONS[options])
    while module.iteration < PHASES[phase]:
        module(*batches(module.iteration, late))
    resumed.load_state_dict(saved(module))
    assert_goes_on(module, resumed, late=late)


def test_goes_on_where_another_training_had_been() -> None:
    module, resumed = run(head(recluster_every=2), 2), run(head(recluster_every=2, seed=0), 11)
    resumed.load_state_dict(saved(module))
    assert_goes_on(module, resumed)


def test_goes_on_where_labels_show_a_class_long_after_it_has_prototypes() -> None:
    """The teacher has predicted it before."""
    module, resumed = head(), head()

    def show(each: PrototypeHead, i: int, absent: tuple[int, ...] = (2,)) -> None:
        each(labeled(10 * i, absent=absent), unlabeled(10 * i))

    for i in range(6):
        show(module, i)
    assert module.bank.present == [True] * 3
    resumed.load_state_dict(saved(module))
    for i in range(6, 9):
        show(module, i, absent=())
        show(resumed, i, absent=())
        assert same(state(module), state(resumed))


def test_goes_on_in_eval_mode_and_by_assignment() -> None:
    module, resumed = run(head(), 6), head()
    resumed.load_state_dict(saved(module), assign=True)
    assert_goes_on(module, resumed)
    assert torch.equal(module.eval()(labeled(), unlabeled()).loss, resumed.eval()(labeled(), unlabeled()).loss)


def test_saving_changes_nothing_and_is_no_alias_of_the_queue() -> None:
    module, twin = run(head(), 3), run(head(), 3)
    kept = module.state_dict()
    before = kept["queue.features"].clone()
    assert_goes_on(module, twin)
    assert torch.equal(kept["queue.features"], before)


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_a_state_dict_is_what_the_head_was_though_the_training_goes_on(steps: int) -> None:
    """But for the prototypes, a buffer that moving averages write to."""
    module, found = run(head(rare_class_fallback=True), 2), head(rare_class_fallback=True)
    kept = module.state_dict()
    before = {name: value.clone() for name, value in kept.items() if name != "bank.prototypes"}
    run(module, steps)
    assert same({name: kept[name] for name in before}, before)
    found.load_state_dict(kept)
    assert same({name: value for name, value in found.state_dict().items() if name in before}, before)


def test_a_head_without_values_has_the_keys_of_a_state() -> None:
    """Which loaders of large models ask for."""
    with torch.device("meta"):
        empty = head(rare_class_fallback=True)
    assert empty.state_dict().keys() == head(rare_class_fallback=True).state_dict().keys()
    assert run(head(), 9).to("meta").state_dict()["queue.features"].shape == (0, 5)


def test_a_checkpoint_is_no_larger_than_what_it_holds() -> None:
    module = run(head(queue_size=5000, recluster_every=5), 3)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    rows = int(module.queue.rows.sum())
    assert rows < 3 * 500
    assert len(file.getvalue()) < rows * 6 * 4 + 20_000


def test_deep_copies_are_independent() -> None:
    module = run(head(), 6)
    twin = copy.deepcopy(module)
    assert same(state(module), state(twin))
    run(module, 2)
    assert twin.iteration == 6
    assert not same(state(module), state(twin))
    run(twin, 2)
    assert same(state(module), state(twin))


def test_inside_a_model() -> None:
    """As part of a model with parameters, of which the parent's conversions reach only those."""
    model = nn.ModuleDict({"net": nn.Conv2d(3, 5, 1), "head": run(head(), 6)})
    before = state(model["head"])
    for convert in (model.half, model.double, lambda: model.to(torch.bfloat16), model.float):
        convert()
        assert same(state(model["head"]), before)
        assert all(b.dtype in (torch.float32, torch.int64, torch.bool) for _, b in model["head"].named_state())
    other = nn.ModuleDict({"net": nn.Conv2d(3, 5, 1), "head": head()})
    other.load_state_dict(saved(model))
    assert same(state(other), state(model))
    assert_goes_on(model["head"], other["head"], 3)


def test_a_meta_head_loads_by_assignment() -> None:
    module = run(head(), 6)
    with torch.device("meta"):
        empty = head()
    empty.load_state_dict(saved(module), assign=True)
    assert empty.bank.present == [True] * 3
    assert_goes_on(module, empty)


def test_a_head_of_values_by_chance_loads() -> None:
    options: dict[str, Any] = {"recluster_every": 3, "class_adaptive": (0.2, 0.9), "fixed_threshold_classes": (1,)}
    module = run(head(**options), 6)
    with torch.device("meta"):
        empty = head(queue_device="cpu", **options)
        empty = head(**options)
    empty = empty.to_empty(device="cpu")
    for name, buffer in empty.named_state():
        buffer.fill_(1 if name == "queue.rows" else 0)
    empty.load_state_dict(saved(module))
    assert_goes_on(module, empty)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_classes": 4}, r"num_classes is 3, here 4"),
        ({"dim": 6}, r"feature_dim is 5, here 6"),
        ({"num_prototypes": (3, 2)}, r"config\.num_prototypes is \[2, 2\], here \[3, 2\]"),
        ({"queue_size": 100}, r"config\.queue_size is 200, here 100"),
        ({"queue_size": 300}, r"config\.queue_size is 200, here 300"),
        ({"queue_dtype": torch.float16}, r"queue_dtype is 'torch\.float32', here 'torch\.float16'"),
        ({"temperature": 0.2}, r"config\.temperature is 0\.1, here 0\.2"),
        ({"class_adaptive": (0.1, 0.9)}, r"config\.class_adaptive is None, here \[0\.1, 0\.9\]"),
        ({"momentum": 0.5, "grid_size": 7}, r"config\.grid_size is 6, here 7; config\.momentum is 0\.99, here 0\.5"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_of_another_head_says_what_differs(other: dict[str, Any], message: str, nested: bool) -> None:
    module = run(head(), 6)
    found = run(head(other.pop("num_classes", 3), other.pop("dim", 5), **other), 3)
    other |= {"num_classes": found.num_classes, "dim": found.feature_dim}
    before = state(found)
    source, target = (nn.ModuleDict({"head": m}) if nested else m for m in (module, found))
    with pytest.raises(ValueError, match=message):
        target.load_state_dict(saved(source))
    assert same(state(found), before), "nothing was changed"


def test_a_checkpoint_with_missing_or_other_fields_says_so() -> None:
    module = run(head(), 3)
    parts = saved(module)
    values = unpack(parts["_extra_state"])
    values["config"].pop("momentum")
    parts["_extra_state"] = pack(values)
    with pytest.raises(ValueError, match=r"config\.momentum is None, here 0\.99"):
        head().load_state_dict(parts)
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        head().load_state_dict({k: v for k, v in saved(module).items() if k != "_extra_state"})


@pytest.mark.parametrize("broken", ["confidence", "cursor"])
def test_a_damaged_state_changes_nothing(broken: str) -> None:
    parts, found = saved(run(head(), 3)), run(head(), 2)
    before = state(found)
    wrong = parts["queue.confidence"][1:] if broken == "confidence" else parts["queue.cursor"] + 1
    with pytest.raises(ValueError, match=rf"queue\.{broken}: expected"):
        found.load_state_dict(parts | {f"queue.{broken}": wrong})
    assert same(state(found), before)


def test_a_state_of_the_first_version_is_migrated() -> None:
    module, resumed = run(head(), 6), head()
    old = saved(module)
    del old["idle"], old["limits.values"]
    old["_extra_state"] = pack(unpack(old["_extra_state"]) | {"version": 1})
    resumed.load_state_dict(old)
    module.idle.zero_()
    assert_goes_on(module, resumed)


def test_a_state_from_before_a_setting_existed() -> None:
    """It goes on in a head that does what was done then, and in no other."""
    module, resumed = run(head(), 6), head()
    values = unpack(saved(module)["_extra_state"])
    for name in checkpoint.BEFORE:
        values["config"].pop(name.removeprefix("config."))
    old = saved(module) | {"_extra_state": pack(values)}
    resumed.load_state_dict(old)
    assert_goes_on(module, resumed)
    with pytest.raises(ValueError, match=r"config\.point_balance is 0\.0, here 0\.5"):
        head(point_balance=0.5).load_state_dict(old)


@pytest.mark.parametrize(("version", "message"), [(0, "no state of a head"), (99, "upgrade brpg-lib"), (None, "None")])
def test_states_of_other_versions_are_refused(version: int | None, message: str) -> None:
    parts = saved(run(head(), 2))
    parts["_extra_state"] = pack(unpack(parts["_extra_state"]) | {"version": version})
    with pytest.raises(ValueError, match=message):
        head().load_state_dict(parts)


def test_not_strictly_a_setting_may_change_in_a_training_that_goes_on() -> None:
    module, other = run(head(), 6), head(temperature=0.5, momentum=0.9)
    with pytest.raises(ValueError, match=r"strict=False\) goes on with what is set here"):
        other.load_state_dict(saved(module))
    with pytest.warns(
        UserWarning, match=r"config\.temperature is 0\.1, here 0\.5; config\.momentum is 0\.99, here 0\.9"
    ):
        other.load_state_dict(saved(module), strict=False)
    assert other.iteration == 6
    assert other.config.temperature == 0.5
    assert torch.equal(other.bank.prototypes, module.bank.prototypes)
    step(other)


@pytest.mark.parametrize("options", [{"queue_size": 100}, {"num_prototypes": (3, 2)}, {"rare_class_fallback": True}])
def test_not_strictly_sizes_have_to_fit_all_the_same(options: dict[str, Any]) -> None:
    found = run(head(**options), 2)
    before = state(found)
    with pytest.raises(ValueError, match=f"config.{next(iter(options))} is"):
        found.load_state_dict(saved(run(head(), 6)), strict=False)
    assert same(state(found), before)


@pytest.mark.parametrize("steps", [0, 3, 9])
def test_not_strictly_the_iteration_stays_without_extra_state(steps: int) -> None:
    parts, found = saved(run(head(), 6)), run(head(), steps)
    del parts["_extra_state"]
    found.load_state_dict(parts, strict=False)
    assert found.iteration == steps
    assert all(found.bank.present)
    step(found)
    assert found.iteration == steps + 1


@pytest.mark.parametrize("steps", [3, 9])
def test_other_weights_for_the_model_leave_the_head_alone(steps: int, recwarn: pytest.WarningsRecorder) -> None:
    """As where a validation puts averaged weights into the model that trains, and takes them out again."""
    model = nn.ModuleDict({"net": nn.Conv2d(3, 5, 1), "head": run(head(), steps)})
    twin = run(head(), steps)
    recwarn.clear()
    for _ in range(2):
        model.load_state_dict(dict(nn.ModuleDict({"net": nn.Conv2d(3, 5, 1)}).state_dict()), strict=False)
    assert not recwarn.list
    assert_goes_on(twin, model["head"])


def test_equal_configs_written_otherwise_load() -> None:
    one = BRPGConfig(queue_size=200, loss_weight=1, class_adaptive=[0.2, 0.9])  # type: ignore[arg-type]
    two = BRPGConfig(queue_size=200, loss_weight=1.0, class_adaptive=(0.2, 0.9))
    head(config=two).load_state_dict(saved(run(head(config=one), 3)))


def test_a_longer_schedule_is_no_other_head() -> None:
    module, longer = run(head(), 6), head(total=500)
    longer.load_state_dict(saved(module))
    assert longer.iteration == 6


def test_a_refused_batch_after_loading_changes_nothing() -> None:
    resumed = head()
    resumed.load_state_dict(saved(run(head(), 3)))
    before = state(resumed)
    with pytest.raises(ValueError, match="labels"):
        resumed(fresh(labeled(), labels=torch.full((2, 17, 21), 9)), unlabeled())
    assert same(state(resumed), before)
    step(resumed)


def test_the_seed_travels_with_the_state() -> None:
    first = run(head(seed=3, samples_per_image=5), 2)
    second = head(seed=4, samples_per_image=5)
    second.load_state_dict(first.state_dict())
    assert same(state(run(first, 4)), state(run(second, 4)))


@pytest.mark.parametrize("phase", PHASES)
def test_safetensors_hold_the_state(phase: str) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    module = run(head(recluster_every=3), PHASES[phase])
    found = head(recluster_every=3)
    found.load_state_dict(safetensors.load(safetensors.save(module.state_dict())))
    assert same(state(found), state(module))
    assert found.iteration == module.iteration


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("steps", [2, 9])
def test_reset_is_a_new_head(options: str, steps: int) -> None:
    module, new = run(head(**OPTIONS[options]), steps), head(**OPTIONS[options])
    module.reset()
    assert module.iteration == 0
    assert_goes_on(new, module, steps=8)


def test_reading_has_no_effects(recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    module = run(head(), 9)
    monkeypatch.setattr(diagnostics, "DEAD_AFTER", 0)  # all prototypes are dead
    recwarn.clear()
    before = state(module)
    text = repr(module)
    assert "iteration=9, phase=learn" in text
    assert "prototypes=" in text
    assert "rows=" in text
    _ = module.iteration, module.phase, module.settled, module.samples_weak_views, module.state_dict()
    assert not recwarn.list
    assert same(state(module), before)
    step(module)
    assert any("dead" in str(warning.message) for warning in recwarn.list)


def test_a_head_without_values_can_be_shown() -> None:
    with torch.device("meta"):
        assert "num_classes=3" in repr(head().to("meta"))


def test_loading_replaces_no_buffer() -> None:
    """A captured CUDA graph reads the memory that it knows."""
    module, other = (
        run(head(fixed_threshold_classes=(1,), class_adaptive=(0.2, 0.9)), 9),
        run(head(fixed_threshold_classes=(1,), class_adaptive=(0.2, 0.9)), 7),
    )
    assert module.settled
    assert other.settled
    before = {name: buffer.data_ptr() for name, buffer in module.named_state()}
    module.load_state_dict(saved(other))
    assert {name: buffer.data_ptr() for name, buffer in module.named_state()} == before
    assert module.iteration == 7
    assert_goes_on(other, module)
