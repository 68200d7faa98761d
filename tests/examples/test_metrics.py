from types import SimpleNamespace

import pytest
import torch

from brpg_lib.examples.training.metrics import boundary_band, evaluate, mean_of_present
from brpg_lib.examples.training.reports.demo import most_changed


def test_iou_by_hand():
    label = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 255]]])
    prediction = torch.tensor([[[0, 1, 1, 1], [0, 0, 1, 0]]])
    scores = evaluate([(prediction, label)], num_classes=3)
    assert scores.iou[0] == pytest.approx(75)  # 3 of 4
    assert scores.iou[1] == pytest.approx(75)  # 3 of 4
    assert scores.iou[2] is None
    assert scores.miou == pytest.approx(75)


def test_predicting_an_absent_class_costs_the_true_one_only():
    label = torch.zeros(1, 2, 2, dtype=torch.long)
    prediction = torch.tensor([[[0, 0], [0, 2]]])
    scores = evaluate([(prediction, label)], num_classes=3)
    assert scores.iou == [pytest.approx(75), None, None]


def test_band_by_hand():
    label = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    assert boundary_band(label, 1).tolist() == [[[False, False, False, True, True, False, False, False]]]
    assert boundary_band(label, 2).tolist() == [[[False, False, True, True, True, True, False, False]]]


def test_ignored_pixels_make_no_boundary():
    label = torch.tensor([[[0, 0, 255, 255, 0, 1]]])
    assert boundary_band(label, 1).tolist() == [[[False, False, False, False, True, True]]]
    assert not boundary_band(torch.full((1, 4, 4), 255), 2).any()


def test_boundary_iou_ignores_what_is_far_from_boundaries():
    label = torch.tensor([[[0, 0, 0, 0, 1, 1, 1, 1]]])
    prediction = torch.tensor([[[1, 1, 0, 0, 1, 1, 0, 0]]])
    scores = evaluate([(prediction, label)], num_classes=2, radius=2)
    assert scores.boundary_miou == pytest.approx(100)
    assert scores.miou == pytest.approx(100 / 3)


def test_mean_of_present():
    assert mean_of_present([None, 1.0, 3.0]) == 2
    assert mean_of_present([None]) == 0


def test_examples_come_from_all_parts_of_the_test_set():
    label = torch.zeros(2, 2, dtype=torch.long)
    before = [torch.zeros(2, 2, dtype=torch.long) for _ in range(6)]
    after = [prediction.clone() for prediction in before]
    for index, changed in ((0, 3), (1, 4), (2, 2), (5, 1)):
        after[index].view(-1)[:changed] = 1
    data = SimpleNamespace(test=[(None, label)] * 6)
    results = {"baseline": {"predictions": before}, "head": {"predictions": after}}
    assert most_changed(results, data, 2) == [1, 5]
    assert most_changed(results, data, 9) == [0, 1, 2, 3, 4, 5]
