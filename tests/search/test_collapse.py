import pytest
import torch

from covidnet.config import Augment, Budget, Search
from covidnet.models.supernet import Supernet
from covidnet.search import dnas
from covidnet.search.budget import Costing
from covidnet.search.collapse import WINDOW, Health, Watch
from covidnet.training.volumes import Volumes
from tests.toy_space import COSTS, SIZE, SPACE

BATCH = 16
IDENTITY = len(SPACE.operations) - 1
UNIFORM = torch.full((4, 8), 1 / 8)


def watch(start=UNIFORM):
    return Watch(COSTS, start, chance=1 / 3, batch=BATCH)


def mostly(operation, share):
    """Probabilities with that share on one operation of every block, ``(4, 8)``."""
    p = torch.full((4, 8), (1 - share) / 7)
    p[torch.arange(4), operation] = share
    return p


def judged(guard, probabilities, accuracies=(0.8,)):
    for step, accuracy in enumerate(accuracies):
        guard.judge(guard.look(probabilities, accuracy), torch.log(probabilities), step)
    return guard.collapse


def test_shares_are_means_over_the_blocks():
    largest = COSTS.parameters.argmax(dim=1)
    p = torch.nn.functional.one_hot(torch.cat([largest[:1], torch.full((3,), IDENTITY)]), 8).float()
    assert watch().look(p, 0.5) == Health(identity=0.75, largest=0.25, accuracy=None)


@pytest.mark.parametrize(
    ("operation", "told"),
    [(torch.full((4,), IDENTITY), "on identity"), (COSTS.parameters.argmax(dim=1), "on the largest operation")],
)
def test_a_search_that_ends_in_one_kind_of_operation_has_collapsed(operation, told):
    guard = watch()
    assert judged(guard, mostly(operation, 0.7)) is None
    assert told in judged(guard, mostly(operation, 0.8))["reason"]


def test_a_share_that_the_budget_asks_for_from_the_start_is_no_collapse():
    start = mostly(IDENTITY, 0.8)
    assert judged(watch(start), start) is None
    assert judged(watch(start), mostly(IDENTITY, 0.88)) is None
    assert judged(watch(start), mostly(IDENTITY, 0.95)) is not None


def test_a_supernet_that_forgets_has_collapsed_and_one_at_chance_or_a_noisy_one_has_not():
    rng = torch.Generator().manual_seed(0)

    def batches(accuracy, count):
        return (torch.rand(count, BATCH, generator=rng) < accuracy).float().mean(dim=1).tolist()

    assert judged(watch(), UNIFORM, batches(0.8, 2000)) is None
    assert judged(watch(), UNIFORM, batches(1 / 3, 2000)) is None
    assert judged(watch(), UNIFORM, [*batches(0.8, WINDOW), *batches(0.65, 2 * WINDOW)]) is None
    fallen = judged(watch(), UNIFORM, [*batches(0.8, WINDOW), *batches(0.4, 2 * WINDOW)])
    assert "sampled paths fell from" in fallen["reason"]


def test_healthy_is_at_most_half_of_the_way_to_a_collapse():
    guard = watch()
    for share in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8):  # half of the way from 1/8 to 3/4 is 0.44
        judged(guard, mostly(IDENTITY, share))
    torch.testing.assert_close(guard.healthy.exp(), mostly(IDENTITY, 0.4))


# ---- in a search


def volumes(seed):
    """Three classes that differ by where a bright cube lies."""
    scans = torch.randint(0, 90, (48, *SIZE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    labels = torch.arange(48) % 3
    for scan, label in zip(scans, labels.tolist(), strict=True):
        scan[2:6, 4:12, 5 * label : 5 * label + 5] += 120
    return Volumes(scans, labels)


def search(work, steps, planted_at=None, stop_after=None):
    """A toy search; from a step on, alpha's gradient is replaced by one towards identity."""
    torch.manual_seed(0)
    settings = Search(size=SIZE, batch=8, warmup_steps=4, steps=steps, budget=Budget(size_mib=None))
    still = Augment(flip=False, rotate_deg=0, scale=0, shift=0, intensity=0, noise=0)
    halves = volumes(0), volumes(1)
    state = dnas.Run(Supernet(SPACE, 1, 3), Costing(COSTS, settings.budget), *halves, settings, still, 0)
    honest = state._update_alpha

    def planted(temperature):
        found = honest(temperature)
        if planted_at is not None and state.step >= planted_at:
            state.alpha.data[:, IDENTITY] += 0.5
        return found

    state._update_alpha = planted
    for _ in range(settings.warmup_steps + settings.steps):
        state.iterate()
        if stop_after is not None and state.step == stop_after:
            torch.save(state.state(), work / "checkpoint.pt")
    return state


def test_a_planted_collapse_is_repaired_and_a_healthy_search_is_left_alone(tmp_path):
    healthy = search(tmp_path, 40)
    assert healthy.watch.collapse is None
    assert healthy.history[-1]["alpha_loss"] is not None
    assert healthy.history[-1]["path_accuracy"] > 0.34

    collapsed = search(tmp_path, 24, planted_at=12)
    found = collapsed.watch.collapse
    assert "identity" in found["reason"]
    assert 14 <= found["step"] <= 20
    p = collapsed.probabilities[-1]
    assert float(p[:, IDENTITY].mean()) <= 0.44  # back at the last healthy state, and there it stays
    assert torch.equal(p, collapsed.probabilities[-2])
    assert collapsed.history[-1]["alpha_loss"] is None
    assert f"collapsed at step {found['step']}: " in collapsed.collapsed()


def test_a_search_resumed_after_its_collapse_knows_of_it(tmp_path):
    whole = search(tmp_path, 24, planted_at=8, stop_after=22)
    assert whole.watch.collapse["step"] < 22
    torch.manual_seed(0)
    resumed = dnas.Run(
        Supernet(SPACE, 1, 3), whole.costing, volumes(0), volumes(1), whole.settings, whole.augmentation, 0
    )
    resumed.load_state(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    while resumed.step < whole.step:
        resumed.iterate()
    assert torch.equal(resumed.alpha, whole.alpha)
    assert resumed.watch.collapse == whole.watch.collapse
    assert resumed.history == whole.history
