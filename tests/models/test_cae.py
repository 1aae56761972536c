"""The backbone against the published one, and what else its face promises."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity import largest, record, relative
from golden import weights

from cae_seg.models.backbones.cae import CAE
from cae_seg.models.layers.stochastic import SampleDropPath, set_randomness
from cae_seg.models.ops.relative_bias import RelativeBias

GOLDEN = Path(__file__).parents[1] / "golden"
PUBLISHED_ARGUMENTS = [
    "img_size",
    "patch_size",
    "in_chans",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_scale",
    "drop_rate",
    "attn_drop_rate",
    "drop_path_rate",
    "init_values",
    "use_checkpoint",
    "use_abs_pos_emb",
    "use_rel_pos_bias",
    "use_sincos_pos_embed",
    "use_shared_rel_pos_bias",
    "out_indices",
    "out_with_norm",
]
RUNS = {"tiny": weights.tiny, "tiny_strong": weights.tiny_strong}


def tiny(**overrides) -> CAE:
    published = {
        "img_size": 64,
        "patch_size": 16,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 4,
        "mlp_ratio": 4,
        "qkv_bias": True,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": True,
        "init_values": 0.1,
        "drop_path_rate": 0,
        "out_indices": [0, 1, 2, 3],
    }
    return CAE(**{**published, **overrides})


def reference(run: str, **overrides) -> CAE:
    """Return the tiny backbone with a reference run's weights."""
    model = tiny(**overrides).eval()
    missing, unexpected = model.load_state_dict(RUNS[run](), strict=False)
    assert not unexpected
    assert all(name.endswith(weights.BUFFERS) for name in missing)
    return model


def backward(model: CAE) -> tuple[torch.Tensor, ...]:
    """Run the reference scalar's backward pass; return the pyramid."""
    outputs = model(weights.tiny_input())
    parts = zip(outputs, weights.tiny_output_weights(), strict=True)
    sum((output * weight).sum() for output, weight in parts).backward()
    return outputs


@pytest.mark.parametrize("use_checkpoint", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_outputs_and_gradients_are_the_published_ones(run, use_checkpoint):
    golden = np.load(GOLDEN / f"{run}.npz")
    model = reference(run, use_checkpoint=use_checkpoint)
    outputs = backward(model)
    for i, output in enumerate(outputs):
        record(f"backbone outputs, {run}", relative(output, golden[f"out{i}"]), 1e-5)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {f"grad/{name}" for name in trained} == {n for n in golden if n.startswith("grad/")}
    for name, parameter in trained.items():
        sample = golden[f"grad/{name}"]
        flat = parameter.grad.flatten()
        step = next(s for s in range(1, len(flat) + 1) if len(flat[::s]) == len(sample))
        record(f"backbone gradients, {run}", relative(flat[::step], sample), 1e-5)
        if step > 1:
            norm = torch.as_tensor(golden[f"norm/{name}"])
            record(f"norms of gradients, {run}", relative(parameter.grad.norm(), norm), 1e-5)


@pytest.mark.parametrize("grid", [(4, 4), (4, 6)], ids=["square", "not square"])
def test_fixed_positions_and_index_are_the_published_ones(grid):
    golden = np.load(GOLDEN / "sincos.npz")
    height, width = grid
    model = tiny(img_size=(16 * height, 16 * width))
    embedding, index = golden[f"pos_{height}x{width}_d64"], golden[f"relidx_{height}x{width}"]
    record("sine-cosine embedding", largest(model.pos_embed, embedding), 1e-7)
    for block in model.blocks:
        record("relative position index", largest(block.attn.relative_position_index, index), 0.0)


def test_constructor_takes_the_published_arguments_and_no_others():
    taken = set(inspect.signature(CAE).parameters)
    assert taken - {"init_cfg"} == set(PUBLISHED_ARGUMENTS)


def test_state_dict_has_the_published_names_in_their_order():
    names = [name for name in tiny().state_dict() if not name.endswith(weights.BUFFERS)]
    assert names == [name for name, _ in weights.backbone_shapes()]
    indices = [name for name in tiny().state_dict() if name.endswith("relative_position_index")]
    assert indices == [f"blocks.{i}.attn.relative_position_index" for i in range(4)]


def test_sincos_positions_are_frozen_and_survive_initialisation():
    model = tiny()
    drawn = model.pos_embed.clone()
    model.init_weights()
    assert not model.pos_embed.requires_grad
    assert torch.equal(model.pos_embed, drawn)
    assert not model.pos_embed[:, 0].any()
    assert model.pos_embed[:, 1:].abs().max() == 1


@pytest.mark.parametrize("grid", [(3, 5), (4, 4), (1, 6), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_matrix_is_the_indexed_table(grid, dtype):
    model = tiny(img_size=(16 * grid[0], 16 * grid[1]))
    index = model.blocks[0].attn.relative_position_index
    table = torch.randn((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, 4, requires_grad=True)
    bias = RelativeBias.apply(table, *grid, table.to(dtype))
    expected = table[index].permute(2, 0, 1).to(dtype)
    assert torch.equal(bias, expected)
    assert bias.stride(1) % 16 == 0, "fused kernels copy a bias with unaligned rows"
    weight = torch.randn(bias.shape).to(dtype)
    (gradient,) = torch.autograd.grad((bias * weight).sum(), table)
    (reference,) = torch.autograd.grad((expected.float() * weight.float()).sum(), table)
    assert relative(gradient, reference) < 1e-6


def test_bias_gradient_is_the_numerical_one():
    table = torch.randn(3 * 5 + 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: RelativeBias.apply(t, 2, 3, t), table)


def test_checkpointing_recomputes_with_the_same_drop_path():
    gradients = []
    for use_checkpoint in (False, True):
        model = reference("tiny_strong", drop_path_rate=0.5, use_checkpoint=use_checkpoint).train()
        set_randomness(model, seed=3, iteration=7, first_sample=0, samples=2, total=2)
        backward(model)
        gradients.append(model.blocks[2].attn.qkv.weight.grad)
    assert torch.equal(*gradients)


def test_drop_path_rises_linearly_from_zero():
    rates = [
        [m.drop_prob for m in block.modules() if isinstance(m, SampleDropPath)]
        for block in tiny(drop_path_rate=0.3).blocks
    ]
    assert rates[0] == []
    for depth, pair in enumerate(rates[1:], start=1):
        assert pair == pytest.approx([0.1 * depth] * 2, rel=1e-6)


def test_dropout_in_the_mlp_follows_the_second_layer_only():
    mlp = tiny(drop_rate=0.25).blocks[0].mlp
    assert isinstance(mlp.drop1, torch.nn.Identity)
    assert mlp.drop2.p == 0.25


def test_a_shared_table_equals_the_same_table_in_every_block():
    own = reference("tiny_strong")
    shared = tiny(use_rel_pos_bias=False, use_shared_rel_pos_bias=True).eval()
    shared.load_state_dict(
        {n: t for n, t in own.state_dict().items() if "relative_position" not in n}, strict=False
    )
    table = own.blocks[0].attn.relative_position_bias_table.data
    shared.rel_pos_bias.relative_position_bias_table.data.copy_(table)
    for block in own.blocks:
        block.attn.relative_position_bias_table.data.copy_(table)
    images = weights.tiny_input()
    for one, other in zip(own(images), shared(images), strict=True):
        assert relative(one, other) < 1e-6
    assert "rel_pos_bias.relative_position_index" in shared.state_dict()


def test_qk_scale_replaces_the_root_of_the_head_width():
    images = weights.tiny_input()
    plain, same, other = (reference("tiny_strong", qk_scale=s) for s in (None, 0.25, 1.0))
    assert torch.equal(plain(images)[3], same(images)[3])
    assert relative(other(images)[3], plain(images)[3]) > 1e-2


def test_final_norm_reaches_the_taps():
    model = tiny(out_with_norm=True)
    tokens = model(weights.tiny_input())[2].flatten(2)  # the level without a layer of its own
    assert tokens.mean(1).abs().max() < 1e-5
    assert {"norm.weight", "norm.bias"} <= set(model.state_dict())


def test_patches_of_eight_have_a_pyramid_too():
    pyramid = tiny(img_size=32, patch_size=8)(torch.randn(1, 3, 32, 32))
    assert [tuple(level.shape[2:]) for level in pyramid] == [(8, 8), (4, 4), (2, 2), (1, 1)]


def test_images_that_are_not_square_give_maps_that_are_not():
    pyramid = tiny(img_size=(64, 96))(torch.randn(2, 3, 64, 96))
    sizes = [tuple(level.shape) for level in pyramid]
    assert sizes == [(2, 64, 16, 24), (2, 64, 8, 12), (2, 64, 4, 6), (2, 64, 2, 3)]


def test_bfloat16_autocast_stays_near_float32():
    model = reference("tiny_strong")
    images = weights.tiny_input()
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images)
    for one, other in zip(rounded, exact, strict=True):
        assert relative(one, other) < 5e-2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"out_indices": [0, 1, 2]}, "out_indices"),
        ({"out_indices": [0, 1, 2, 4]}, "out_indices"),
        ({"patch_size": 32}, "patch_size"),
        ({"embed_dim": 66, "num_heads": 3}, "embed_dim"),
    ],
)
def test_impossible_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        tiny(**arguments)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype):
    model = reference("tiny_strong")
    exact = model(weights.tiny_input())
    model.cuda()
    with torch.autocast("cuda", dtype):
        rounded = model(weights.tiny_input().cuda())
    for one, other in zip(rounded, exact, strict=True):
        assert relative(one.cpu(), other) < 5e-2
