"""Online, ensemble and stored teachers: one interface, and stored = online."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vitlab.distill.draw import Augmentation, seeds_of
from vitlab.distill.sparse import SparseTarget, kl_divergence, soft_cross_entropy, sparsify
from vitlab.distill.store import TargetStore
from vitlab.distill.store_spec import StoreSpec, keys_digest
from vitlab.distill.teachers import Ensemble, OnlineTeacher, StoredTeacher, state_hash
from vitlab.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@dataclass
class Rows:
    """As much of a batch as a teacher reads."""

    image: Tensor
    target: SparseTarget | None = None


def network(seed: int = 0, classes: int = 6, size: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes)).eval()


def teacher(seed: int = 0, temperature: float = 1.0) -> OnlineTeacher:
    model = network(seed)
    model(torch.zeros(1, 3, 8, 8))
    return OnlineTeacher(model, MEAN, STD, 8, MEAN, STD, temperature, name=f"net{seed}")


class Fixed(nn.Module):
    """Logits that do not depend on the image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, image: Tensor) -> Tensor:
        return self.logits.expand(len(image), -1)


@pytest.fixture
def batch() -> Rows:
    return Rows(torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize(
    ("temperature", "wanted"),
    [
        (1.0, [0.318217, 0.462100, 0.038862, 0.031475, 0.078117, 0.071229]),
        (2.0, [0.250366, 0.323417, 0.080345, 0.087012, 0.129164, 0.129697]),
    ],
)
def test_ensemble_averages_probabilities(batch: Rows, temperature: float, wanted: list[float]) -> None:
    logits = [[2, 1, 0, -1, 0.5, -0.5], [1.0, 3, -2, 0, 0, 1]]
    members = [OnlineTeacher(Fixed(row), MEAN, STD, 8, MEAN, STD, temperature) for row in logits]
    assert Ensemble(members)(batch)[3].tolist() == pytest.approx(wanted, abs=1e-6)
    first = Ensemble(members, weights=[3, 0])(batch)[0].tolist()
    assert first == pytest.approx((torch.tensor(logits[0]) / temperature).softmax(0).tolist(), abs=1e-6)


def test_ensemble_refuses_twins_and_wrong_weights() -> None:
    with pytest.raises(UserError, match="'net0' and 'net0' have the same weights"):
        Ensemble([teacher(0), teacher(1), teacher(0)])
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0]):
        with pytest.raises(UserError, match=r"teacher\.weights"):
            Ensemble([teacher(0), teacher(1)], weights)
    described = Ensemble([teacher(0), teacher(1)], [1, 3]).describe()
    assert described["weights"] == [0.25, 0.75] and described["members"][1]["name"] == "net1"


def test_batches_are_renormalised_for_the_teacher(batch: Rows) -> None:
    """A batch normalised for the student gives what the teacher's own normalisation would; equal ones cost nothing."""
    own = teacher()
    assert own.prepare(batch.image) is batch.image
    student_mean, student_std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    pixels = batch.image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    theirs = (pixels - torch.tensor(student_mean).view(3, 1, 1)) / torch.tensor(student_std).view(3, 1, 1)
    other = OnlineTeacher(own.model, MEAN, STD, 8, student_mean, student_std)
    torch.testing.assert_close(other.prepare(theirs), batch.image, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other(Rows(theirs)), own(batch), rtol=1e-4, atol=1e-5)


def test_other_sizes_are_resized(batch: Rows) -> None:
    large = torch.nn.functional.interpolate(batch.image, (24, 24), mode="bicubic")
    assert teacher().prepare(large).shape == (5, 3, 8, 8)
    assert teacher()(Rows(large)).shape == (5, 6)


def test_no_gradient_no_training_mode_no_state(batch: Rows) -> None:
    own = teacher()
    before = state_hash(own.model)
    own.model.train()
    batch.image.requires_grad_()
    prob = own(batch)
    assert not prob.requires_grad and prob.dtype == torch.float32 and not own.model.training
    assert state_hash(own.model) == before  # running statistics did not move
    torch.testing.assert_close(prob.sum(1), torch.ones(5))
    student = nn.Linear(2, 2)
    student.teacher = own  # type: ignore[assignment]
    assert list(student.state_dict()) == ["weight", "bias"]  # a plain attribute is in no checkpoint
    logits = torch.zeros(5, 6, requires_grad=True)
    soft_cross_entropy(logits, prob).backward()  # the label can be saved for backward
    assert logits.grad is not None


def test_precision_is_of_the_forward_only(batch: Rows) -> None:
    exact = teacher()
    rough = OnlineTeacher(exact.model, MEAN, STD, 8, MEAN, STD, precision="bf16")
    with torch.autocast("cpu", dtype=torch.bfloat16):  # a student under autocast does not touch a teacher in fp32
        assert exact(batch).equal(teacher()(batch))
        assert exact(batch).dtype == torch.float32
    prob = rough(batch)
    assert prob.dtype == torch.float32 and not prob.equal(exact(batch))
    torch.testing.assert_close(prob, exact(batch), atol=0.02, rtol=0.05)
    with pytest.raises(ValueError, match="fp64"):
        OnlineTeacher(exact.model, MEAN, STD, 8, MEAN, STD, precision="fp64")
    with pytest.raises(ValueError, match="temperature"):
        OnlineTeacher(exact.model, MEAN, STD, 8, MEAN, STD, temperature=0)


def test_state_hash_sees_everything() -> None:
    model = network()
    model(torch.zeros(1, 3, 8, 8))
    first = state_hash(model)
    assert first == state_hash(model) and len(first) == 64
    norm = model[1]  # type: ignore[index]
    norm.running_mean += 1e-3
    second = state_hash(model)
    norm.num_batches_tracked += 1
    assert len({first, second, state_hash(model), state_hash(network(1)[0])}) == 4  # type: ignore[index]
    assert state_hash(model.bfloat16()) != second


@pytest.mark.parametrize(("prob", "tolerance"), [("f4", 1e-6), ("f2", 1e-3), ("bf16", 1e-2)])
def test_stored_is_online_to_the_rounding_of_the_store(tmp_path: Path, prob: str, tolerance: float) -> None:
    """K = C: the same loss, to 1e-6 in f4 and to the stored type's rounding otherwise."""
    images = 64
    views = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 3
    online, aug = teacher(3), Augmentation(size=8)
    keys = [str(i) for i in range(images)]
    spec = StoreSpec(
        images, 1, 6, 6, keys_digest(keys), "", aug.to_dict(), aug.fingerprint(), online.describe(), MEAN, STD, 4, prob
    )
    store = TargetStore.create(tmp_path, spec, keys)
    with store.writer(0) as writer:
        for index in np.split(np.arange(images), 4):
            writer.write(index, seeds_of(4, 0, index), sparsify(online(Rows(views[index])), 6))
    store.seal(0)
    order = np.random.default_rng(0).permutation(images)
    reader = TargetStore.open(tmp_path, expect={"teacher": online.describe()})
    stored = StoredTeacher(reader.spec.teacher)
    label = stored(Rows(views[order], reader.gather(np.zeros(images, int), order)[1]))
    logits = torch.randn(images, 6, generator=torch.Generator().manual_seed(3))
    for loss in (soft_cross_entropy, kl_divergence):
        assert loss(logits, label).item() == pytest.approx(
            loss(logits, online(Rows(views[order]))).item(), abs=tolerance
        )
    assert stored.describe() == online.describe()
    with pytest.raises(RuntimeError, match="no stored targets"):
        stored(Rows(views))
