"""A head inside a model that is averaged, copied, pickled, moved or made without values, as trainers do with models."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import head, labeled, run, same, state, step, unlabeled
from packages import needs_torch_2_5
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from brpg_lib import LabeledBatch, PrototypeHead

STEPS = 8
"""A step of warm-up, three of collecting, then learning: the queues fill, are given back, and the iteration grows."""


class Segmenter(nn.Module):
    """A network that holds a head and classifies by its prototypes."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(5, 5, 1), nn.GroupNorm(1, 5))
        self.head = head(**options)

    def forward(self, seed: int) -> Tensor:
        first, second = labeled(seed), unlabeled(seed)
        features = first.features + 0.1 * self.net(first.features.detach())
        out = self.head(LabeledBatch(features=features, logits=first.logits, labels=first.labels), second)
        return out.loss + features.mean()


def averaged_model(**options: Any) -> Callable[[nn.Module], Callable[[nn.Module], nn.Module]]:
    def start(model: nn.Module) -> Callable[[nn.Module], nn.Module]:
        average = AveragedModel(model, **options)

        def update(model: nn.Module) -> nn.Module:
            average.update_parameters(model)
            return average.module

        return update

    return start


def timm_ema(name: str, **options: Any) -> Callable[[nn.Module], Callable[[nn.Module], nn.Module]]:
    def start(model: nn.Module) -> Callable[[nn.Module], nn.Module]:
        utils = pytest.importorskip("timm.utils")
        ema = getattr(utils, name)(model, decay=0.5, **options)

        def update(model: nn.Module) -> nn.Module:
            ema.update(model)
            return ema.ema if name == "ModelEma" else ema.module

        return update

    return start


def by_hand(model: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """As UniMatch V2 does it."""
    twin = copy.deepcopy(model)

    def update(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for own, other in zip(twin.parameters(), model.parameters(), strict=True):
                own.copy_(0.5 * own + 0.5 * other)
            for own, other in zip(twin.buffers(), model.buffers(), strict=True):
                own.copy_(0.5 * own + 0.5 * other)
        return twin

    return update


def by_state_dict(model: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """A loop over state dicts."""
    twin = copy.deepcopy(model)

    def update(model: nn.Module) -> nn.Module:
        other = model.state_dict()
        for name, value in twin.state_dict().items():
            value.copy_(value * 0.5 + 0.5 * other[name])
        return twin

    return update


AVERAGES = {
    "AveragedModel": averaged_model(),
    "AveragedModel, buffers": averaged_model(use_buffers=True),
    "AveragedModel, SWA foreach": averaged_model(use_buffers=True, multi_avg_fn=get_swa_multi_avg_fn()),
    "AveragedModel, EMA": averaged_model(use_buffers=True, avg_fn=get_ema_avg_fn(0.5)),
    "AveragedModel, EMA foreach": averaged_model(use_buffers=True, multi_avg_fn=get_ema_multi_avg_fn(0.5)),
    "timm ModelEma": timm_ema("ModelEma"),
    "timm ModelEmaV2": timm_ema("ModelEmaV2", device="cpu"),
    "timm ModelEmaV3": timm_ema("ModelEmaV3"),
    "timm ModelEmaV3, no foreach": timm_ema("ModelEmaV3", foreach=False, device="cpu"),
    "by hand": by_hand,
    "state dicts": by_state_dict,
}


@pytest.mark.parametrize("options", [{}, {"recluster_every": 2}, {"rare_class_fallback": True}, {"start": 6}], ids=str)
@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_a_moving_average_of_the_model(
    average: Callable[[nn.Module], Callable[[nn.Module], nn.Module]], options: dict[str, Any]
) -> None:
    """The model trains as if nobody looked; its average classifies as it does, and its own iteration stays."""
    torch.manual_seed(0)
    start = options.get("start", 0)
    settings = {name: value for name, value in options.items() if name != "start"}
    model, alone = Segmenter(**settings), Segmenter(**settings)
    alone.load_state_dict(state(model))
    update: Callable[[nn.Module], nn.Module] | None = None
    for i in range(STEPS + 10):
        if i == start:
            update = average(model)
        for each in (model, alone):
            each.train()(10 * i)
        if update is not None:
            twin = update(model)
    assert same(state(model), state(alone))
    found = twin.eval().head  # type: ignore[union-attr]
    assert isinstance(found, PrototypeHead)
    assert found.iteration == start
    assert found.bank.present == [True] * 3
    points = labeled(7).features.detach()
    assert (found.bank.classify(points) == model.head.bank.classify(points)).float().mean() > 0.95
    before = state(found)
    found(labeled(3), unlabeled(3))
    assert same(state(found), before)
    assert all(value.isfinite().all() for _, value in found.named_state())


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_a_moving_average_that_begins_while_a_class_is_awaited(
    average: Callable[[nn.Module], Callable[[nn.Module], nn.Module]],
) -> None:
    """The queues are cut, and the model's grow again: those of the average have no rows, and its state says so."""
    model = Segmenter(num_prototypes=(150, 150), split_fraction=0.0)
    run(model.head, 6, absent=(2,))
    update = average(model)
    for i in range(2):
        model(10 * i)
        twin = update(model)
    assert model.head.queue.rows[2].any()
    saved = twin.state_dict()
    assert not saved[next(name for name in saved if name.endswith("queue.rows"))].any()
    again = Segmenter(num_prototypes=(150, 150), split_fraction=0.0)
    again.load_state_dict(saved)
    assert again.eval().head.bank.present == twin.eval().head.bank.present  # type: ignore[union-attr]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("start", [0, 2, 6])
@pytest.mark.parametrize("options", [{}, {"recluster_every": 2}, {"rare_class_fallback": True}], ids=str)
def test_an_average_of_state_dicts_is_put_in_for_a_validation(
    options: dict[str, Any], start: int, in_place: bool
) -> None:
    """By trainers without a second model, which average what is floating point and load the own state afterwards."""
    module, alone = run(head(**options), start), run(head(**options), start)
    shadow = state(module)
    for _ in range(12):
        step(module)
        step(alone)
        for name, value in module.state_dict().items():
            if not value.is_floating_point():
                shadow[name] = value.clone()
            elif in_place:
                shadow[name].mul_(0.5).add_(value, alpha=0.5)
            else:
                shadow[name] = 0.5 * shadow[name] + 0.5 * value
        own = state(module)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the queues of the head are empty now")
            module.load_state_dict(shadow)
        assert module.eval()(labeled(), unlabeled()).loss.isfinite()
        module.train().load_state_dict(own)
        assert same(state(module), state(alone))


def test_an_average_of_state_dicts_says_that_it_has_no_rows() -> None:
    module, found = run(head(), 2), head()
    shadow = state(module)
    other = state(run(module, 1))
    every = {name: 0.5 * shadow[name] + 0.5 * value for name, value in other.items()}
    shadow = {name: every[name] if value.is_floating_point() else value for name, value in other.items()}
    with pytest.warns(UserWarning, match=r"the queues of the head are empty now: .* a moving average of states"):
        found.load_state_dict(shadow)
    assert not found.queue.rows.any()
    assert same(run(found, 8).state_dict().keys(), module.state_dict().keys())
    assert all(found.bank.present)
    with pytest.raises(ValueError, match=r"_extra_state: expected bytes, found .*; average only what is floating"):
        head().load_state_dict(every)


def test_what_averaging_sees_has_one_shape() -> None:
    """Names and sizes of buffers and parameters never change, nor does the length of what a checkpoint says."""
    module = head(recluster_every=4)
    expected = None
    for i in range(12):
        step(module)
        if i == 9:
            module.queue.release()
        shapes = {name: value.shape for name, value in [*module.named_buffers(), *module.named_parameters()]}
        shapes["_extra_state"] = module.get_extra_state().shape
        assert expected is None or shapes == expected
        expected = shapes
    assert list(dict(module.named_buffers())) == ["bank.prototypes"]
    module(labeled(), iteration=10**9)
    assert module.get_extra_state().shape == shapes["_extra_state"]


def test_an_average_of_a_model_that_was_looked_at_before() -> None:
    """However often either of them has been written since."""
    for updates in range(6):
        model = Segmenter()
        for _ in range(updates + 2):
            model.head.bank.reset()
        model.eval().head.bank.similarity(torch.ones(1, 5))
        update = by_hand(model)
        model.train()
        for i in range(6):
            model(10 * i)
        for _ in range(updates + 1):
            twin = update(model)
        assert twin.eval().head.bank.present == [True] * 3


def test_rows_of_equal_length_are_plain_tensors() -> None:
    rows = run(head(), 4).state_dict()["queue.features"]
    plain = rows.as_subclass(torch.Tensor)
    assert torch.equal((rows + rows).as_subclass(torch.Tensor), plain + plain)
    assert torch.equal(rows.clone().lerp_(rows, 0.3), plain.lerp(plain, 0.3))
    torch._foreach_add_([twin := rows.clone(), other := torch.zeros(2)], 1.0)
    assert torch.equal(twin.as_subclass(torch.Tensor), plain + 1)
    assert torch.equal(other, torch.ones(2))
    with pytest.raises(RuntimeError, match="size"):
        rows + torch.zeros(2, 7)
    with pytest.raises(RuntimeError, match=r"[Ss]ize"):
        torch.cat((rows, rows[:1]), dim=1)


def test_a_file_holds_plain_tensors_only() -> None:
    module = run(head(rare_class_fallback=True), 4)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    assert b"brpg_lib" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert {type(value) for value in loaded.values()} == {torch.Tensor}
    assert same(loaded, {name: value.as_subclass(torch.Tensor) for name, value in module.state_dict().items()})
    for assign in (False, True):
        twin = head(rare_class_fallback=True)
        twin.load_state_dict(copy.deepcopy(module.state_dict()), assign=assign)
        assert {type(value) for _, value in twin.named_state()} == {torch.Tensor}
        assert same(state(run(twin, 3)), state(run(copy.deepcopy(module), 3)))


@pytest.mark.parametrize("steps", [0, 3, 6])
def test_pickled_and_copied_inside_a_model(steps: int) -> None:
    model = Segmenter()
    for i in range(steps):
        model(10 * i)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))):
        assert same(state(twin), state(model))
        for i in range(steps, steps + 4):
            twin(10 * i)
        assert twin.head.iteration == steps + 4
        assert model.head.iteration == steps


OPTIONS: list[dict[str, Any]] = [
    {},
    {"class_adaptive": (0.2, 0.9), "fixed_threshold_classes": (1,), "pseudo_label_share": 0.5},
    {"separate_confidence": False, "queue_dtype": torch.bfloat16},
    {"rare_class_fallback": True, "recluster_every": 3},
]


def by_chance(value: Tensor) -> Tensor:
    """What memory may hold: a large number, or true."""
    return torch.full(value.shape, 113, dtype=torch.uint8, device="cpu").to(value.dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_made_without_values_then_given_some(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """``to_empty`` then ``reset_parameters``, as FSDP does it with each module that has them."""
    with torch.device("meta"):
        model = Segmenter(**options)
        repr(model)
        str(model.head.queue)
    empty_like = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda value, **kwargs: by_chance(empty_like(value, **kwargs)))
    model.to_empty(device="cpu")
    monkeypatch.undo()
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    plain = head(**options)
    assert same(state(model.head), state(plain))
    assert same(state(run(model.head, 8)), state(run(plain, 8)))


def test_reset_alone_is_enough_after_to_empty() -> None:
    with torch.device("meta"):
        module = head()
    module = module.to_empty(device="cpu")
    module.reset()
    assert same(state(run(module, 8)), state(run(head(), 8)))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_made_loaded_and_moved_where_no_gradients_are_wanted(mode: Any) -> None:
    """Validation loops build, load and move things in inference mode; training goes on outside of it."""
    trained = run(head(), 6)
    with mode():
        made, loaded, released = head(), head(), run(head(), 4) if mode is torch.no_grad else head()
        loaded.load_state_dict(trained.state_dict())
        loaded.to("cpu")
        released.queue.release()
        released.bank.classify(torch.ones(1, 5)) if any(released.bank.present) else None
        loaded.eval()(labeled())
        loaded.train()
    for module in (made, loaded, released):
        assert not any(value.is_inference() for _, value in module.named_state())
    assert same(state(run(made, 8)), state(run(head(), 8)))
    assert same(state(run(loaded, 3)), state(run(trained, 3)))


def test_no_training_in_inference_mode() -> None:
    module = run(head(), 3)
    before = state(module)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        step(module)
    assert same(state(module), before)


@needs_torch_2_5
def test_lightnings_weight_averaging(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning")
    callbacks = pytest.importorskip("lightning.pytorch.callbacks")
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("needs a newer lightning")

    class Module(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = Segmenter()

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss: Tensor = self.model(10 * index)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    module = Module()
    trainer = lightning.Trainer(
        max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[callbacks.EMAWeightAveraging(decay=0.5)],
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(range(STEPS)))
    found = module.eval().model.head.bank
    assert found.present == [True] * 3
