"""Prototypes that come from another training: which class gets which, and what a head does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import assert_sound, head, random_bank, run, same, state, step
from hypothesis import given
from hypothesis import strategies as st

from brpg_lib import Phase, PrototypeBank, PrototypeHead


def adopted(own: PrototypeBank, other: PrototypeBank, mapping: dict[int, int]) -> list[list[list[list[float]]]]:
    """Prototypes of each class and group in order, as lists, by plain loops."""
    found = []
    for index in range(own.num_classes):
        bank, source = (other, mapping[index]) if index in mapping else (own, index)
        groups = []
        for group in range(2):
            exist = bank.mask[source, group].tolist()
            groups.append([bank.prototypes[source, group, slot].tolist() for slot, on in enumerate(exist) if on])
        found.append(groups)
    return found


@given(
    classes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    slots=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    dim=st.integers(1, 4),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_adopts_as_plain_loops_do(classes, slots, dim, seed, data):
    (own, _), (other, _) = (random_bank(c, k, dim, seed + c, share=0.6) for c, k in zip(classes, slots, strict=True))
    keys = data.draw(st.lists(st.integers(0, classes[0] - 1), unique=True))
    mapping = {key: data.draw(st.integers(0, classes[1] - 1)) for key in keys}
    before, source = state(own), state(other)
    expected = adopted(own, other, mapping)
    possible = all(any(expected[key]) and max(map(len, expected[key])) <= slots[0] for key in mapping)
    if possible:
        own.adopt(other, mapping)
        assert adopted(own, own, {}) == expected
        assert not own.prototypes[~own.mask].any()
        for key in set(range(classes[0])) - set(mapping):
            assert torch.equal(own.mask[key], before["mask"][key]), "classes that are not named stay as they are"
    else:
        with pytest.raises(ValueError, match=r"mapping: expected classes with prototypes|other: expected at most"):
            own.adopt(other, mapping)
        assert same(state(own), before)
    assert same(state(other), source)


def test_names_and_indices_mean_the_same() -> None:
    other, _ = random_bank(3, 2, 4, 0, share=1.1)
    banks = [PrototypeBank(2, 4, num_prototypes=(2, 2), split_fraction=0.0) for _ in range(3)]
    names = {"names": ("road", "car"), "other_names": ("sky", "street", "vehicle")}
    banks[0].adopt(other, {1: 2, 0: 1})
    banks[1].adopt(other, {"car": "vehicle", "road": "street"}, **names)
    banks[2].adopt(other, {"car": 2, 0: "street"}, **names)  # type: ignore[arg-type]
    assert same(state(banks[0]), state(banks[1]))
    assert same(state(banks[0]), state(banks[2]))
    assert torch.equal(banks[0].prototypes[1], other.prototypes[2])


def test_classes_of_one_bank_change_places() -> None:
    bank, _ = random_bank(3, 2, 4, 0, share=1.1)
    before = bank.prototypes.clone()
    bank.adopt(bank, {0: 2, 2: 0})
    assert torch.equal(bank.prototypes, before[[2, 1, 0]])


def test_similarity_is_that_of_the_other() -> None:
    other, _ = random_bank(4, 3, 6, 1, share=0.8)
    bank = PrototypeBank(2, 6, num_prototypes=(5, 5), split_fraction=0.0)
    bank.adopt(other, {0: 3, 1: 0})
    features = torch.randn(20, 6)
    torch.testing.assert_close(bank.similarity(features), other.similarity(features)[:, [3, 0]])


@pytest.mark.parametrize(
    ("mapping", "options", "message"),
    [
        ({0: 3}, {}, "mapping: expected an integer >= 0 and <= 2, found 3"),
        ({-1: 0}, {}, "mapping: expected an integer >= 0, found -1"),
        ({0: 1.0}, {}, "mapping: expected an integer >= 0, found 1.0"),
        ({True: 0}, {}, "mapping: expected an integer >= 0, found True"),
        ({"car": 0}, {}, r"mapping: expected class indices, or names among \[\], found 'car'"),
        ({"cat": 0}, {"names": "abc"}, r"mapping: expected class indices, or names among \['a', 'b', 'c'\]"),
        ({"a": 0, 0: 1}, {"names": "abc"}, r"mapping: expected each own class once, found \[0, 0\]"),
        ({0: 1}, {"names": ("a", "b")}, r"names: expected none, or 3 names that differ, found \['a', 'b'\]"),
        ({0: 1}, {"other_names": ("a", "b", "a")}, "other_names: expected none, or 3 names that differ"),
        ([(0, 1)], {}, "mapping: expected a dict from own classes to the other's, found list"),
        ({0: 0, 1: 2}, {}, "mapping: expected classes with prototypes, found class 2 of the other, without any"),
    ],
)
def test_a_wrong_mapping_changes_nothing(mapping: Any, options: dict[str, Any], message: str) -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    other, _ = random_bank(3, 2, 4, 1, share=1.1)
    other.mask[2] = False
    before = state(bank)
    with pytest.raises((TypeError, ValueError), match=message):
        bank.adopt(other, mapping, **options)
    assert same(state(bank), before)


def test_another_bank_that_does_not_fit_changes_nothing() -> None:
    bank, _ = random_bank(3, 2, 4, 0)
    before = state(bank)
    with pytest.raises(TypeError, match="other: expected a PrototypeBank, found OrderedDict"):
        bank.adopt(bank.state_dict(), {0: 0})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other: expected prototypes of 4 channels, found 5"):
        bank.adopt(random_bank(3, 2, 5, 0)[0], {0: 0})
    large, _ = random_bank(3, 3, 4, 0, share=1.1)
    with pytest.raises(ValueError, match=r"other: expected at most 2 .*, found \(3, 3\) of its class 1"):
        bank.adopt(large, {0: 1})
    large.prototypes[1, 0, 0, 0] = torch.nan
    large.mask[1, :, 2] = False
    with pytest.raises(ValueError, match="vectors: expected finite values"):
        bank.adopt(large, {0: 1})
    assert same(state(bank), before)


def trained_bank(classes: int = 4) -> PrototypeBank:
    return run(head(num_classes=classes), 6).bank


def heads(**options: Any) -> tuple[PrototypeHead, PrototypeBank]:
    other = trained_bank()
    module = head(num_classes=other.num_classes, **options)
    return module, other


def test_a_head_learns_from_its_first_step_with_adopted_prototypes() -> None:
    module, other = heads(warmup=0, collect=0)
    module.bank.adopt(other, {index: index for index in range(module.num_classes)})
    adopted = module.bank.prototypes.clone()
    for _ in range(4):
        out, *batches = step(module)
        assert out.phase is Phase.LEARN
        assert_sound(out, *batches)
        assert out.loss_labeled > 0
    assert module.settled
    assert int(module.queue.rows.sum()) == 0, "no queue is needed"
    moved = (module.bank.prototypes - adopted)[module.bank.mask].norm() / adopted.norm()
    assert 0 < moved < 0.1, "they are not clustered anew, but move"


def test_a_head_keeps_adopted_prototypes_and_makes_those_of_other_classes() -> None:
    module, other = heads(momentum=1.0)
    module.bank.adopt(other, {1: 2})
    adopted = module.bank.prototypes[1].clone()
    for _ in range(4):
        assert step(module)[0].loss == 0, "warm-up and collect pass as scheduled"
    run(module, 4)
    assert all(module.bank.present)
    assert torch.equal(module.bank.prototypes[1], adopted)


def test_a_clustering_that_is_due_replaces_adopted_prototypes() -> None:
    module, other = heads(momentum=1.0, recluster_every=3)
    module.bank.adopt(other, {1: 2})
    adopted = module.bank.prototypes[1].clone()
    run(module, 7)
    assert torch.equal(module.bank.prototypes[1], adopted)
    run(module, 1)
    assert not torch.equal(module.bank.prototypes[1], adopted)


def test_a_settled_head_that_adopts_goes_on() -> None:
    module, other = heads()
    run(module, 7)
    assert module.settled
    module.bank.adopt(other, {0: 3})
    out, *_ = step(module)
    assert out.loss > 0
    assert module.iteration == 8
    assert module.settled


def test_the_other_bank_may_be_on_another_device(device: torch.device) -> None:
    other, _ = random_bank(3, 2, 4, 0, share=1.1)
    bank, expected = (PrototypeBank(2, 4, num_prototypes=(2, 2), split_fraction=0.0) for _ in range(2))
    expected.adopt(other, {0: 2})
    bank.to(device).adopt(other, {0: 2})
    assert bank.prototypes.device.type == device.type
    assert torch.equal(bank.prototypes.cpu(), expected.prototypes)
    assert torch.equal(bank.mask.cpu(), expected.mask)


@pytest.mark.parametrize("options", [{}, {"warmup": 0, "collect": 0}])
def test_queues_that_nothing_will_read_give_their_memory_back(options: dict[str, Any]) -> None:
    for more, kept in (({}, False), ({"recluster_every": 50}, True)):
        module, other = heads(**options, **more)
        module.bank.adopt(other, {index: index for index in range(module.num_classes)})
        run(module, 7)
        assert (module.queue.features.numel() > 0) == kept
        again = head(num_classes=module.num_classes, **options, **more)
        again.load_state_dict(module.state_dict())
        assert torch.equal(step(again)[0].loss, step(module)[0].loss)
