"""The peers' losses beside their formulas written as loops, and the codes they aim at."""

from dataclasses import replace
from math import cosh, exp, log, sqrt, tanh

import numpy as np
import pytest
import torch

from engine.codes import hamming, pack_signs
from engine.errors import TrainingDataError
from engine.training.peers import PEERS, PeerConfig, PeerLoss, target_codes

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
BITS = 16


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def peer(method: str, **options: float) -> PeerLoss:
    return PeerLoss(PeerConfig(method, **options), classes=4, bits=BITS, seed=3)


def naive_cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / sqrt(sum(x * x for x in a)) / sqrt(sum(x * x for x in b))


def naive_cross_entropy(logits, label) -> float:
    return log(sum(exp(x) for x in logits)) - logits[label]


def naive_pair_mean(h, labels, pair_loss) -> float:
    """Mean over i ≠ j of w_ij l_ij, with w_ij = |S| / (number of pairs of that kind)."""
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i in range(len(h)):
        for j in range(len(h)):
            if i != j:
                alike = labels[i] == labels[j]
                kinds[alike].append(pair_loss(h[i], h[j], alike))
    count = sum(len(losses) for losses in kinds.values())
    total = sum(count / len(losses) * loss for losses in kinds.values() for loss in losses)
    return total / count if count else 0.0


def naive_hashnet(h, labels, loss, progress=1.0) -> dict[str, float]:
    beta = 1 + (loss.config.hashnet_beta - 1) * progress

    def pair_loss(a, b, alike):
        inner = sum(tanh(beta * x) * tanh(beta * y) for x, y in zip(a, b, strict=True))
        theta = loss.config.hashnet_alpha * inner
        return log(1 + exp(theta)) - alike * theta

    return {"pairs": naive_pair_mean(h, labels, pair_loss)}


def naive_dch(h, labels, loss) -> dict[str, float]:
    gamma = loss.config.dch_gamma

    def distance(a, b):
        return len(a) / 2 * (1 - naive_cosine(a, b))

    def pair_loss(a, b, alike):
        d = distance(a, b)
        return alike * log(d / gamma) + log(1 + gamma / d)

    to_ones = [log(1 + distance(abs(row), np.ones(len(row))) / gamma) for row in h]
    pairs = naive_pair_mean(h, labels, pair_loss)
    return {"pairs": pairs, "quantisation": np.mean(to_ones)}


def naive_greedyhash(h, labels, loss) -> dict[str, float]:
    (weight,) = (parameter.tolist() for parameter in loss.parameters())
    classification, quantisation = [], []
    for row, label in zip(h, labels, strict=True):
        code = [1 if x >= 0 else -1 for x in row]
        logits = [sum(w * b for w, b in zip(ws, code, strict=True)) for ws in weight]
        classification.append(naive_cross_entropy(logits, label))
        quantisation += [abs(abs(x) - 1) ** 3 for x in row]
    return {"classification": np.mean(classification), "quantisation": np.mean(quantisation)}


def naive_csq(h, labels, loss) -> dict[str, float]:
    codes = target_codes(4, BITS, seed=3).tolist()
    central, quantisation = [], []
    for row, label in zip(h, labels, strict=True):
        for x, t in zip(row, codes[label], strict=True):
            p, centre = (tanh(x) + 1) / 2, (t + 1) / 2
            central.append(-centre * log(p) - (1 - centre) * log(1 - p))
            quantisation.append((abs(tanh(x)) - 1) ** 2)
    return {"central_similarity": np.mean(central), "quantisation": np.mean(quantisation)}


def naive_dpn(h, labels, loss) -> dict[str, float]:
    codes = target_codes(4, BITS, seed=3).tolist()
    hinges = [
        max(0, loss.config.dpn_margin - x * t)
        for row, label in zip(h, labels, strict=True)
        for x, t in zip(row, codes[label], strict=True)
    ]
    return {"polarisation": np.mean(hinges)}


def naive_orthohash(h, labels, loss) -> dict[str, float]:
    codes = target_codes(4, BITS, seed=3).tolist()
    losses = []
    for row, label in zip(h, labels, strict=True):
        logits = [
            loss.config.orthohash_scale
            * (naive_cosine(row, code) - loss.config.orthohash_margin * (k == label))
            for k, code in enumerate(codes)
        ]
        losses.append(naive_cross_entropy(logits, label))
    return {"classification": np.mean(losses)}


NAIVE = {
    "hashnet": naive_hashnet,
    "dch": naive_dch,
    "greedyhash": naive_greedyhash,
    "csq": naive_csq,
    "dpn": naive_dpn,
    "orthohash": naive_orthohash,
}
OPTIONS = {
    "hashnet": {"hashnet_alpha": 0.5, "hashnet_beta": 3.0},
    "dch": {"dch_gamma": 5.0, "dch_quantisation": 0.7},
    "greedyhash": {"greedyhash_quantisation": 0.7},
    "csq": {"csq_quantisation": 0.7},
    "dpn": {"dpn_margin": 0.4},
    "orthohash": {"orthohash_scale": 3.0, "orthohash_margin": 0.1},
}


def test_the_peers_are_those_of_the_comparison():
    assert PEERS == ("hashnet", "dch", "greedyhash", "csq", "dpn", "orthohash")


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize("method", PEERS)
def test_the_loss_is_its_formula(method, tuned):
    loss = peer(method, **(OPTIONS[method] if tuned else {}))
    h = noise(7, BITS)
    total, parts = loss(h, LABELS)
    expected = NAIVE[method](h.double().numpy(), LABELS.tolist(), loss)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    weight = getattr(loss.config, f"{method}_quantisation", 0.0)
    weighted = sum(
        part * (weight if name == "quantisation" else 1) for name, part in expected.items()
    )
    assert total.item() == pytest.approx(weighted, rel=1e-4)
    assert total.shape == ()


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_hashnet_sharpens_with_progress(progress):
    loss, h = peer("hashnet"), noise(7, BITS)
    expected = naive_hashnet(h.double().numpy(), LABELS.tolist(), loss, progress)
    assert loss(h, LABELS, progress).total.item() == pytest.approx(expected["pairs"], rel=1e-4)


@pytest.mark.parametrize("method", PEERS)
def test_progress_moves_hashnet_alone(method):
    loss, h = peer(method), noise(7, BITS)
    values = [loss(h, LABELS, progress).total.item() for progress in (0.0, 0.5, 1.0)]
    assert len(set(values)) == (3 if method == "hashnet" else 1)


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_progress_is_a_share(progress):
    with pytest.raises(TrainingDataError, match=str(progress)):
        peer("hashnet")(noise(7, BITS), LABELS, progress)


def test_csq_s_square_is_the_paper_s_log_cosh_where_codes_are_nearly_binary():
    # Table §7 takes the square; the paper's log cosh(|tanh h| − 1) is half of it near ±1.
    loss, h = peer("csq"), torch.where(noise(7, BITS) >= 0, 1.5, -1.5)
    smooth = log(cosh(tanh(1.5) - 1))
    found = loss(h, LABELS).parts["quantisation"].item()
    assert found / 2 == pytest.approx(smooth, rel=1e-2)


# Gradients


@pytest.mark.parametrize("method", PEERS)
def test_every_item_has_a_finite_gradient(method):
    h = noise(7, BITS).requires_grad_()
    (gradient,) = torch.autograd.grad(peer(method)(h, LABELS).total, h)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.3, -1.0])
def test_greedyhash_passes_the_gradient_straight_through_the_sign(value):
    loss = peer("greedyhash", greedyhash_quantisation=0.0)
    h = torch.full((7, BITS), value, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(h, LABELS).total, h)
    code = torch.full((7, BITS), 1.0 if value >= 0 else -1.0, requires_grad=True)
    (weight,) = loss.parameters()
    classification = torch.nn.functional.cross_entropy(code @ weight.T, LABELS)
    (expected,) = torch.autograd.grad(classification, code)
    assert torch.allclose(gradient, expected)
    assert (gradient.abs().amax(dim=1) > 0).all()


def test_greedyhash_sees_signs_alone_and_learns_its_classifier():
    loss, h = peer("greedyhash", greedyhash_quantisation=0.0), noise(7, BITS)
    for scale in (1e-6, 1e4):
        assert loss(h * scale, LABELS).total.item() == loss(h, LABELS).total.item()
    loss(h, LABELS).total.backward()
    (weight,) = loss.parameters()
    assert weight.shape == (4, BITS)
    assert weight.grad.abs().max() > 0


EXTREMES = {
    "huge": 1e4 * noise(7, BITS),
    "huge and wrong": -1e4 * target_codes(4, BITS, seed=3)[LABELS],
    "zero": torch.zeros(7, BITS),
    "one zero row": noise(7, BITS) * (torch.arange(7) > 0)[:, None],
    "identical rows": noise(1, BITS).repeat(7, 1),
    "binary": torch.where(noise(7, BITS) >= 0, 1.0, -1.0),
}


@pytest.mark.parametrize("labels", [LABELS, LABELS * 0, torch.arange(7) % 4], ids=str)
@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize("method", PEERS)
def test_extreme_logits_give_no_nan(method, extreme, labels):
    h = EXTREMES[extreme].clone().requires_grad_()
    total = peer(method)(h, labels).total
    (gradient,) = torch.autograd.grad(total, h)
    assert torch.isfinite(total)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [2, 2, 2], [1]], ids=str)
@pytest.mark.parametrize("method", PEERS)
def test_a_batch_may_lack_a_kind_of_pair(method, labels):
    h, labels = noise(len(labels), BITS).requires_grad_(), torch.tensor(labels)
    loss = peer(method)
    total, parts = loss(h, labels)
    expected = NAIVE[method](h.detach().double().numpy(), labels.tolist(), loss)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)
    (gradient,) = torch.autograd.grad(total, h)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("method", PEERS)
def test_the_loss_is_float32_under_autocast(method):
    loss, h = peer(method), noise(7, BITS).bfloat16()
    outside = loss(h.float(), LABELS).total
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(h, LABELS).total
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("bits", [16, 24])
@pytest.mark.parametrize("method", PEERS)
def test_minimising_the_loss_brings_classes_together_and_apart(method, bits):
    labels = torch.arange(4).repeat_interleave(6)
    loss = PeerLoss(PeerConfig(method), classes=4, bits=bits)
    h = (0.1 * noise(24, bits)).requires_grad_()
    optimiser = torch.optim.Adam([h, *loss.parameters()], lr=0.05)
    steps = 200
    for step in range(steps):
        optimiser.zero_grad()
        loss(h, labels, step / steps).total.backward()
        optimiser.step()
    codes = pack_signs(h.detach().numpy())
    distances = hamming(codes[:, None], codes[None])
    same = (labels[:, None] == labels[None]).numpy()
    assert distances[same].max() < distances[~same].min()


# Target codes


def distances_of(codes: torch.Tensor) -> list[int]:
    """Hamming distances of all pairs of rows, by counting."""
    rows = codes.tolist()
    return [
        sum(a != b for a, b in zip(rows[i], rows[j], strict=True))
        for i in range(len(rows))
        for j in range(i)
    ]


@pytest.mark.parametrize(
    ("classes", "bits"),
    [(1, 1), (2, 1), (5, 8), (16, 8), (17, 8), (30, 64), (8, 3), (512, 9), (10, 12), (25, 48)],
)
def test_target_codes_are_distinct_signs_and_follow_the_seed(classes, bits):
    codes = target_codes(classes, bits, seed=1)
    assert (codes.shape, codes.dtype) == ((classes, bits), torch.float32)
    assert (codes.abs() == 1).all()
    assert len(torch.unique(codes, dim=0)) == classes
    assert torch.equal(codes, target_codes(classes, bits, seed=1))
    if classes > 4:
        assert not torch.equal(codes, target_codes(classes, bits, seed=2))


@pytest.mark.parametrize("bits", [2, 8, 16, 64])
@pytest.mark.parametrize("seed", [0, 1])
def test_hadamard_codes_are_half_the_bits_apart(bits, seed):
    assert set(distances_of(target_codes(bits, bits, seed))) == {bits // 2}
    assert set(distances_of(target_codes(2 * bits, bits, seed))) == {bits // 2, bits}


@pytest.mark.parametrize(("classes", "bits"), [(12, 24), (40, 16), (30, 48)])
def test_other_codes_are_farther_apart_than_plain_draws(classes, bits):
    found = min(distances_of(target_codes(classes, bits, seed=0)))
    plain = [min(distances_of(torch.sign(noise(classes, bits, seed=seed)))) for seed in range(20)]
    assert found > max(plain)


def test_target_codes_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    target_codes(10, 12, seed=0)
    for method in PEERS:
        peer(method)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("method", PEERS)
def test_the_seed_decides_a_loss(method):
    h = noise(7, BITS)
    first, again, other = (
        PeerLoss(PeerConfig(method), 4, BITS, seed)(h, LABELS).total.item() for seed in (0, 0, 1)
    )
    assert first == again
    assert (first == other) == (method in ("hashnet", "dch"))


@pytest.mark.parametrize("method", ["greedyhash", "csq", "dpn", "orthohash"])
def test_a_loss_comes_back_from_its_state(method):
    config, h = PeerConfig(method), noise(7, BITS)
    saved, other = PeerLoss(config, 4, BITS, seed=0), PeerLoss(config, 4, BITS, seed=1)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other(h, LABELS).total, saved(h, LABELS).total)


# Refusals


def test_more_classes_than_codes_are_refused():
    with pytest.raises(TrainingDataError, match=r"9 classes .* 3 bits; use 4 bits or more"):
        target_codes(9, 3, seed=0)
    with pytest.raises(TrainingDataError, match="17 classes"):
        PeerLoss(PeerConfig("csq"), classes=17, bits=4)


@pytest.mark.parametrize(("classes", "bits", "name"), [(0, 8, "classes"), (3, -1, "bits")])
def test_counts_below_one_are_refused(classes, bits, name):
    with pytest.raises(TrainingDataError, match=f"{name} is"):
        target_codes(classes, bits, seed=0)
    for method in PEERS:
        with pytest.raises(TrainingDataError, match=f"{name} is"):
            PeerLoss(PeerConfig(method), classes, bits)


def test_an_unknown_method_is_refused_by_name():
    with pytest.raises(TrainingDataError, match=r"'dpsh'.*hashnet.*orthohash"):
        PeerConfig("dpsh")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hashnet_alpha", 0.0),
        ("hashnet_beta", 0.5),
        ("dch_gamma", -1.0),
        ("dch_quantisation", -0.1),
        ("greedyhash_quantisation", float("inf")),
        ("csq_quantisation", float("nan")),
        ("dpn_margin", 0.0),
        ("orthohash_scale", float("nan")),
        ("orthohash_margin", 2.0),
    ],
)
def test_a_hyper_parameter_out_of_range_is_refused_with_its_value(name, value):
    with pytest.raises(TrainingDataError, match=f"{name} is {value}; use"):
        replace(PeerConfig("csq"), **{name: value})
