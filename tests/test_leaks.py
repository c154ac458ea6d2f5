"""The leaked data set: what is saved comes back, what is damaged is refused."""

import pytest
import torch
from safetensors.torch import save_file

from leaklearn.leaks import Leak, merge


def make(count: int = 6, client: int = 0, *, labels: bool = False, seed: int = 0) -> Leak:
    generator = torch.Generator().manual_seed(seed)
    return Leak(
        images=torch.randint(0, 256, (count, 1, 4, 4), generator=generator) / 255,
        confidence=torch.rand(count, generator=generator),
        client=torch.full((count,), client),
        round=torch.zeros(count, dtype=torch.int64),
        bin=torch.arange(count),
        labels=torch.arange(count) if labels else None,
        meta={"attack": "Loki", "factor": 4.0},
    )


@pytest.mark.parametrize("labels", [False, True])
def test_saved_leak_comes_back(tmp_path, labels):
    leak = make(labels=labels)
    leak.save(tmp_path / "deep" / "leak")
    back = Leak.load(tmp_path / "deep" / "leak")
    assert torch.equal(back.images, leak.images)
    assert torch.equal(back.bin, leak.bin)
    assert (back.labels is None) == (not labels)
    assert back.meta == leak.meta
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["leak.safetensors"]


def damage_tensors(path):
    content = bytearray(path.with_suffix(".safetensors").read_bytes())
    content[-3] ^= 1
    path.with_suffix(".safetensors").write_bytes(content)


def truncate(path):
    file = path.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes()[:-20])


def other_format(path):
    file = path.with_suffix(".safetensors")
    file.write_bytes(file.read_bytes().replace(rb"{\"leak\": 2}", rb"{\"leak\": 7}"))


def no_leak(path):
    save_file({"images": torch.zeros(2)}, path.with_suffix(".safetensors"))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_tensors, "SHA-256"),
        (truncate, r"leak\.safetensors is damaged"),
        (other_format, "made with other settings"),
        (no_leak, r"leak\.safetensors is damaged"),
    ],
)
def test_damaged_leak_is_refused(tmp_path, harm, message):
    make().save(tmp_path / "leak")
    harm(tmp_path / "leak")
    with pytest.raises(ValueError, match=message):
        Leak.load(tmp_path / "leak")


@pytest.mark.parametrize(("name", "value"), [("images", float("nan")), ("confidence", float("inf"))])
def test_a_kept_leak_that_is_not_finite_is_refused(tmp_path, name, value):
    leak = make()
    getattr(leak, name)[1] = value
    leak.save(tmp_path / "leak")
    with pytest.raises(ValueError, match=rf"leak\.safetensors holds NaN or infinite {name}; delete it"):
        Leak.load(tmp_path / "leak")


def test_a_missing_leak_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"leak\.safetensors is missing"):
        Leak.load(tmp_path / "leak")


def test_merge_keeps_order_provenance_and_labels():
    both = merge([make(3, client=1), make(2, client=7, labels=True, seed=1)])
    assert both.client.tolist() == [1, 1, 1, 7, 7]
    assert both.labels.tolist() == [-1, -1, -1, 0, 1]
    assert len(both.labelled()) == 2
    assert len(both.meta["merged"]) == 2
    with pytest.raises(ValueError, match="nothing to merge"):
        merge([])


def test_merge_refuses_other_shapes():
    small = make(2)
    big = Leak(torch.zeros(1, 3, 4, 4), torch.ones(1), *(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
    with pytest.raises(ValueError, match="different image shapes"):
        merge([small, big])


def test_deduplicate_keeps_the_most_confident_of_equal_images():
    leak = make(3)
    noisy = Leak(
        (leak.images + 1e-4).clamp(0, 1), torch.tensor([2.0, 0.0, 2.0]), leak.client + 5, leak.round + 1, leak.bin
    )
    kept = merge([leak, noisy]).deduplicate()
    assert len(kept) == 3
    assert sorted(kept.client.tolist()) == [0, 5, 5]
    assert len(make(0).deduplicate()) == 0


def test_unlabelled_leak_says_so():
    with pytest.raises(ValueError, match="no labels"):
        make().labelled()


def test_columns_of_wrong_length_or_type_are_refused():
    leak = make(3)
    with pytest.raises(ValueError, match="client of a leak of 3 images"):
        Leak(leak.images, leak.confidence, leak.client[:2], leak.round, leak.bin)
    with pytest.raises(ValueError, match="float32"):
        Leak(leak.images.double(), leak.confidence, leak.client, leak.round, leak.bin)
