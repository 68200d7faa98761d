"""Several processes against each other and against one that sees all images."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from builders import fresh, head, labeled, same, state, unlabeled
from ranks import finish, on_ranks, start
from torch import Tensor, nn
from torch.testing import assert_close

from brpg_lib import BRPGConfig, LabeledBatch, PrototypeHead, Schedule, UnlabeledBatch
from brpg_lib.distributed import all_reduce_sum, gather_rows, rank
from brpg_lib.distributed import world_size as size_of_world
from brpg_lib.ranks.agreement import from_pieces, in_pieces
from brpg_lib.ranks.collectives import share_of
from brpg_lib.ranks.exchange import StepSums, exchange

STEPS = 9
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "adaptive": {"class_adaptive": (0.1, 0.95), "adaptive_momentum": 0.9, "recluster_every": 2},
    "capped": {"samples_per_image": 20, "unlabeled_samples_per_image": 10, "recluster_every": 3, "queue_size": 50},
    "fallback": {"rare_class_fallback": True, "misclassified_weight": 2.0, "point_balance": 1.0},
    "by class": {"pseudo_label_share": 0.4},
    "pooled": {"separate_confidence": False, "centroid": "confidence"},
    "class awaited": {},
    "host queue": {"queue_device": "cpu", "queue_dtype": torch.bfloat16},
}
LONG = 204


def images(step: int, index: int, absent: tuple[int, ...] = ()) -> tuple[LabeledBatch, UnlabeledBatch]:
    """Rank 0 has one image of each kind, rank 1 two, and so on; now and then rank 1 has nothing to say."""
    count, seed = index % 3 + 1, 100 * step + 10 * index
    first = labeled(seed, num_images=count, absent=absent)
    second = unlabeled(seed, num_images=count, weak_images=count, absent=absent)
    if index == 1 and step in (2, 6):
        first = fresh(first, labels=torch.full_like(first.labels, 255))
        second = fresh(second, confidence=0 * second.confidence, weak_logits=0 * second.weak_logits)
    return first, second


def absent_from(name: str, step: int) -> tuple[int, ...]:
    """Classes that no image of a step shows."""
    return (2,) if name == "class awaited" and step < 6 else ()


def of_all(step: int, ranks: int, absent: tuple[int, ...] = ()) -> tuple[LabeledBatch, UnlabeledBatch]:
    """The images of all ranks as one batch."""

    def joined(*batches: Any) -> dict[str, Tensor]:
        given = [name for name, value in vars(batches[0]).items() if value is not None]
        return {name: torch.cat([getattr(batch, name) for batch in batches]).detach() for name in given}

    parts = [images(step, index, absent) for index in range(ranks)]
    first, second = (joined(*batches) for batches in zip(*parts, strict=True))
    return fresh(LabeledBatch(**first)), fresh(UnlabeledBatch(**second))


def module_for(name: str) -> PrototypeHead:
    return head(**{"unlabeled_samples_per_image": 10**6, "queue_size": 2000} | SETTINGS[name])


def training(index: int, ranks: int, folder: Path) -> None:
    for name in SETTINGS:
        module, states, metrics = module_for(name), {}, {}
        for step in range(LONG if name == "default" else STEPS):
            batches = images(step, index, absent_from(name, step))
            out = module(*batches)
            assert out.loss.isfinite()
            if step < STEPS or step == LONG - 1:
                (out.loss / ranks).backward()  # as DDP averages
                found = {"labeled": batches[0].features.grad, "unlabeled": batches[1].features.grad}
                states[step], metrics[step] = state(module), out.metrics | found | {"loss": out.loss.detach()}
        torch.save({"states": states, "metrics": metrics}, folder / f"{name}-{index}.pt")
    torch.save({}, folder / f"{index}.pt")


@pytest.fixture(scope="module", params=[2, 4])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """For each setting, what each rank saved: states and metrics of steps."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(training, request.param, folder)
    return {
        name: [torch.load(folder / f"{name}-{index}.pt", weights_only=True) for index in range(request.param)]
        for name in SETTINGS
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_ranks_stay_equal(trained: dict[str, list[Any]], name: str) -> None:
    """Bit for bit, state and metrics; after collecting, clustering and, by default, 200 learn steps."""
    first, *others = trained[name]
    for other in others:
        assert same(first["states"], other["states"])
        for step, metrics in first["metrics"].items():
            numbers = {key: value for key, value in metrics.items() if key not in ("labeled", "unlabeled")}
            assert same(numbers, {key: other["metrics"][step][key] for key in numbers})
    assert first["states"][STEPS - 1]["bank.mask"].any()


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "capped"])
def test_equal_to_one_process_with_all_images(trained: dict[str, list[Any]], name: str) -> None:
    """Where no cap binds: queues, clusters, prototypes, losses and gradients are those of one process."""
    parts, module = trained[name], module_for(name)
    ranks = len(parts)
    for step in range(max(parts[0]["states"]) + 1):
        batches = of_all(step, ranks, absent_from(name, step))
        out = module(*batches)
        if step not in parts[0]["states"]:
            continue
        states = parts[0]["states"][step]
        assert same({"rows": module.queue.rows, "mask": module.bank.mask, "seen": module.seen},
                    {"rows": states["queue.rows"], "mask": states["bank.mask"], "seen": states["seen"]})  # fmt: skip
        assert_close(module.sampler.thresholds, states["sampler.thresholds"], atol=1e-5, rtol=0)
        assert torch.equal(module.state_dict()["queue.features"], states["queue.features"])
        # Of rounded features, one near the middle between two prototypes may go to either.
        exact = 1e-3 if "queue_dtype" in SETTINGS[name] else 1e-5
        assert_close(module.bank.prototypes, states["bank.prototypes"], atol=exact, rtol=exact)
        for key, value in out.metrics.items():
            assert_close(value, parts[0]["metrics"][step][key], atol=exact, rtol=exact, msg=f"{key} at step {step}")
        for part in parts:
            assert_close(part["metrics"][step]["loss"], out.loss.detach(), atol=exact, rtol=exact)
        out.loss.backward()
        for key, batch in zip(("labeled", "unlabeled"), batches, strict=True):
            found = torch.cat([part["metrics"][step][key] for part in parts])
            assert_close(found, batch.features.grad, atol=exact / 10, rtol=10 * exact)


def test_goes_on_with_another_number_of_ranks(trained: dict[str, list[Any]]) -> None:
    """From any step of several ranks, one process goes on to the same prototypes, up to rounding."""
    for name, start_at in (("default", 2), ("default", 4), ("fallback", 6), ("adaptive", 5)):
        first, *_ = trained[name]
        module = module_for(name)
        module.load_state_dict(first["states"][start_at])
        for step in range(start_at + 1, STEPS):
            assert module.iteration == step
            module(*of_all(step, len(trained[name])))
            assert_close(module.bank.prototypes, first["states"][step]["bank.prototypes"], atol=1e-5, rtol=1e-5)


def going_on(index: int, ranks: int, folder: Path) -> None:
    module = head(unlabeled_samples_per_image=10**6)
    module.load_state_dict(torch.load(folder / "one.pt", weights_only=True))
    while module.iteration < STEPS:
        module(*images(module.iteration, index))
    torch.save(state(module), folder / f"{index}.pt")


def test_one_process_is_gone_on_with_by_several(tmp_path: Path) -> None:
    module = head(unlabeled_samples_per_image=10**6)
    for step in range(STEPS):
        if step == 3:
            torch.save(state(module), tmp_path / "one.pt")
        module(*of_all(step, 2))
    one, two = on_ranks(going_on, 2, tmp_path)
    assert same(one, two)
    assert_close(one["bank.prototypes"], module.bank.prototypes, atol=1e-5, rtol=1e-5)


# --- Ranks that disagree ----------------------------------------------------------------------------------------------


def disagreeing(index: int, ranks: int, folder: Path, kind: str, step_at: int) -> None:
    options = {"momentum": 0.5} if kind == "config" and index == 1 else {}
    classes = 4 if kind == "classes" and index == 1 else 3
    total = 70 if kind == "schedule" and index == 1 else 60
    module = head(classes, total=total, **options)
    message = ""
    try:
        for step in range(step_at + 2):
            first, second = labeled(step, num_classes=classes), unlabeled(step, num_classes=classes)
            if step == step_at and index == 1:
                if kind == "iteration":
                    module(first, second, iteration=step + (1 if step != 3 else 5))
                    continue
                if kind == "prototypes":
                    module.bank.prototypes[0, 0, 0, 0] += 0.25
                if kind == "fields":
                    first = fresh(first, logits=None)
            module(first, second)
    except ValueError as error:
        message = str(error)
    (folder / f"{index}.txt").write_text(message)


@pytest.mark.parametrize(
    ("kind", "step", "message"),
    [
        ("config", 0, r"config.momentum is 0.5 on rank 1, 0.99 here \(rank 0\)"),
        ("classes", 0, r"num_classes is 4 on rank 1, 3 here \(rank 0\)"),
        ("schedule", 0, r"schedule.total is 70 on rank 1, 60 here \(rank 0\)"),
        ("iteration", 1, r"ranks at the same iteration, found others on rank 0 of 2: iteration 1 here, 1.5 on average"),
        ("iteration", 2, r"ranks at the same iteration, found others on rank 0 of 2: iteration 2 here, 2.5 on average"),
        ("iteration", 3, r"ranks at the same iteration, found others on rank 0 of 2: iteration 3 here, 5.5 on average"),
        ("iteration", 4, r"ranks at the same iteration"),
        ("iteration", 7, r"ranks at the same iteration, found others on rank 0 of 2: iteration 7 here, 7.5 on average"),
        ("prototypes", 7, r"the same prototypes on all ranks"),
    ],
)
def test_disagreement_is_an_error_not_a_hang(tmp_path: Path, kind: str, step: int, message: str) -> None:
    codes = finish(start(disagreeing, 2, tmp_path, kind, step), 30)
    assert codes == [0, 0]
    assert re.search(message, (tmp_path / "0.txt").read_text()), (tmp_path / "0.txt").read_text()
    assert (tmp_path / "1.txt").read_text().startswith("process_group: expected")


def eval_on_one_rank(index: int, ranks: int, folder: Path) -> None:
    module = head()
    for step in range(7):
        module(*images(step, index))
        if index == 0:
            before = state(module)
            assert module.eval()(*images(step, 3)).loss.isfinite()
            assert same(before, state(module.train()))
    torch.save(state(module), folder / f"{index}.pt")


def test_validation_on_one_rank_waits_for_nobody(tmp_path: Path) -> None:
    one, two = on_ranks(eval_on_one_rank, 2, tmp_path)
    assert same(one, two)


def groups(index: int, ranks: int, folder: Path) -> None:
    """Ranks 0 and 1 train one head, ranks 2 and 3 another one."""
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    config, schedule = BRPGConfig(queue_size=200, grid_size=6), Schedule(warmup=1, collect=3, total=60)
    module = PrototypeHead(3, 5, schedule, config, seed=index // 2, process_group=pairs[index // 2])
    for step in range(7 + index // 2):
        module(*images(step, index))
    twin = copy.deepcopy(nn.ModuleDict({"head": module, "clusterer": module.clusterer}))
    assert twin["head"].process_group is twin["clusterer"].process_group is pairs[index // 2]
    assert same(state(twin["head"]), state(module))
    torch.save(state(module), folder / f"{index}.pt")


def test_groups_of_ranks_are_apart(tmp_path: Path) -> None:
    one, two, three, four = on_ranks(groups, 4, tmp_path)
    assert same(one, two)
    assert same(three, four)
    assert not torch.equal(one["bank.prototypes"], three["bank.prototypes"])


# --- Parts ------------------------------------------------------------------------------------------------------------


def update(index: int, ranks: int, folder: Path) -> None:
    module, features, classes = bank_case()
    part = slice(0, 11) if index == 0 else slice(11, None)
    module.bank.update(features[part], classes[part])
    empty = torch.cat(gather_rows(torch.zeros(0, 3)))
    uneven = torch.cat(gather_rows(torch.full((2 * index, 3), float(index))))
    numbers = torch.cat(gather_rows(torch.arange(index + 1)))
    total = all_reduce_sum(torch.tensor([1.0 + index]))
    result = {"bank": module.bank.prototypes, "empty": empty, "uneven": uneven, "numbers": numbers, "total": total}
    torch.save(result | {"world": torch.tensor([size_of_world(), rank()])}, folder / f"{index}.pt")


def bank_case() -> tuple[PrototypeHead, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    module = head(momentum=0.5)
    shape = module.bank.prototypes.shape
    module.bank.set(torch.randn(shape, generator=random), torch.rand(shape[:3], generator=random) < 0.7)
    return module, torch.randn(40, 5, generator=random), torch.randint(3, (40,), generator=random)


def test_collectives(tmp_path: Path) -> None:
    one, two = on_ranks(update, 2, tmp_path)
    world = one.pop("world").tolist(), two.pop("world").tolist()
    assert world == ([2, 0], [2, 1])
    assert same(one, two)
    module, features, classes = bank_case()
    module.bank.update(features, classes)
    assert_close(one["bank"], module.bank.prototypes, atol=1e-5, rtol=1e-5)
    assert one["empty"].shape == (0, 3)
    assert one["uneven"].tolist() == [[1.0] * 3] * 2
    assert one["numbers"].tolist() == [0, 0, 1]
    assert one["total"].item() == 3.0


def test_a_single_process_needs_no_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(4, 2)
    assert gather_rows(tensor) == [tensor]
    assert all_reduce_sum(tensor) is tensor
    assert (size_of_world(), rank()) == (1, 0)


def alone(index: int, ranks: int, folder: Path) -> None:
    def forbidden(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a collective among one")

    dist.init_process_group("gloo", init_method=f"file://{folder}/alone", rank=0, world_size=1)
    for name in ("all_reduce", "all_gather", "broadcast", "barrier", "all_gather_into_tensor"):
        setattr(dist, name, forbidden)
    module = head(recluster_every=2)
    for step in range(STEPS):
        module(*images(step, 0))
    torch.save(state(module), folder / "0.pt")
    dist.destroy_process_group()


def test_no_collective_among_one(tmp_path: Path) -> None:
    (found,) = on_ranks(alone, 1, tmp_path)
    module = head(recluster_every=2)
    for step in range(STEPS):
        module(*images(step, 0))
    assert same(found, state(module))


def test_one_all_reduce_of_the_stated_size_per_learn_step(tmp_path: Path) -> None:
    for found in on_ranks(counting, 2, tmp_path):
        classes, slots, dim = 3, 3, 5
        expected = 4 * (classes * 2 * slots * (dim + 2) + 5 * classes + 47)
        assert found["calls"] == [["all_reduce", expected]] * 3


def counting(index: int, ranks: int, folder: Path) -> None:
    module = head()
    for step in range(6):
        module(*images(step, index))
    calls: list[list[Any]] = []

    def noted(name: str) -> None:
        original = getattr(dist, name)

        def call(*arguments: Any, **options: Any) -> Any:
            calls.append([name, sum(value.nbytes for value in arguments if isinstance(value, Tensor))])
            return original(*arguments, **options)

        setattr(dist, name, call)

    for name in ("all_reduce", "all_gather", "broadcast", "barrier"):
        noted(name)
    for step in range(6, 9):
        module(*images(step, index))
    torch.save({"calls": calls}, folder / f"{index}.pt")


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("costs", [[], [1.0], [0.0, 0.0], [5, 1, 1, 1], [1, 1, 1, 9, 1], [3.0] * 42])
def test_shares_are_all_of_it(monkeypatch: pytest.MonkeyPatch, ranks: int, costs: list[float]) -> None:
    monkeypatch.setattr("brpg_lib.ranks.collectives.world_size", lambda group: ranks)
    shares = []
    for own in range(ranks):
        monkeypatch.setattr("brpg_lib.ranks.collectives.rank", lambda group, own=own: own)
        shares.append(list(range(len(costs)))[share_of(costs)])
    assert [index for share in shares for index in share] == list(range(len(costs)))
    most = max(sum(costs[i] for i in share) for share in shares)
    assert most <= sum(costs) / ranks + max(costs, default=0)


@pytest.mark.parametrize("values", [[0, 0], [5, 5, 5], [2**42 - 1] * 4, [3, 4], [0, 2**41], [1, 2, 3], [7] * 4000])
def test_agreement_from_a_sum(values: list[int]) -> None:
    total = torch.stack([in_pieces(torch.tensor([value, 1])) for value in values]).sum(0)
    agree, mean = from_pieces(total, len(values))
    assert agree.tolist() == [len(set(values)) == 1, True]
    assert mean[0].item() == pytest.approx(sum(values) / len(values))


# --- Other people's wrappers ------------------------------------------------------------------------------------------


class Segmenter(nn.Module):
    """A network that holds the head."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(5, 5, 1)
        self.classifier = nn.Conv2d(5, 3, 1)
        self.head = head()

    def forward(self, step: int, index: int) -> Tensor:
        first, second = images(step, index)
        features = self.net(first.features.detach())
        out = self.head(LabeledBatch(features=features, logits=first.logits, labels=first.labels), second)
        return out.loss + self.classifier(features).square().mean()


def wrapped(index: int, ranks: int, folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    model = Segmenter()
    inner = model.head
    if kind == "ddp":
        wrapper: nn.Module = nn.parallel.DistributedDataParallel(model)
        synchronized = {name for name, _ in wrapper._module_buffers} if hasattr(wrapper, "_module_buffers") else set()
        assert {name for name in synchronized if name.startswith("head")} <= {"head.bank.prototypes"}
    else:
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh("cpu", (ranks,))
        wrapper = fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(wrapper.parameters(), lr=0.1)
    for step in range(STEPS):
        optimizer.zero_grad()
        wrapper(step, index).backward()
        optimizer.step()
    torch.save(state(inner), folder / f"{index}.pt")


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_inside_a_wrapped_model(tmp_path: Path, kind: str) -> None:
    if kind == "fsdp2":
        fsdp = pytest.importorskip("torch.distributed.fsdp")
        if not hasattr(fsdp, "fully_shard"):
            pytest.skip("needs a torch with FSDP2")
    one, two = on_ranks(wrapped, 2, tmp_path, kind)
    assert same(one, two)
    assert one["bank.mask"].any()


def compiled(index: int, ranks: int, folder: Path) -> None:
    module, twin = head(), head()
    for step in range(6):
        for part in (module, twin):
            part(*images(step, index))
    fast = torch.compile(module, backend="aot_eager", fullgraph=True)
    for step in range(6, 9):
        out, expected = fast(*images(step, index)), twin(*images(step, index))
        assert_close(out.loss, expected.loss, atol=1e-5, rtol=1e-5)
        assert_close(module.bank.prototypes, twin.bank.prototypes, atol=1e-5, rtol=1e-5)
        assert module.iteration == twin.iteration == step + 1
    torch.save(state(module), folder / f"{index}.pt")


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.6", reason="this torch cannot compile collectives of the default group")
def test_the_learn_step_of_two_ranks_compiles_without_graph_breaks(tmp_path: Path) -> None:
    one, two = on_ranks(compiled, 2, tmp_path)
    assert same(one, two)


@pytest.mark.cuda
def test_nccl_among_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that one GPU can show: what is sent lies where NCCL wants it, and the host does not wait for it."""
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        module = head(queue_device="cpu").cuda()
        for step in range(STEPS):
            batches = [
                type(batch)(**{k: None if v is None else v.detach().cuda() for k, v in vars(batch).items()})
                for batch in images(step, 1)
            ]
            assert module(*batches).loss.isfinite()
        monkeypatch.setattr("brpg_lib.ranks.collectives.world_size", lambda group: 2)  # so that it does talk, to itself
        assert torch.equal(all_reduce_sum(torch.arange(3.0)), torch.arange(3.0))
        sums = StepSums.nothing(3, 18, 5, 7, torch.device("cuda"))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            total, agree, _ = exchange(sums, module.clock, 4, module.bank.prototypes, None)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert agree.all()
        assert same(total._asdict(), sums._asdict())
    finally:
        dist.destroy_process_group()
