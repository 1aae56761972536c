"""Other published segmentors, number for number: outputs, losses, gradients."""

import math
import statistics

import pytest
import torch
from fidelity import record
from mmseg.models.utils import resize
from published import SYSTEMS, build, reference
from segmentors import samples

from cae_seg.errors import UserError
from cae_seg.models.pretrained.published import load_published, to_model_names

# Biases before a batch norm or a soft-max have a true gradient of zero. What is left of them is
# rounding: below this part of the largest norm in the reference (measured: 2e-8 and less), where
# nothing else is.
ZERO_GRADIENT = 1e-7
HEADS_ONLY = [n for n in SYSTEMS if "x" not in reference(n).arrays]
WHOLE = [n for n in SYSTEMS if n not in HEADS_ONLY]


def features(name: str, model: torch.nn.Module) -> list[torch.Tensor]:
    """Return what the heads get: from the image, or the reference's own features."""
    ref = reference(name)
    if name not in HEADS_ONLY:
        return list(model.extract_feat(ref.tensor("x")))
    taps = model.backbone.out_indices
    tokens = [ref.tensor(f"out{i}")[:, 1:].transpose(1, 2) for i in taps]
    return [t.unflatten(2, (math.isqrt(t.shape[2]),) * 2) for t in tokens]


def heads(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    auxiliary = model.auxiliary_head
    several = auxiliary if isinstance(auxiliary, torch.nn.ModuleList) else [auxiliary]
    return {"decode_logits": model.decode_head} | {
        f"aux_logits{i}": head for i, head in enumerate(several)
    }


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_outputs_and_logits_are_the_published_ones(name):
    ref, model = reference(name), build(name)
    maps = features(name, model)
    if name not in HEADS_ONLY:
        for key, tap in published_taps(name, model, maps).items():
            record(f"{name}: backbone outputs", ref.error(key, tap), 1e-5)
    for key, head in heads(model).items():
        logits = head(maps)
        if name.startswith("setr"):  # resized within the published heads
            logits = resize(logits, size=ref.arrays["y"].shape[1:], mode="bilinear")
        record(f"{name}: logits", ref.error(key, logits), 1e-5)


def published_taps(name: str, model, maps: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return our outputs by the reference's keys."""
    ref = reference(name)
    if name == "setr_mla":  # mmsegmentation's neck returns the deepest first
        return {f"out{i}": tap for i, tap in enumerate(reversed(maps))}
    if name.startswith("setr"):  # token sequences; the class token is not handed on
        for key in [k for k in ref.arrays if k.startswith("out")]:
            ref.arrays[key] = ref.arrays[key] if ref.arrays[key].ndim == 4 else grid(ref, key)
        return {f"out{i}": tap for i, tap in zip(model.backbone.out_indices, maps, strict=True)}
    if "neck0" in ref.arrays:
        return {f"neck{i}": tap for i, tap in enumerate(maps)}
    return {f"out{i}": tap for i, tap in enumerate(maps)}


def grid(ref, key: str):
    tokens = ref.arrays[key][:, 1:]
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(0, 2, 1).reshape(len(tokens), -1, side, side)


@pytest.mark.parametrize("name", [n for n in SYSTEMS if "odd_x" in reference(n).arrays])
@torch.no_grad()
def test_sides_that_are_no_multiple_of_anything_give_the_published_outputs(name):
    ref, model = reference(name), build(name)
    maps = model.extract_feat(ref.tensor("odd_x"))
    prefix = "odd_neck" if "odd_neck0" in ref.arrays else "odd_out"
    for i, tap in enumerate(maps):
        record(f"{name}: backbone outputs, odd sides", ref.error(f"{prefix}{i}", tap), 1e-5)
    error = ref.error("odd_decode_logits", model.decode_head(maps))
    record(f"{name}: logits, odd sides", error, 1e-5)


def losses(name: str, model) -> dict[str, torch.Tensor]:
    """Return the losses of a forward pass in train mode: decode, aux or aux_0 …"""
    ref = reference(name)
    data = samples(torch.from_numpy(ref.arrays["y"])[:, None])
    maps = features(name, model)
    found = {}
    for key, head in heads(model).items():
        part = head.loss(maps, data, None)
        number = key.removeprefix("aux_logits")
        several = len(heads(model)) > 2
        label = "decode" if key == "decode_logits" else f"aux_{number}" if several else "aux"
        found[label] = sum(v for k, v in part.items() if "loss" in k)
    return found


def own_to_published(name: str, model) -> dict[str, str]:
    """Return the published name of each trained tensor of ours, by translating tagged tensors."""
    weights = reference(name).weights
    names = sorted(weights)
    tagged = {n: torch.full_like(weights[n], i) for i, n in enumerate(names)}
    if name in HEADS_ONLY:
        tagged |= {
            f"backbone.{k}": torch.full(v.shape, -1.0)
            for k, v in model.backbone.state_dict().items()
        }
    translated = to_model_names(tagged, model, [])
    trained = dict(model.named_parameters())
    tags = {n: int(t.flatten()[0]) for n, t in translated.items() if n in trained}
    return {n: names[tag] for n, tag in tags.items() if tag >= 0}


@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_gradients_are_the_published_ones(name):
    ref, model = reference(name), build(name).train()
    found = losses(name, model)
    for label, value in found.items():
        expected = next(v for k, v in ref.meta["loss"].items() if k.startswith(f"{label}.loss"))
        record(f"{name}: losses", abs(value.item() - expected) / expected, 1e-5)
    sum(found.values()).backward()
    own = own_to_published(name, model)
    norms, errors = compare_gradients(ref, model, own)
    assert len(errors) >= 4
    record(f"{name}: gradients, median", statistics.median(errors), 2e-3)
    record(f"{name}: gradients, largest", max(errors), 2e-2)
    record(f"{name}: norms of gradients, median", statistics.median(norms), 2e-3)
    record(f"{name}: norms of gradients, largest", max(norms), 2e-2)


def compare_gradients(ref, model, own: dict[str, str]) -> tuple[list[float], list[float]]:
    """Return relative errors of the norms of all tensors, and of the tensors kept in full."""
    parameters = dict(model.named_parameters())
    squares: dict[str, float] = {}
    for name, published in own.items():
        gradient = parameters[name].grad
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        squares[published] = squares.get(published, 0.0) + norm**2
    known = {n: v for n, v in ref.meta["gradnorm"].items() if n in squares}
    rounding = ZERO_GRADIENT * max(known.values())
    zero = {n for n, v in known.items() if v < rounding}
    assert all(math.sqrt(squares[n]) < rounding for n in zero)
    norms = [abs(math.sqrt(squares[n]) - v) / v for n, v in known.items() if n not in zero]
    assert len(norms) >= 0.8 * len(own)
    kept = {k[5:]: ref.tensor(k) for k in ref.arrays if k.startswith("grad/")}
    kept = {n: v for n, v in kept.items() if n in squares and n not in zero}
    errors = []
    for name, value in to_model_names(kept, model, []).items():
        if name in own:
            difference = (parameters[name].grad - value).abs().max()
            errors.append((difference / value.abs().max()).item())
    return norms, errors


@pytest.mark.parametrize("name", WHOLE)
def test_what_does_not_fit_is_refused_by_the_name_of_the_tensor(name):
    model, weights = build(name), reference(name).weights
    before = {n: t.clone() for n, t in model.state_dict().items()}
    less = {n: t for n, t in weights.items() if n != "decode_head.bottleneck.conv.weight"}
    if less.keys() != weights.keys():
        with pytest.raises(
            UserError, match=r"x.pth: decode_head.bottleneck.conv.weight is missing"
        ):
            load_published(model, less, source="x.pth")
    with pytest.raises(UserError, match=r"decode_head.extra.weight has no place"):
        load_published(model, weights | {"decode_head.extra.weight": torch.ones(1)})
    key = next(n for n in weights if n.endswith("patch_embed.proj.weight") or "proj" in n)
    with pytest.raises(UserError, match=r"is \(1,\), not"):
        load_published(model, weights | {key: torch.ones(1)})
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
